"""Which pictures are meant: files, folders and patterns; and what a search passes over, counted and named.

A picture comes once, whatever links and names lead to it, and by its own road where that is searched too. Links are
followed, but for those that lead back to a folder above. Of the files only those that could be a drawing of this
package are opened.
"""

import logging
import os
import re
from collections.abc import Iterable, Iterator
from fnmatch import filter as matching
from pathlib import Path

from ...processing.image_opening_detr import PICTURE_SUFFIXES
from ...visualize.saving import is_drawing
from .video import is_drawn_film

logger = logging.getLogger(__name__)

GLOB_SIGNS = re.compile(r"[*?\[]")
HIDDEN_PART = re.compile(r"[\\/]\.")
# What systems leave behind where they have been: passed over without a word.
HARMLESS = frozenset({".ds_store", "__macosx", "desktop.ini", "thumbs.db"})

HIDDEN = "hidden"
DRAWN = "drawn by detr-hf"
KNOWN = "known by another path"
BROKEN = "linked to nothing"
CIRCLE = "linked to a folder above"
UNREADABLE = "of folders that cannot be read"
RESULTS = "of results"
UNMATCHED = "of patterns that match nothing"
NAMES_SHOWN, REASONS_SHOWN = 3, 12


def is_harmless(name: str) -> bool:
    """Whether a file or folder of this name is one that a system makes, macOS's `._` files among them."""
    return name.startswith("._") or name.lower() in HARMLESS


def one_line(path: object) -> str:
    """Returns a path as a line of text that any terminal takes: new lines and bytes that are no text are escaped."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in str(path)
    )


def kind_of(name: str) -> str:
    """Returns the ending of a file's name in small letters, or that it has none."""
    return Path(name).suffix.lower() or "without an ending"


