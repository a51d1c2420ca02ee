"""Where the JSON files of a COCO data set lie, one a split, and its panoptic PNGs.

JSON files are found by name (`instances_train2017.json`, `annotations_train.json`, `train.json`, Roboflow's
`train/_annotations.coco.json`, CVAT's `annotations/instances_default.json`) or by COCO's keys: in the folder, in one
of its folders, and in the `annotations` folder of one of those. Where the pictures lie is `coco_pictures`' matter.
"""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import LayoutError
from ..detection_data import split_kind
from .other_tools import json_of_a_tool, looks_like_coco

logger = logging.getLogger(__name__)

# A JSON file's name without these parts is its split.
DETECTION_WORDS = (
    "instances",
    "annotations",
    "annotation",
    "labels",
    "label",
    "coco",
    "result",
    "results",
    "output",
    "dataset",
    "data",
)
KINDS = {"detection": "detection", "instance": "detection", "panoptic": "panoptic"}
OTHER_TASKS = ("captions", "person_keypoints", "image_info", "stuff")
# Folders of JSON files, which say nothing of a split.
ANNOTATION_FOLDERS = ("annotations", "annotation", "_annotations", "labels", "label", "json", "coco", "panoptic")
# What a folder may hold before its JSON files are one a picture, and not annotations of a data set.
MOST_FILES, MOST_FILES_IN_THEIR_FOLDER = 32, 1000
NAMED = re.compile(r"instances|annotations|panoptic")
TELLS_SPLIT = re.compile(r"(instances|panoptic)[-_ .]+(?!json$)", re.IGNORECASE)
CUT_PART = re.compile(r"[-_ ]?(part)?[-_ ]?(?<!\d)\d{1,3}$")


@dataclass
class CocoSource:
    """One annotation file: its split, kind (`"detection"`, `"panoptic"`) and, if given, its pictures' folder.

    `told` is the split as the file's name has it; `others` are the splits of the data set's other files.
    """

    split: str
    kind: str
    json_path: Path
    root: Path
    image_root: Path | None = None
    told: str = ""
    others: frozenset[str] = frozenset()


def find_coco(root: Path, task: str | None = None, image_root: Path | None = None) -> list[CocoSource]:
    """Returns the annotation files of a folder, one a split; an empty list when there is none.

    `task` is `"detection"` (wins when both are there), `"instance"`, whose files are the same, or `"panoptic"`.

    Raises:
        LayoutError: two files claim the same split.
    """
    sources: dict[tuple[str, str], CocoSource] = {}
    for path in json_candidates(root):
        kind, split = describe_json(path, root)
        if kind is None or not is_annotation_file(path, root):
            continue
        known = sources.get((kind, split))
        if known is not None:
            # Datumaro writes the classes of whole pictures beside the boxes.
            preferred = [known.json_path, path]
            preferred = [each for each in preferred if not each.name.startswith("labels_")]
            if len(preferred) != 1:
                raise LayoutError(
                    f"{root} is ambiguous: {known.json_path.relative_to(root)} and {path.relative_to(root)} both look "
                    f"like the {kind} annotations of split {split!r}. Pass the path of the one JSON file that is "
                    "meant."
                )
            path = preferred[0]
        sources[kind, split] = CocoSource(split, kind, path, root, image_root, told=split)
    kinds = {kind for kind, _ in sources}
    chosen = KINDS.get(task) or ("detection" if "detection" in kinds else "panoptic")
    if task is None and len(kinds) > 1:
        logger.info("%s holds panoptic annotations too; task='panoptic' reads those.", root)
    return settle_splits([source for (kind, _), source in sources.items() if kind == chosen])


def json_candidates(root: Path) -> list[Path]:
    """Returns the JSON files that may be annotations of a data set in `root`."""
    files, folders = _list(root)
    found = _few(files, MOST_FILES_IN_THEIR_FOLDER)
    for folder in folders:
        here, below = _list(folder)
        found += _few(here, MOST_FILES_IN_THEIR_FOLDER if is_for_json(folder) else MOST_FILES)
        for path in filter(is_for_json, below):
            found += _few(_list(path)[0], MOST_FILES_IN_THEIR_FOLDER)
    return found


def _few(files: list[Path], most: int) -> list[Path]:
    """Returns the files; of more than `most`, those that are named like annotations of a data set."""
    if len(files) <= most:
        return files
    return [path for path in files if path.stem.lower() in DETECTION_WORDS or NAMED.search(path.name.lower())]


def is_for_json(folder: Path) -> bool:
    """Whether a folder's name is one of those that hold annotation files, and says nothing of a split."""
    return folder.name.lower() in ANNOTATION_FOLDERS


def _list(folder: Path) -> tuple[list[Path], list[Path]]:
    """Returns the JSON files and the folders in a folder, both sorted, none that is hidden."""
    try:
        with os.scandir(folder) as entries:
            seen = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        logger.warning("%s is not searched for annotations: %s.", folder, error)
        return [], []
    files = [folder / name for name, is_folder in seen if not is_folder and name.lower().endswith(".json")]
    return sorted(files), sorted(folder / name for name, is_folder in seen if is_folder)


