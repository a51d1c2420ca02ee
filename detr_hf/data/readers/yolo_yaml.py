"""Where the files of a YOLO data set lie, as its data.yaml or Darknet's obj.data says.

An entry of a data.yaml is taken as it is written where that lies below the data set's folder. One that lies outside is
refused, whatever lies inside: `image_root=` is how a user says that it may be read. One that does not exist is read
without its leading folders (Roboflow's `../train/images` points one folder too high), which is said, and refused where
it would meet another entry.
"""

import glob
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import LayoutError
from ..detection_data import split_kind
from .paths import URL_OR_DRIVE, PictureFinder, list_pictures
from .text import is_no_value, read_lines, read_text, read_yaml
from .yolo_layout import YoloLayout, label_home, names_of_list, without_repeats
from .yolo_lines import kind_from_yaml
from .yolo_names import (
    compare_count,
    describe_difference,
    differing_ids,
    find_names,
    name_files,
    names_of_yaml,
    read_names_file,
)

SPLIT_KEYS = ("train", "val", "valid", "validation", "test", "minival")
YAML_KEY = r"(?mi)^[\"']?(%s)[\"']?\s*:"


@dataclass
class Entry:
    """What data.yaml lists for a split, and the file or folder that it means."""

    split: str | None
    text: str
    place: Path
    repaired: bool = False


def is_split(key: str) -> bool:
    """Whether a key of data.yaml or obj.data names a split; CVAT writes `Train` and `Validation`."""
    return key.lower() in SPLIT_KEYS or (split_kind(key) is not None and key.lower() not in ("eval", "dev"))


def find_description(root: Path) -> Path | None:
    """Returns the data.yaml or obj.data of a folder, or None.

    Raises:
        LayoutError: several files could be it, and differ.
    """
    files = [path for path in sorted(root.iterdir()) if path.is_file() and not path.name.startswith(".")]
    found = [path for path in files if describes_data(path)]
    if len(found) > 1:
        contents = [read_description(path) for path in found]
        if any(content != contents[0] for content in contents):
            raise LayoutError(
                f"{root} is ambiguous: {', '.join(path.name for path in found)} all describe data. Pass the path of "
                "one."
            )
    return found[0] if found else None


def describes_data(path: Path) -> bool:
    """Whether a file is a YOLO data set's description, judged by its name and the keys in it."""
    suffix = path.suffix.lower()
    if suffix not in (".yaml", ".yml", ".data"):
        return False
    if path.name.lower() in ("data.yaml", "data.yml", "dataset.yaml", "obj.data"):
        return True
    try:
        text = read_text(path)
    except LayoutError:  # its keys are ASCII in every code page
        text = path.read_bytes().decode("latin-1")
    if suffix == ".data":
        return all(re.search(rf"(?mi)^\s*({key})\s*=", text) for key in ("names", "|".join(SPLIT_KEYS)))
    return all(re.search(YAML_KEY % keys, text) for keys in ("names", "|".join(SPLIT_KEYS)))


def read_description(path: Path) -> dict[str, Any]:
    """Returns the keys and values of a data.yaml, or of Darknet's obj.data with the keys that a data.yaml has.

    Raises:
        LayoutError: it cannot be read, or holds no keys.
    """
    if path.suffix.lower() == ".data":
        pairs = [line.partition("=") for line in read_lines(path) if "=" in line and not line.startswith("#")]
        content = {key.strip(): value.strip() for key, _, value in pairs}
        return {"names file": content.pop("names", ""), "nc": content.pop("classes", ""), **content}
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise LayoutError(f"{path} holds a {type(content).__name__}, expected the keys train, val and names.")
    return content


def layout_from_file(path: Path, image_root: Path | Mapping[str, Path] | None = None) -> YoloLayout:
    """Returns what a data.yaml or obj.data describes.

    Raises:
        LayoutError: it cannot be read, has no split, or names what lies outside or could be two things.
    """
    content = read_description(path)
    common_root = None if isinstance(image_root, Mapping) else image_root
    layout = YoloLayout(common_root or path.parent, described=True)
    listed = {key: texts for key in filter(is_split, content) if (texts := list(_texts(content[key], key, path)))}
    if not listed:
        raise LayoutError(f"{path} names no split; looked for {', '.join(SPLIT_KEYS)}, found {', '.join(content)}.")
    entries: list[Entry] = []
    readers = {}
    for split, texts in listed.items():
        root = image_root.get(split) if isinstance(image_root, Mapping) else image_root
        readers[split] = places = Places(path, content, root, layout)
        located = [places.locate(split, text) for text in texts]
        if all(located):
            entries += [entry for found in located for entry in found]
        else:
            _note_missing(layout, split, places.nothing(split, texts[located.index([])]))
    _refuse_outside(path, entries, readers)
    _refuse_meetings(path, entries)
    _list_entries(layout, path, entries, readers)
    layout.names = _names(layout, content, path, next(iter(readers.values())))
    layout.kind = kind_from_yaml(content, path)
    return layout


