"""Which folder the pictures of a COCO file lie in, what its names mean there, and which pictures no entry names.

The folder is the one of those that people use in which most of the listed names exist, as written or as
`PictureFinder` reads them. Where none holds all of them, pictures that lie in several folders are found by their
names, if each fits exactly one.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path

from ...errors import LayoutError
from ..detection_data import SPLIT_NAMES, split_kind
from .coco_layout import CocoSource, is_for_json
from .paths import FileIndex, PictureFinder, list_pictures, readings, unsafe_reason
from .records import SplitRecords
from .text import name_key

PROBE_NAMES = 32
SPLIT_FOLDERS = ("{split}", "images/{split}", "data/{split}", "{split}/images", "{split}/data")
PICTURE_FOLDERS = ("images", "data", "", "JPEGImages", "imgs", "img", "pictures")


class SpreadFinder(PictureFinder):
    """Finds pictures anywhere below a folder by the ends of their paths, where exactly one fits."""

    def __init__(
        self,
        folder: Path,
        index: FileIndex,
        meant: dict[str, tuple[str, bool]],
        pictures: list[str],
        others: frozenset,
    ) -> None:
        super().__init__(folder, index, meant)
        self.ends: dict[str, list[str]] = {}
        for name in pictures:
            *folders, last = name.split("/")
            if not others.intersection(folders):
                self.ends.setdefault(name_key(last).casefold(), []).append(name)

    def find(self, listed: object, say: Callable[[str, str, str], None]) -> str | None:
        """Returns what `PictureFinder.find` does; a name that several pictures fit is refused."""
        if isinstance(listed, str) and (unsafe_reason(listed) or not self.exact(listed)):
            fits = self.fits(listed)
            if len(fits) > 1:
                shown = " and ".join(map(repr, fits[:3]))
                say(
                    "file-name-ambiguous",
                    "error",
                    f"{listed!r} could be {shown} below {self.folder}: pass image_root=, the folder that is meant, or "
                    "write the folder into the name",
                )
                return None
        return super().find(listed, say)

    def look(self, listed: str) -> str | None:
        """Returns the one picture whose path ends as `listed` does; None where none or several do."""
        fits = self.fits(listed)
        return fits[0] if len(fits) == 1 else None

    def fits(self, listed: str) -> list[str]:
        """Returns the pictures whose paths end as `listed` does (a path of another machine: as its longest end)."""
        whole = unsafe_reason(listed) is None
        for text in readings(listed):
            parts = [name_key(part).casefold() for part in re.split(r"[\\/]", text) if part not in ("", ".", "..")]
            fits: dict[int, list[str]] = {}
            for name in self.ends.get(parts[-1], []) if parts else []:
                fits.setdefault(_common_end(parts, name_key(name).casefold().split("/")), []).append(name)
            found = fits.get(len(parts), []) if whole else fits.get(max(fits, default=0), [])
            if found:
                return found
        return []


def _common_end(parts: list[str], others: list[str]) -> int:
    pairs = enumerate(zip(reversed(parts), reversed(others), strict=False))
    return next((position for position, (part, other) in pairs if part != other), min(len(parts), len(others)))


class PictureFolders:
    """What the files of one data set share when their pictures are looked for: listings, and what names meant."""

    def __init__(self) -> None:
        self.index = FileIndex()
        self.meant: dict[str, tuple[str, bool]] = {}
        self.trees: dict[Path, list[str]] = {}

    def finder(self, source: CocoSource, names: list[str]) -> PictureFinder:
        """Returns the finder of the pictures that a file names.

        Raises:
            LayoutError: none of the folders holds one, or several hold equally many.
        """
        folder = source.image_root or self.choose_folder(source, names)
        top = source.image_root or _outermost(source)
        finder = None
        missing = names
        if folder is not None:
            finder = PictureFinder(folder, self.index, self.meant)
            missing = [name for name in names if not _knows(finder, name)]
        if missing:
            if top not in self.trees:
                self.trees[top] = list_pictures(top)
            spread = SpreadFinder(top, self.index, self.meant, self.trees[top], source.others)
            unique = sum(_knows(spread, name) for name in names)
            if unique > len(names) - len(missing) or (finder is None and any(map(spread.fits, missing))):
                return spread
        if finder is None:
            looked = ", ".join(str(path) for path in self._candidates(source))
            raise LayoutError(
                f"The pictures of {source.json_path} were not found: {names[0]!r} and {len(names) - 1} others were "
                f"looked for in {looked}, and below {top}. Pass image_root=, the folder that the file names start "
                "from."
            )
        return finder

    def choose_folder(self, source: CocoSource, names: list[str]) -> Path | None:
        """Returns the folder in which most of the names exist, judged by some of them; None where none does.

        Raises:
            LayoutError: several hold equally many, and other files.
        """
        if not names:
            return source.json_path.parent
        probe = names[:: max(len(names) // PROBE_NAMES, 1)]
        finders = [PictureFinder(folder, self.index) for folder in self._candidates(source)]
        found = {finder.folder: [_exact(finder, name) for name in probe] for finder in finders}
        exact = {folder: len(probe) - files.count(None) for folder, files in found.items()}
        if max(exact.values(), default=0) < len(probe):
            found = {
                finder.folder: [_exact(finder, name) or finder.look(name) for name in probe] for finder in finders
            }
        scores = {folder: _score(files, probe, exact[folder]) for folder, files in found.items()}
        most = max(scores.values(), default=(0,))
        if most[0] == 0:
            return None
        best = [folder for folder, score in scores.items() if score == most]
        meant = {
            tuple(file and os.path.realpath(os.path.join(folder, file)) for file in found[folder]) for folder in best
        }
        if len(meant) > 1:
            raise LayoutError(
                f"{source.json_path} is ambiguous: its file names exist in {' and in '.join(best)}. Pass image_root=, "
                "the folder that is meant."
            )
        return Path(best[0])

    def _candidates(self, source: CocoSource) -> list[Path]:
        """Returns the folders, as people name them, that exist."""
        parent, root, split = source.json_path.parent, source.root, source.told or source.split
        splits = [split, re.sub(r"[-_]?\d{4}$", "", split), source.split]
        kind = split_kind(source.split)
        splits += [name for name in SPLIT_NAMES[kind].split("|") if name.isalpha()] if kind else []
        names = [place.format(split=name) for place in SPLIT_FOLDERS for name in splits] + list(PICTURE_FOLDERS)
        homes = [(home, names) for home in (parent, parent.parent if is_for_json(parent) else root, root)]
        homes += [(root.parent, [split, f"images/{split}"])]
        found = []
        for home, wanted in homes:
            for name in wanted:
                actual = self.index.match(str(home), name, is_folder=True) if name else ""
                found += [] if actual is None else [home / actual]
        return list(dict.fromkeys(found))

    def log_unlisted(self, sources: dict[str, CocoSource], read: dict[str, SplitRecords]) -> None:
        """Logs the pictures that lie among those of the splits and that no entry names."""
        segments = (path for records in read.values() for path in records.panoptic_paths or [])
        seen = set(map(os.path.normpath, (*self.meant, *segments)))
        for split, records in read.items():
            folders = {os.path.dirname(path) for path in records.paths if path is not None}
            top = os.path.commonpath(folders) or "." if folders else None
            for name in list_pictures(Path(top)) if top else []:
                path = os.path.normpath(os.path.join(top, name))
                if path not in seen:
                    seen.add(path)
                    message = (
                        f"no entry of {sources[split].json_path.name} names this picture below {top}: it is not used"
                    )
                    records.log.add("image-unlisted", "info", message, split=split, file_name=name)


def _outermost(source: CocoSource) -> Path:
    parent = source.json_path.parent
    return parent.parent if source.root == parent and is_for_json(parent) else source.root


def _exact(finder: PictureFinder, name: str) -> str | None:
    return finder.exact(name) if unsafe_reason(name) is None else None


def _score(files: list[str | None], names: list[str], exact: int) -> tuple[int, int, int, int]:
    """Returns how many names were found, how many as they stand, how many but for `\\`, and how deep the folder is."""
    pairs = [(file, name.replace("\\", "/")) for file, name in zip(files, names, strict=True) if file is not None]
    same, below = sum(file == name for file, name in pairs), sum(file.count("/") for file, _ in pairs)
    return len(pairs), exact, same, -below


def _knows(finder: PictureFinder, name: str) -> bool:
    return (_exact(finder, name) or finder.look(name)) is not None
