"""Faults of a data set: what is wrong, how bad, where; all counted, the first of each kind kept."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

KEPT_FINDINGS = 1000


@dataclass(frozen=True)
class Finding:
    """One fault: what (`code`), how bad (`severity`), where, and a sentence."""

    code: str
    severity: str  # "error" | "warning" | "info"
    message: str
    split: str | None = None
    file_name: str | None = None
    image_id: int | str | None = None
    annotation_id: int | str | None = None

    def __str__(self) -> str:
        place = [self.split] if self.split else []
        if self.file_name is not None:
            place.append(f"{self.file_name}")
        elif self.image_id is not None:
            place.append(f"image {self.image_id}")
        if self.annotation_id is not None:
            place.append(f"annotation {self.annotation_id}")
        return f"{', '.join(place)}: {self.message}" if place else self.message


class FindingLog:
    """Findings by code: all are counted, the first `KEPT_FINDINGS` of each code are kept."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.severities: dict[str, str] = {}
        self.kept: dict[str, list[Finding]] = {}

    def add(self, code: str, severity: str, message: str, **where: Any) -> None:
        """Counts a fault; `where` are the place fields of `Finding`."""
        self.counts[code] = self.counts.get(code, 0) + 1
        self.severities.setdefault(code, severity)
        kept = self.kept.setdefault(code, [])
        if len(kept) < KEPT_FINDINGS:
            kept.append(Finding(code, severity, message, **where))

    def extend(self, other: "FindingLog") -> None:
        """Takes over all findings of `other`."""
        for code, count in other.counts.items():
            self.counts[code] = self.counts.get(code, 0) + count
            self.severities.setdefault(code, other.severities[code])
            kept = self.kept.setdefault(code, [])
            kept.extend(other.kept[code][: KEPT_FINDINGS - len(kept)])

    def of(self, severity: str) -> dict[str, int]:
        """Returns the counts by code of one severity."""
        return {code: count for code, count in self.counts.items() if self.severities[code] == severity}

    def lines(self, severity: str, limit: int = 3) -> list[str]:
        """Returns for each code of a severity one line with its count, then the first few offenders."""
        lines = []
        for code, count in self.of(severity).items():
            lines.append(f"{code} ({count}):")
            lines.extend(f"  {finding}" for finding in self.kept[code][:limit])
            if count > limit:
                lines.append(f"  ... and {count - limit} more")
        return lines

    def __iter__(self) -> Iterator[Finding]:
        for kept in self.kept.values():
            yield from kept

    def __len__(self) -> int:
        return sum(self.counts.values())
