"""Recognises a data set's format and reads it, faults and all: the first half of loading, and what `check` looks at.

A folder that could be two formats, or none, is an error that lists what was looked for; nothing is guessed from file
counts.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import LayoutError, PictureError
from ..detection_data import Categories
from ..findings import FindingLog
from ..pictures import read_header
from . import coco, coco_classes, coco_layout, hf_objects, voc, yolo
from .coco_pictures import PictureSearch
from .other_tools import is_archive, what_else
from .records import BOX_FORMATS, JudgedSplit, SplitRecords, check_boxes, check_categories, check_files, check_ids

FORMATS = ("coco", "yolo", "voc", "hf")
LOOKED_FOR = """looked for
  COCO: *.json with images, annotations and categories, in the folder, in annotations/, or as
  train/_annotations.coco.json
  YOLO: data.yaml (train, val, names), or images/ and labels/*.txt
  Pascal VOC: Annotations/*.xml with JPEGImages/, or pictures and *.xml in a folder for each split
  datasets: dataset_dict.json, metadata.jsonl/.csv/.parquet, or *.parquet, with an `objects` column"""


@dataclass
class ReadOptions:
    """How to read; see `load_detection_dataset`."""

    splits: Any = None
    format: str | None = None
    task: str | None = None
    image_root: Path | None = None
    box_format: str | None = None
    id2label: dict[Any, str] | None = None
    masks: bool = True
    streaming: bool = False
    load_options: dict[str, Any] = field(default_factory=dict)


@dataclass
class ReadData:
    """What was read: records by split, or (when `streams` is set) splits that are not read yet."""

    source: str
    format: str
    categories: Categories
    records: dict[str, SplitRecords]
    log: FindingLog
    box_format: str = "xywh"
    explicit_box_format: bool = True
    hf_splits: dict[str, Any] = field(default_factory=dict)


def recognise(root: Path, options: ReadOptions) -> str:
    """Returns the format of a folder.

    Raises:
        LayoutError: none or several fit.
    """
    found = []
    if coco_layout.find_coco(root, options.task, options.image_root):
        found.append("coco")
    if yolo.find_yaml(root) is not None or yolo.has_yolo_folders(root):
        found.append("yolo")
    if voc.find_voc(root, options.image_root or root):
        found.append("voc")
    if has_hf_files(root):
        found.append("hf")
    if len(found) == 1:
        return found[0]
    if found:
        raise LayoutError(
            f"{root} is ambiguous: it can be read as {' and as '.join(found)}. Pass format= with the one that is "
            "meant."
        )
    names = sorted(path.name + ("/" if path.is_dir() else "") for path in root.iterdir())[:20]
    held = "; ".join([f"it holds {', '.join(names) or 'nothing'}", *what_else(root)])
    raise LayoutError(f"{root} is no data set that is known; {held};\n{LOOKED_FOR}.")


def has_hf_files(root: Path) -> bool:
    """Whether a folder holds what `datasets` saves or reads."""
    patterns = ["dataset_dict.json", "state.json", "*.parquet", "data/*.parquet"]
    patterns += [f"{folder}metadata.{suffix}" for folder in ("", "*/") for suffix in ("jsonl", "csv", "parquet")]
    return any(next(root.glob(pattern), None) for pattern in patterns)


def choose_splits(available: list[str], wanted: Any, source: str) -> dict[str, str]:
    """Returns the splits to read, new name to source name; `wanted` is None (all), a name, names, or such a dict.

    Raises:
        LayoutError: a wanted split is not there.
    """
    if wanted is None:
        return {name: name for name in available}
    if isinstance(wanted, str):
        wanted = [wanted]
    chosen = dict(wanted) if isinstance(wanted, dict) else {name: name for name in wanted}
    missing = [name for name in chosen.values() if name not in available]
    if missing or not chosen:
        shown = ", ".join(map(repr, available))
        raise LayoutError(f"The splits {missing} are not in {source}; there are {shown}.")
    return chosen


def read_source(source: Any, options: ReadOptions) -> ReadData:
    """Returns what a folder, file, Hub id or `datasets` object holds; faults of annotations are in the records' logs.

    Raises:
        LayoutError: it is not a data set that can be told and found.
    """
    if options.format not in (None, *FORMATS):
        raise LayoutError(f"format is {options.format!r}; there are {', '.join(FORMATS)}.")
    if options.box_format not in (None, *BOX_FORMATS):
        raise LayoutError(f"box_format is {options.box_format!r}; there are {', '.join(BOX_FORMATS)}.")
    if options.task not in (None, "detection", "panoptic"):
        raise LayoutError(f"task is {options.task!r}; there are detection and panoptic.")
    if not isinstance(source, str | Path):
        return _read_hf("a data set in memory", hf_objects.as_splits(source), options)
    path = Path(source).expanduser()
    if not path.exists():
        return _read_hub(str(source), options)
    name = options.format
    if path.is_file():
        name = name or {".json": "coco", ".yaml": "yolo", ".yml": "yolo"}.get(path.suffix.lower())
        if name is None:
            archive = " It is an archive: unpack it and pass the folder." if is_archive(path) else ""
            raise LayoutError(
                f"{path} is a file of an unknown kind; expected a COCO .json, a YOLO data.yaml, or a folder.{archive}"
            )
    name = name or recognise(path, options)
    if options.streaming and name != "hf":
        raise LayoutError(
            f"streaming=True is for `datasets` data; {path} is {name} on this disk, whose pictures are read one by "
            "one anyway."
        )
    if name == "hf":
        return _read_hf(
            str(source), hf_objects.load_hf(str(path), True, options.streaming, **options.load_options), options
        )
    readers = {"coco": _read_coco, "yolo": _read_yolo, "voc": _read_voc}
    return readers[name](path, options)


