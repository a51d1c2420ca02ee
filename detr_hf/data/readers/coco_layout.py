"""Where the files of a COCO data set lie: its JSON files, one a split, its pictures, and its panoptic PNGs.

JSON files are found by name: `instances_train2017.json`, `annotations_train.json`, `train.json`, Roboflow's
`train/_annotations.coco.json`, CVAT's `annotations/instances_default.json`, or one JSON beside a folder of pictures.
The folder of the pictures is the one of those that people use in which the listed names exist.
"""

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from ...errors import LayoutError

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
    "dataset",
    "data",
)
OTHER_TASKS = ("captions", "person_keypoints", "image_info", "stuff")
COCO_KEYS = [re.compile(rb'"%s"\s*:\s*\[' % key) for key in (b"images", b"annotations", b"categories")]
PROBE_BYTES = 1 << 20
PROBE_NAMES = 32


@dataclass
class CocoSource:
    """One annotation file: its split, kind (`"detection"`, `"panoptic"`) and, if given, its pictures' folder."""

    split: str
    kind: str
    json_path: Path
    root: Path
    image_root: Path | None = None


def find_coco(root: Path, task: str | None = None, image_root: Path | None = None) -> list[CocoSource]:
    """Returns the annotation files of a folder, one a split; an empty list when there is none.

    `task` is `"detection"` (wins when both are there) or `"panoptic"`.

    Raises:
        LayoutError: two files claim the same split.
    """
    candidates = [*root.glob("*.json"), *root.glob("annotations/*.json"), *root.glob("*/_annotations.coco.json")]
    candidates += [
        path for name in ("annotations", "labels", "instances", "coco") for path in root.glob(f"*/{name}.json")
    ]
    sources: dict[tuple[str, str], CocoSource] = {}
    for path in sorted(set(candidates)):
        kind, split = describe_json(path, root)
        named = re.search(r"instances|annotations|panoptic", path.name.lower()) is not None
        if kind is None or not (named or looks_like_coco(path)):
            continue
        if (kind, split) in sources:
            raise LayoutError(
                f"{root} is ambiguous: {sources[kind, split].json_path.relative_to(root)} and "
                f"{path.relative_to(root)} both look like the {kind} annotations of split {split!r}. Pass the path of "
                "the one JSON file that is meant."
            )
        sources[kind, split] = CocoSource(split, kind, path, root, image_root)
    kinds = {kind for kind, _ in sources}
    chosen = task or ("detection" if "detection" in kinds else "panoptic")
    if task is None and len(kinds) > 1:
        logger.info("%s holds panoptic annotations too; task='panoptic' reads those.", root)
    return [source for (kind, _), source in sources.items() if kind == chosen]


def coco_file_source(path: Path, image_root: Path | None, task: str | None) -> CocoSource:
    """Returns the source for one JSON file that was named by the user."""
    kind, split = describe_json(path, path.parent)
    return CocoSource(split, task or kind or "detection", path, path.parent, image_root)


def describe_json(path: Path, root: Path) -> tuple[str | None, str]:
    """Returns the kind (None: another task's file) and the split that a JSON file's name and folder tell."""
    stem = path.name.lower().removesuffix(".json")
    if any(stem.startswith(word) for word in OTHER_TASKS):
        return None, stem
    kind = "panoptic" if stem.startswith("panoptic") else "detection"
    words = [word for word in re.split(r"[-_. ]+", path.name[: -len(".json")]) if word]
    split = "_".join(word for word in words if word.lower() not in (*DETECTION_WORDS, "panoptic"))
    if not split:
        own_folder = path.parent != root and path.parent.name.lower() not in ("annotations", "labels", "panoptic")
        split = path.parent.name if own_folder else "train"
    return kind, split


def looks_like_coco(path: Path) -> bool:
    """Whether a JSON file has COCO's lists, judged by its first and last megabyte."""
    with open(path, "rb") as file:
        head = file.read(PROBE_BYTES)
        file.seek(max(path.stat().st_size - PROBE_BYTES, 0))
        tail = file.read(PROBE_BYTES)
    return sum(bool(key.search(head) or key.search(tail)) for key in COCO_KEYS) >= 2


def find_image_folder(source: CocoSource, file_names: list[str]) -> Path:
    """Returns the folder below which the file names of a JSON file exist; looked for by some of the names.

    Raises:
        LayoutError: none of the folders holds one, or several hold equally many.
    """
    parent, root, split = source.json_path.parent, source.root, source.split
    short = re.sub(r"[-_]?\d{4}$", "", split)
    below = (
        (parent, (split, "", "images")),
        (root, (split, f"images/{split}", "images", "data", "", "JPEGImages", short, f"images/{short}")),
        (root.parent, (split, f"images/{split}")),
    )
    folders = [place / name for place, names in below for name in names]
    looked = list(dict.fromkeys(folder for folder in folders if folder.is_dir()))
    step = max(len(file_names) // PROBE_NAMES, 1)
    probe = file_names[::step]
    counts = {folder: sum((folder / name).is_file() for name in probe) for folder in looked}
    most = max(counts.values(), default=0)
    best = [folder for folder, count in counts.items() if count == most]
    if not file_names:
        return parent
    if most == 0:
        raise LayoutError(
            f"The pictures of {source.json_path} were not found: {probe[0]!r} and {len(probe) - 1} others were looked "
            f"for in {', '.join(map(str, looked))}. Pass image_root=, the folder that the file names start from."
        )
    if len({folder.resolve() for folder in best}) > 1:
        raise LayoutError(
            f"{source.json_path} is ambiguous: its file names exist in {' and in '.join(map(str, best))}. Pass "
            "image_root=, the folder that is meant."
        )
    return best[0]


def panoptic_folder(source: CocoSource) -> Path:
    """Returns the folder of the segment PNGs: it is named like the JSON file, beside it or in the root.

    Raises:
        LayoutError: there is no such folder.
    """
    stem = source.json_path.stem
    looked = [
        folder
        for parent in dict.fromkeys((source.json_path.parent, source.root))
        for folder in (parent / stem, parent / f"{stem}_masks")
    ]
    looked.append(source.root / "panoptic" / source.split)
    for folder in looked:
        if folder.is_dir():
            return folder
    raise LayoutError(
        f"The segment pictures of {source.json_path} were not found; looked for {', '.join(map(str, looked))}."
    )