def is_annotation_file(path: Path, root: Path) -> bool:
    """Whether a JSON file is one of COCO annotations: by its keys, or by its name where no other tool wrote it."""
    if looks_like_coco(path):
        return True
    near = path.parent == root or is_for_json(path.parent)
    return bool(near and NAMED.search(path.name.lower())) and json_of_a_tool(path) is None


def coco_file_source(path: Path, image_root: Path | None, task: str | None) -> CocoSource:
    """Returns the source for one JSON file that was named by the user."""
    path = Path(os.path.abspath(path))
    root = path.parent
    kind, split = describe_json(path, root)
    source = CocoSource(split, KINDS.get(task) or kind or "detection", path, root, image_root, told=split)
    return settle_splits([source])[0]


def describe_json(path: Path, root: Path) -> tuple[str | None, str]:
    """Returns the kind (None: another task's file) and the split that a JSON file's name and folder tell."""
    stem = path.name.lower().removesuffix(".json")
    if any(stem.startswith(word) for word in OTHER_TASKS):
        return None, stem
    kind = "panoptic" if stem.startswith("panoptic") else "detection"
    words = [word for word in re.split(r"[-_. ]+", path.name[: -len(".json")]) if word]
    split = "_".join(word for word in words if word.lower() not in (*DETECTION_WORDS, "panoptic"))
    own_folders = [folder.name for folder in path.parents if folder.is_relative_to(root) and folder != root]
    own_folder = next((name for name in own_folders if name.lower() not in ANNOTATION_FOLDERS), "")
    if not split:
        split = own_folder or "train"
    elif split_kind(own_folder) and not split_kind(split):
        split = own_folder
    return kind, split


def settle_splits(sources: list[CocoSource]) -> list[CocoSource]:
    """Returns the sources with the shorter split names that are clear: `train` for `my_project_train`.

    A file that is alone and whose name tells no split is `train`. COCO's own word before a name, as in CVAT's
    `instances_default.json`, tells one.
    """
    shorter = {}
    for source in sources:
        kinds = [word for word in source.told.split("_") if split_kind(word)]
        if not split_kind(source.told) and len(kinds) == 1:
            shorter[source.json_path] = kinds[0]
    taken = Counter([source.told for source in sources] + list(shorter.values()))
    for source in sources:
        short = shorter.get(source.json_path)
        if short and taken[short] == 1:
            source.split = short
        elif len(sources) == 1 and not split_kind(source.told) and not TELLS_SPLIT.match(source.json_path.name):
            source.split = "train"
        if source.split != source.told:
            logger.info("%s is taken as the split %r.", source.json_path, source.split)
        source.others = frozenset(other.told for other in sources if other is not source)
    return sources


def settled_names(sources: list[CocoSource], wanted: Any) -> Any:
    """Returns the splits that a user wants, with names that files tell (`my_project_train`) as the settled ones."""
    names = {source.told: source.split for source in sources}
    if isinstance(wanted, str):
        return names.get(wanted, wanted)
    if isinstance(wanted, Mapping):
        return {new: names.get(name, name) for new, name in wanted.items()}
    return wanted and [names.get(name, name) for name in wanted]


def refuse_cut_splits(splits: Iterable[str], root: Path) -> None:
    """Raises where a split seems to be cut into several files, `train` and `train_2`: one of them would be left out.

    Raises:
        LayoutError: naming them.
    """
    parts: dict[str, list[str]] = {}
    for split in splits:
        whole = CUT_PART.sub("", split)
        parts.setdefault(whole if split_kind(whole) else split, []).append(split)
    for whole, names in parts.items():
        if len(names) > 1:
            raise LayoutError(
                f"{root} is ambiguous: {' and '.join(map(repr, names))} look like parts of one split {whole!r}, which "
                f"are not joined here. Join the JSON files, or say which is meant: splits={{{whole!r}: {names[0]!r}}}."
            )


def other_json_files(root: Path, sources: list[CocoSource]) -> list[str]:
    """Returns the names of the JSON files beside those of `sources` that are not read, relative to `root`."""
    read = {source.json_path for source in sources}
    folders = {path.parent for path in read}
    found = [path for path in json_candidates(root) if path.parent in folders and path not in read]
    return [path.relative_to(root).as_posix() for path in found]


def panoptic_folder(source: CocoSource) -> Path:
    """Returns the folder of the segment PNGs: it is named like the JSON file, beside it or in the root.

    Raises:
        LayoutError: there is no such folder.
    """
    stem = source.json_path.stem
    home = source.json_path.parent
    above = [home.parent] if is_for_json(home) else []
    looked = [
        folder
        for parent in dict.fromkeys((home, source.root, *above))
        for folder in (parent / stem, parent / f"{stem}_masks")
    ]
    looked.append(source.root / "panoptic" / source.split)
    for folder in looked:
        if folder.is_dir():
            return folder
    raise LayoutError(
        f"The segment pictures of {source.json_path} were not found; looked for {', '.join(map(str, looked))}."
    )