def _read_hub(name: str, options: ReadOptions) -> ReadData:
    if options.format not in (None, "hf") or name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise LayoutError(f"There is no file or folder {name!r} (a Hub id is 'name' or 'owner/name').")
    return _read_hf(name, hf_objects.load_hf(name, False, options.streaming, **options.load_options), options)


def _read_coco(path: Path, options: ReadOptions) -> ReadData:
    alone = path.is_file()
    if alone:
        sources = [coco_layout.coco_file_source(path, options.image_root, options.task)]
    else:
        sources = coco_layout.find_coco(path, options.task, options.image_root)
    if not sources:
        found = (
            "; ".join(what_else(path))
            or f"{path} holds no COCO annotations for the task {options.task or 'detection'}"
        )
        raise LayoutError(f"{found};\n{LOOKED_FOR}.")
    by_split = {source.split: source for source in sources}
    chosen = choose_splits(list(by_split), coco_layout.settled_names(sources, options.splits), str(path))
    if options.splits is None:
        coco_layout.refuse_cut_splits(by_split, path)
    search, log = PictureSearch(), FindingLog()
    files = {name: coco.read_coco(by_split[split], options.masks, search) for name, split in chosen.items()}
    records = {name: file.records for name, file in files.items()}
    if len(chosen) == len(sources):
        search.log_unlisted({name: by_split[split] for name, split in chosen.items()}, records)
    for name in [] if alone else coco_layout.other_json_files(path, sources):
        log.add("annotation-file-unread", "info", "this JSON file is not read", file_name=name)
    merged = Categories.of(options.id2label) if options.id2label else coco_classes.merged_classes(files, log)
    for file in files.values():
        coco_classes.settle_category_ids(file.records, merged.source_ids)
    if sources[0].kind != "panoptic":
        merged.is_thing = None
    box_format = options.box_format or "xywh"
    return ReadData(str(path), "coco", merged, records, log, box_format, options.box_format is not None)


def _read_yolo(path: Path, options: ReadOptions) -> ReadData:
    yaml_path = path if path.is_file() else yolo.find_yaml(path)
    layout = yolo.layout_from_yaml(yaml_path, options.image_root) if yaml_path else yolo.layout_from_folders(path)
    chosen = choose_splits(list(layout.pictures), options.splits, str(path))
    categories = yolo.yolo_categories(layout, options.id2label)
    records = {new_name: yolo.read_yolo(layout, split, options.masks) for new_name, split in chosen.items()}
    return ReadData(str(path), "yolo", categories, records, FindingLog())


def _read_voc(path: Path, options: ReadOptions) -> ReadData:
    splits = voc.find_voc(path, options.image_root)
    if not splits:
        raise LayoutError(f"{path} holds no Pascal VOC annotations;\n{LOOKED_FOR}.")
    read = {split.name: voc.read_voc(split) for split in splits}
    categories = voc.voc_categories(list(read.values()))
    chosen = choose_splits(list(read), options.splits, str(path))
    records = {new_name: read[split] for new_name, split in chosen.items()}
    return ReadData(str(path), "voc", categories, records, FindingLog())


def _read_hf(source: str, splits: dict[str, Any], options: ReadOptions) -> ReadData:
    chosen = {new: splits[name] for new, name in choose_splits(list(splits), options.splits, source).items()}
    categories = hf_objects.hf_categories(chosen, options.id2label, source)
    records = {
        name: hf_objects.read_hf(name, split, options.masks)
        for name, split in chosen.items()
        if not isinstance(split, hf_objects.IterableDataset)
    }
    box_format = options.box_format or "xywh"
    return ReadData(
        source, "hf", categories, records, FindingLog(), box_format, options.box_format is not None, chosen
    )


def judge(read: ReadData) -> dict[str, JudgedSplit]:
    """Returns the splits after every check that needs no decoded picture; the findings go to `read.log`."""
    judged = {}
    for name, records in read.records.items():
        records.name = name  # another one than in the source, where the user gave it
        _fill_sizes(records)
        images = check_files(records)
        boxes, kept = check_boxes(records, read.box_format, read.explicit_box_format)
        indices = check_categories(records, read.categories, kept)
        check_ids(records)
        read.log.extend(records.log)
        judged[name] = JudgedSplit(records, boxes, indices, kept, images)
    return judged


def _fill_sizes(records: SplitRecords) -> None:
    """Reads the sizes that the annotations do not tell from the pictures' headers."""
    for row, path in enumerate(records.paths):
        if path is not None and not records.widths[row]:
            try:
                records.widths[row], records.heights[row] = read_header(path, records.file_names[row]).upright_wh
            except PictureError as error:
                if "no file" not in str(error):  # `check_files` tells of those
                    records.fault("image-unreadable", str(error), row)