class LeftOut:
    """What was passed over: how many for each reason, with the first names; reads `2 .txt (a.txt, b.txt)`."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._names: dict[str, list[str]] = {}

    def add(self, reason: str, name: object) -> None:
        """Counts one."""
        self._counts[reason] = self._counts.get(reason, 0) + 1
        names = self._names.setdefault(reason, [])
        if len(names) < NAMES_SHOWN:
            names.append(one_line(name))

    @property
    def reasons(self) -> set[str]:
        """The reasons so far, endings among them."""
        return set(self._counts)

    def __len__(self) -> int:
        return sum(self._counts.values())

    def __str__(self) -> str:
        reasons = sorted(self._counts, key=lambda reason: -self._counts[reason])
        texts = []
        for reason in reasons[:REASONS_SHOWN]:
            names = ", ".join(self._names[reason]) + ", ..." * (self._counts[reason] > len(self._names[reason]))
            texts.append(f"{self._counts[reason]:,} {reason} ({names})")
        rest = sum(self._counts[reason] for reason in reasons[REASONS_SHOWN:])
        return ", ".join(texts + [f"{rest:,} of {len(reasons) - REASONS_SHOWN} other kinds"] * bool(rest))


class PictureSearch:
    """Iterates once over the pictures behind files, folders and patterns, each with its path below where it was found.

    A file is taken as it is, also where it does not exist: opening it will tell. A folder is searched with all folders
    below it for files that end in one of `suffixes`, hidden names left out, in the order of the names. A text with
    `*`, `?` or `[` that is no existing path is a pattern, in which `**` stands for any folders. The folder `results`,
    where it lies inside a folder that is searched, is left out, and so are results of earlier runs and drawings that
    this package made (one that alone is named is taken).

    What is passed over is in `left_out`, and logged at the end of a search that found something.
    """

    def __init__(
        self, paths: Iterable[str | Path], results: Path | None = None, suffixes: Iterable[str] = PICTURE_SUFFIXES
    ):
        self.given = [Path(path) for path in paths]
        self.left_out = LeftOut()
        self._endings = tuple(suffixes)
        self._results = None if results is None else os.path.realpath(results)
        self._named = [os.path.realpath(path) for path in self.given if path.is_dir()]
        self._roots = list(self._named)  # and the folders that links led to
        # In a single folder only links can lead to a picture twice, and a million others need not be remembered.
        self._apart = len(self.given) == len(self._roots) == 1
        self._folders: set[str] = set()
        self._files: set[str] = set()

    def __iter__(self) -> Iterator[tuple[Path, Path]]:
        count = 0
        for given in self.given:
            for found in self._expand(given):
                count += 1
                yield found
        if count and self.left_out:
            logger.warning("Left out of the search: %s.", self.left_out)

    def nothing(self) -> str:
        """Returns the sentence that says that nothing was found, and what was left out."""
        where = f"there is no picture in {', '.join(map(str, self.given))}"
        return f"{where}; left out: {self.left_out}" if self.left_out else where

    def _expand(self, given: Path) -> Iterator[tuple[Path, Path]]:
        if given.is_dir():
            yield from self._below(given, Path(), os.path.realpath(given))
        elif not os.path.lexists(given) and GLOB_SIGNS.search(str(given)):
            root, parts = _split_pattern(given)
            path = None
            for path in _matches(root, parts):
                if path.is_dir():
                    yield from self._below(path, Path(), os.path.realpath(path))
                else:
                    relative = path.relative_to(root)
                    below = Path(path.name) if ".." in relative.parts else relative
                    yield from self._file(path, below, os.path.realpath(path))
            if path is None:
                self.left_out.add(UNMATCHED, given)
        else:
            yield from self._file(given, Path(given.name), os.path.realpath(given))

    def _below(self, root: Path, below: Path, real: str) -> Iterator[tuple[Path, Path]]:
        """Yields the files of a folder and all folders in it, one folder in memory at a time."""
        if real in self._folders or (real == self._results and below.parts):
            self.left_out.add(KNOWN if real in self._folders else RESULTS, root / below)
            return
        self._folders.add(real)
        try:
            with os.scandir(root / below) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            self.left_out.add(UNREADABLE, root / below)
            return
        if _is_run({entry.name for entry in found}):
            self.left_out.add(RESULTS, root / below)
            return
        for entry in found:
            relative = below / entry.name
            if is_harmless(entry.name):
                continue
            if entry.name.startswith("."):
                self.left_out.add(HIDDEN, relative)
            elif entry.is_symlink():
                yield from self._link(root, relative)
            elif entry.is_dir():  # on Windows also a junction, which is a link
                below_real = os.path.realpath(entry.path) if os.name == "nt" else os.path.join(real, entry.name)
                yield from self._below(root, relative, below_real)
            elif self._is_wanted(entry.name) and entry.is_file():
                yield from self._file(root / relative, relative, os.path.join(real, entry.name), not self._apart)
            else:
                self.left_out.add(kind_of(entry.name), relative)

    def _link(self, root: Path, relative: Path) -> Iterator[tuple[Path, Path]]:
        path = root / relative
        real = os.path.realpath(path)
        if not os.path.exists(path):
            self.left_out.add(BROKEN, relative)
        elif os.path.isdir(real):
            below = [*self._named, os.path.realpath(path.parent)]
            if any(known.startswith(os.path.join(real, "")) for known in below):
                self.left_out.add(CIRCLE, relative)
            elif self._comes_anyway(real):
                self.left_out.add(KNOWN, relative)
            else:
                self._roots.append(real)
                yield from self._below(root, relative, real)
        elif not self._is_wanted(relative.name):
            self.left_out.add(kind_of(relative.name), relative)
        elif self._is_wanted(real) and self._comes_anyway(real):
            self.left_out.add(KNOWN, relative)
        else:
            yield from self._file(path, relative, real)

    def _file(self, path: Path, relative: Path, real: str, remembered: bool = True) -> Iterator[tuple[Path, Path]]:
        if real in self._files:
            self.left_out.add(KNOWN, path)
            return
        if remembered:
            self._files.add(real)
        if self.given != [path] and (is_drawing(path) or is_drawn_film(path)):
            self.left_out.add(DRAWN, path)
        else:
            yield path, relative

    def _is_wanted(self, name: str) -> bool:
        return name.lower().endswith(self._endings)

    def _comes_anyway(self, real: str) -> bool:
        """Whether the search meets a file or folder by its own path: below one that is searched, and not hidden."""
        for root in self._roots:
            below = os.path.join(root, "")
            if real == root or (real.startswith(below) and not HIDDEN_PART.search(os.sep + real[len(below) :])):
                return True
        return False


def _is_run(names: set[str]) -> bool:
    """Whether a folder with these names holds a run of batch prediction."""
    return "run.json" in names and any(name == "unfinished" or name.startswith("part-0") for name in names)


def _split_pattern(given: Path) -> tuple[Path, tuple[str, ...]]:
    """Returns the folder before the first part that holds a glob sign, and the parts from there on."""
    first = next(i for i, part in enumerate(given.parts) if GLOB_SIGNS.search(part))
    return Path(*given.parts[:first]), given.parts[first:]


def _matches(folder: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    """Yields what a pattern means below a folder, in the order of the names; hidden names only where it says a dot."""
    if not parts or parts == ("**",):
        yield folder
        return
    first, *rest = parts
    if first == "**":
        for below in _folders_below(folder, set()):
            yield from _matches(below, tuple(rest))
    elif not GLOB_SIGNS.search(first):
        if os.path.lexists(folder / first):
            yield from _matches(folder / first, tuple(rest))
    else:
        for name in sorted(matching(_names_in(folder), first)):
            if is_harmless(name) or name.startswith(".") > first.startswith("."):
                continue
            if not rest or (folder / name).is_dir():
                yield from _matches(folder / name, tuple(rest))


def _folders_below(folder: Path, seen: set[str]) -> Iterator[Path]:
    """Yields a folder and those below it that are not hidden, each once."""
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    yield folder
    for name in sorted(_names_in(folder)):
        if not name.startswith(".") and not is_harmless(name) and (folder / name).is_dir():
            yield from _folders_below(folder / name, seen)


def _names_in(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