def _note_missing(layout: YoloLayout, split: str, error: LayoutError) -> None:
    if split_kind(split) == "test":  # exports name a test folder that they do not write
        layout.remark(None, "split-missing", "warning", f"there is no split {split!r}: {error}")
    else:
        layout.missing[split] = LayoutError(f"{error} The other splits can be read with splits=.")


def _texts(value: Any, key: str, path: Path) -> Iterator[str]:
    """Yields the texts of an entry: a text, a list, or lists in lists."""
    if is_no_value(value):
        return
    if isinstance(value, list):
        for item in value:
            yield from _texts(item, key, path)
    elif isinstance(value, str) and "\0" not in value:
        yield value
    else:
        raise LayoutError(f"{path}: {key} is {str(value)[:80]!r}, expected a path or a list of paths.")


class Places:
    """Finds the files and folders that the entries of one split mean; `limit` is the folder that they stay in."""

    def __init__(self, path: Path, content: dict[str, Any], image_root: Path | None, layout: YoloLayout) -> None:
        self.path = path
        self.layout = layout
        self.limit = image_root or path.parent
        written = self._written_base(content.get("path"), image_root)
        # With image_root=, what its user names comes first, then what data.yaml names, where that lies inside.
        self.starts = [written] if image_root is None else [image_root, written]
        self.hint = " Its `download:` is not run: fetch the data yourself." if content.get("download") else ""

    def _written_base(self, listed: Any, image_root: Path | None) -> Path:
        """Returns the folder that entries start from: `path:` of the data.yaml, else the folder it lies in."""
        home = self.path.parent
        if is_no_value(listed) or not isinstance(listed, str):
            return home
        place = join(home, listed)
        if image_root is not None:
            return place
        if os.path.isdir(place):
            if not lies_in(place, home):
                raise LayoutError(
                    f"`path: {listed}` of {self.path} is the folder {place}, which is not below {home}. Paths outside "
                    f"of the data set's folder are only followed when you name them: pass image_root={str(place)!r}."
                )
            return place
        shorter, _ = self._shortened(home, listed, (True,))
        found = shorter or home
        message = f"`path: {listed}` of {self.path.name} does not exist; its entries are read from {found}"
        self.layout.remark(None, "path-repaired", "warning", message)
        return found

    def locate(self, split: str | None, text: str) -> list[Entry]:
        """Returns what an entry means: one place, or those that match its `*`; none where nothing exists.

        Raises:
            LayoutError: it is a URL.
        """
        if "://" in text:
            raise LayoutError(
                f"{self.path} names {text!r} for {split}: nothing is downloaded; fetch it and name a folder."
            )
        outside = None
        for start in self.starts:
            place = join(start, text)
            if os.path.exists(place):
                if lies_in(place, self.limit):
                    return [Entry(split, text, place)]
                outside = outside or Entry(split, text, place)
        if outside:
            return [outside]
        start = self.starts[0]
        pattern = re.search(r"[*?\[]", text) and not os.path.isabs(text) and ".." not in text
        if pattern and (found := sorted(glob.glob(os.path.join(glob.escape(str(start)), text), recursive=True))):
            return [Entry(split, text, join(start, place)) for place in found]
        place, dropped = self._shortened(start, text, (True, False))
        if place is None:
            return []
        # Darknet's paths start from where Darknet is called: that its folder is left out is the rule.
        named = dropped and self.path.suffix.lower() != ".data"
        code, severity = ("entry-repaired", "warning") if named else ("entry-shortened", "info")
        self.layout.remark(split, code, severity, f"{text!r} of {self.path.name} does not exist; {place} is read")
        return [Entry(split, text, place, repaired=True)]

    def nothing(self, split: str, text: str) -> LayoutError:
        """Returns the error for an entry that means nothing."""
        return LayoutError(
            f"{self.path} names {text!r} for {split}, which is not below {self.starts[0]}, with or without its "
            f"leading folders. Correct the file, or pass image_root=, the folder to start from.{self.hint}"
        )

    def _shortened(self, start: Path, text: str, kinds: tuple[bool, ...]) -> tuple[Path | None, bool]:
        """Returns what exists of a path without its leading folders, and whether named ones were left out."""
        parts = path_parts(text)
        for skip in range(len(parts)):
            name = "/".join(parts[skip:])
            found = [self.layout.index.match(str(start), name, is_folder) for is_folder in kinds]
            if any(found):
                return start / next(filter(None, found)), skip > 0 or os.path.isabs(text)
        return None, True


def join(start: Path, text: str) -> Path:
    """Returns the path that `text` means from a folder, `..` resolved."""
    return Path(os.path.normpath(os.path.join(os.path.abspath(start), text.replace("\\", "/"))))


def path_parts(text: str) -> list[str]:
    """Returns the names in a path, without a drive, `.` and `..`."""
    text = URL_OR_DRIVE.sub("", text)
    return [part for part in re.split(r"[\\/]", text) if part not in ("", ".", "..")]


