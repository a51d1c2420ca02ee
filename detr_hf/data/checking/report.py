"""What a check found, as an object, as text and as JSON."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..findings import SEVERITIES, Finding, FindingLog
from .object_sizes import ClassSize, ModelSide

SHOWN_SIZES = 12  # classes, the smallest


@dataclass
class SplitSummary:
    """Counts of one split: `classes` objects by class name, `per_image` the fewest, median and most of an image."""

    images: int = 0
    objects: int = 0
    crowds: int = 0
    empty_images: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    per_image: tuple[int, float, int] = (0, 0.0, 0)


@dataclass
class CheckReport:
    """Findings by severity and code, a summary of each split, and the sizes of the training split's objects by class
    as the model, `side`, sees them."""

    source: str
    format: str | None
    splits: dict[str, SplitSummary]
    log: FindingLog
    id2label: dict[int, str] = field(default_factory=dict)
    mapping: dict[int | str, int] = field(default_factory=dict)
    seconds: float = 0.0
    side: ModelSide = field(default_factory=ModelSide)
    sizes: dict[str, ClassSize] = field(default_factory=dict)

    @property
    def findings(self) -> list[Finding]:
        """Returns the findings that were kept: all, up to a thousand of each code."""
        return list(self.log)

    @property
    def counts(self) -> dict[str, int]:
        """Returns how often each code was found."""
        return dict(self.log.counts)

    @property
    def errors(self) -> dict[str, int]:
        """Returns the counts of what training would suffer from."""
        return self.log.of("error")

    @property
    def warnings(self) -> dict[str, int]:
        """Returns the counts of what is tolerated, but hardly meant."""
        return self.log.of("warning")

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not self.errors

    def exit_code(self, strict: bool = False) -> int:
        """Returns 0 when there is no error (and, when strict, no warning), else 1."""
        return 1 if self.errors or (strict and self.warnings) else 0

    def to_dict(self) -> dict[str, Any]:
        """Returns everything, as JSON can hold it."""
        return {
            "source": self.source,
            "format": self.format,
            "ok": self.ok,
            "seconds": round(self.seconds, 2),
            "id2label": {str(index): name for index, name in self.id2label.items()},
            "category_mapping": [{"source_id": source, "id": index} for source, index in self.mapping.items()],
            "splits": {name: vars(summary) for name, summary in self.splits.items()},
            "model": vars(self.side),
            "object_sizes": {name: vars(size) for name, size in self.sizes.items()},
            "counts": {severity: self.log.of(severity) for severity in SEVERITIES},
            "findings": [vars(finding) for finding in self.findings],
        }

    def to_json(self, path: str | Path) -> None:
        """Writes `to_dict` to a file."""
        Path(path).write_text(
            json.dumps(self.to_dict(), indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8"
        )

    def text(self, limit: int = 5) -> str:
        """Returns a summary, then for each code its count and the first `limit` offenders."""
        lines = [
            f"{self.source}: {self.format or 'not recognised'}, {len(self.id2label)} classes, checked in "
            f"{self.seconds:.1f} s"
        ]
        for name, split in self.splits.items():
            fewest, median, most = split.per_image
            lines.append(
                f"  {name}: {split.images} images ({split.empty_images} without objects), {split.objects} objects"
                f"{f' and {split.crowds} crowds' if split.crowds else ''}; per image {fewest} to {most}, median "
                f"{median:g}"
            )
        lines += [*self._class_lines(), *self._size_lines()]
        for severity in SEVERITIES:
            found = self.log.lines(severity, limit)
            if found:
                lines += ["", f"{severity}s:" if severity != "info" else "notes:", *(f"  {line}" for line in found)]
        counts = {severity: sum(self.log.of(severity).values()) for severity in ("error", "warning")}
        totals = ", ".join(f"{count} {severity}{'s' * (count != 1)}" for severity, count in counts.items())
        return "\n".join([*lines, "", f"{totals}."])

    def _class_lines(self) -> list[str]:
        totals: dict[str, int] = {}
        for split in self.splits.values():
            for name, count in split.classes.items():
                totals[name] = totals.get(name, 0) + count
        ordered = sorted(totals.items(), key=lambda item: -item[1])
        if not ordered:
            return []
        shown = [f"{name} {count}" for name, count in ordered]
        if len(shown) > 16:
            shown = [*shown[:8], f"... {len(shown) - 16} more ...", *shown[-8:]]
        return [f"  objects by class: {', '.join(shown)}"]

    def _size_lines(self) -> list[str]:
        """Returns a line a class, the smallest first."""
        if not self.sizes:
            return []
        side, shown = self.side, list(self.sizes.items())[:SHOWN_SIZES]
        more = f", {SHOWN_SIZES} of {len(self.sizes)} classes" if len(self.sizes) > SHOWN_SIZES else ""
        lines = [
            f"  objects to learn, at a shortest side of {side.shortest} pixels (median width x height; a cell of the "
            f"feature map is {side.stride}{more}):"
        ]
        width = max(len(name) for name, _ in shown)
        for name, one in shown:
            cells = f"{one.width / side.stride:.1f} x {one.height / side.stride:.1f} cells"
            pixels = f"{one.width:.0f} x {one.height:.0f} pixels"
            lines.append(f"    {name:<{width}}  {pixels:>16}  {cells:>16}  {one.under_cell:4.0%} under a cell")
        return lines

    def __str__(self) -> str:
        return self.text()