def lies_in(place: Path, folder: Path) -> bool:
    """Whether a path lies in a folder, as written or once links are followed."""
    if place.is_relative_to(os.path.abspath(folder)):
        return True
    return Path(os.path.realpath(place)).is_relative_to(os.path.realpath(folder))


def _refuse_outside(path: Path, entries: list[Entry], readers: dict[str, Places]) -> None:
    outside = [entry for entry in entries if not lies_in(entry.place, readers[entry.split].limit)]
    if not outside:
        return
    first = outside[0]
    # The labels beside a folder of pictures must lie below it too.
    homes = [label_home(entry.place) or entry.place for entry in entries]
    common = Path(os.path.commonpath([str(home.parent if home.is_file() else home) for home in homes]))
    raise LayoutError(
        f"{path} names {first.text!r} for {first.split}: that is {first.place}, which is not below "
        f"{readers[first.split].limit}. Paths outside of the data set's folder are only followed when you name them: "
        f"pass image_root={str(common)!r}."
    )


def _refuse_meetings(path: Path, entries: list[Entry]) -> None:
    """Raises a LayoutError where an entry that was repaired would be what another entry is, or lie in it."""
    for entry in entries:
        for other in entries if entry.repaired else ():
            same_words = path_parts(other.text) == path_parts(entry.text)
            if same_words or not (entry.place.is_relative_to(other.place) or other.place.is_relative_to(entry.place)):
                continue
            raise LayoutError(
                f"{path} names {entry.text!r} for {entry.split}, which does not exist. Without its leading folders it "
                f"would be {entry.place}, and {other.text!r} for {other.split} is {other.place}: correct the file, or "
                "pass image_root=, the folder to start from."
            )


def _list_entries(layout: YoloLayout, path: Path, entries: list[Entry], readers: dict[str, Places]) -> None:
    """Fills in the pictures of each split."""
    finders: dict[Path, PictureFinder] = {}
    meant: dict[str, tuple[str, bool]] = {}
    # Folders first: a name in a list that is repaired must not become a picture of another split's folder.
    by_kind = sorted(entries, key=lambda entry: entry.place.is_file())
    listed = {split: [] for split in dict.fromkeys(entry.split for entry in entries)}
    has_lists = any(entry.place.is_file() for entry in entries)
    for entry in by_kind:
        start = Path(os.path.abspath(readers[entry.split].starts[0]))
        finder = finders.setdefault(start, PictureFinder(start, layout.index, meant))
        if entry.place.is_dir():
            several = sum(other.split == entry.split for other in entries) > 1
            folder = start if several and entry.place.is_relative_to(start) else entry.place
            names = [os.path.relpath(entry.place / name, folder) for name in list_pictures(entry.place)]
            listed[entry.split] += [(folder, name) for name in names]
            for name in names if has_lists else ():
                below = os.path.relpath(folder / name, start).replace(os.sep, "/")
                meant.setdefault(os.path.join(start, below), (below, False))
        elif entry.place.suffix.lower() == ".txt":
            listed[entry.split] += [(start, name) for name in names_of_list(layout, entry.split, entry.place, finder)]
        else:
            raise LayoutError(f"{path} names {entry.text!r}, which is neither a folder nor a .txt list of pictures.")
    for split, pictures in listed.items():
        layout.pictures[split] = without_repeats(layout, split, pictures)


def _names(layout: YoloLayout, content: dict[str, Any], path: Path, places: Places) -> dict[int, str]:
    """Returns the class names of data.yaml, or of the file that obj.data names, or of a file beside them."""
    folders = dict.fromkeys(place for start in places.starts for place in (start, start / "labels"))
    if listed := content.get("names file"):
        entry = next(iter(places.locate(None, listed)), None)
        if entry is None:
            raise places.nothing("names", listed)
        if not lies_in(entry.place, places.limit):
            raise LayoutError(f"{path} names {listed!r}, which is not below {places.limit}: refused.")
        names = read_names_file(entry.place)
    else:
        names = names_of_yaml(content, path)
        for number in [number for number, name in names.items() if is_no_value(name)]:
            message = (
                f"{path.name}: class {number} is called {names[number]!r}: correct it if it is to have another name"
            )
            layout.remark(None, "class-name-null", "warning", message)
        for beside in name_files(folders) if names else ():
            _compare_names(layout, names, path, beside)
    names = names or find_names(folders)
    compare_count(content.get("nc"), names, path)
    return names


def _compare_names(layout: YoloLayout, names: dict[int, str], path: Path, beside: Path) -> None:
    try:
        others = read_names_file(beside)
    except LayoutError:
        return  # data.yaml names the classes
    if differing_ids(names, others):
        message = f"{path.name} and {beside} disagree: {describe_difference(names, others)}; the first is followed"
        layout.remark(None, "class-names-differ", "warning", message)
