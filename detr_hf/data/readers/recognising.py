"""Recognises a data set's format and reads it, faults and all: the first half of loading, and what `check` looks at.

A folder that could be two formats, or none, is an error that lists what was looked for; nothing is guessed from file
counts.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import LayoutError, PictureError, did_you_mean
from ..detection_data import Categories
from ..findings import FindingLog
from ..pictures import read_header
from ..read_options import ReadOptions
from . import coco, coco_classes, coco_layout, hf_objects, voc, voc_layout, yolo
from .coco_pictures import PictureFolders
from .digit_data import DIGITS, digit_splits
from .mask_checks import check_masks, check_segments
from .other_tools import is_archive, what_else
from .records import (
    JudgedSplit,
    SplitRecords,
    check_boxes,
    check_categories,
    check_files,
    check_ids,
)
from .text import name_key

LOOKED_FOR = """looked for
  COCO: *.json with images, annotations and categories, in the folder, in annotations/, or as
  train/_annotations.coco.json
  YOLO: data.yaml (train, val, names), obj.data, images/ and labels/*.txt, or pictures and *.txt side by side
  Pascal VOC: Annotations/*.xml (annots/, labels/) with JPEGImages/ (images/, data/), or pictures and *.xml in a
  folder for each split
  datasets: dataset_dict.json, metadata.jsonl/.csv/.parquet, or *.parquet, with an `objects` column"""


@dataclass
class ReadData:
    """What was read: records by split, and the splits of a `datasets` source, whose pictures stay where they are."""

    source: str
    format: str
    categories: Categories
    records: dict[str, SplitRecords]
    log: FindingLog
    box_format: str = "xywh"
    explicit_box_format: bool = True
    hf_splits: dict[str, Any] = field(default_factory=dict)
    options: ReadOptions = field(default_factory=ReadOptions)

    @property
    def splits(self) -> list[str]:
        """Returns the names of all splits, read or streamed."""
        return list({**self.hf_splits, **self.records})


def recognise(root: Path, options: ReadOptions) -> str:
    """Returns the format of a folder.

    Raises:
        LayoutError: none or several fit.
    """
    found = []
    if coco_layout.find_coco(root, options.task):
        found.append("coco")
    if yolo.is_yolo(root):
        found.append("yolo")
    if voc_layout.find_voc(root, root):
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
    other = voc_layout.other_xml(root)
    held = [f"it holds {', '.join(names) or 'nothing'}", *what_else(root), *([other] if other else [])]
    raise LayoutError(f"{root} is no data set that is known; {'; '.join(held)};\n{LOOKED_FOR}.")


def has_hf_files(root: Path) -> bool:
    """Whether a folder holds what `datasets` saves or reads."""
    patterns = ["dataset_dict.json", "state.json", "*.parquet", "data/*.parquet"]
    patterns += [f"{folder}metadata.{suffix}" for folder in ("", "*/") for suffix in ("jsonl", "csv", "parquet")]
    return any(next(root.glob(pattern), None) for pattern in patterns)


def choose_splits(available: list[str], wanted: Any, source: str) -> dict[str, str]:
    """Returns the splits to read, new name to source name; `wanted` is None (all), names, or such a dict.

    Raises:
        LayoutError: a wanted split is not there.
    """
    if wanted is None:
        return {name: name for name in available}
    chosen = dict(wanted) if isinstance(wanted, dict) else {name: name for name in wanted}
    missing = [name for name in chosen.values() if name not in available]
    if missing or not chosen:
        shown = ", ".join(map(repr, available))
        raise LayoutError(
            f"The splits {missing} are not in {source}; there are {shown}."
            + did_you_mean(next(iter(missing), ""), available)
        )
    return chosen


def read_source(source: Any, options: ReadOptions) -> ReadData:
    """Returns what a folder, file, Hub id or `datasets` object holds; faults of annotations are in the records' logs.

    Raises:
        LayoutError: it is not a data set that can be told and found.
    """
    read = _read(source, options)
    read.options = options
    return read


def _read(source: Any, options: ReadOptions) -> ReadData:
    if not isinstance(source, str | Path):
        return _read_hf("a data set in memory", hf_objects.as_splits(source), options)
    if not str(source).strip():
        raise LayoutError("The name of the data set is empty, as that of an unset variable is: name one.")
    path = Path(source).expanduser()
    if not path.exists():
        if str(source) == DIGITS:
            return _read_hf(DIGITS, digit_splits(options.splits, options.task), options)
        return _read_hub(str(source), options)
    name = options.format
    if path.is_file():
        name = name or {".json": "coco", ".yaml": "yolo", ".yml": "yolo", ".data": "yolo"}.get(path.suffix.lower())
        if name is None:
            archive = " It is an archive: unpack it and pass the folder." if is_archive(path) else ""
            raise LayoutError(
                f"{path} is a file of an unknown kind; expected a COCO .json, a YOLO data.yaml or obj.data, or a "
                f"folder.{archive}"
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
    options.refuse_useless(name, str(path))
    readers = {"coco": _read_coco, "yolo": _read_yolo, "voc": _read_voc}
    return readers[name](path, options)


def _read_hub(name: str, options: ReadOptions) -> ReadData:
    if options.format not in (None, "hf") or name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise LayoutError(f"There is no file or folder {name!r} (a Hub id is 'name' or 'owner/name').")
    return _read_hf(name, hf_objects.load_hf(name, False, options.streaming, **options.load_options), options)


def _read_coco(path: Path, options: ReadOptions) -> ReadData:
    alone = path.is_file()
    if alone:
        sources = [coco_layout.coco_file_source(path, None, options.task)]
    else:
        sources = coco_layout.find_coco(path, options.task)
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
    for split, root in options.roots(chosen).items():
        by_split[split].image_root = root
    search, log = PictureFolders(), FindingLog()
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
        if options.stuff is not None:
            raise LayoutError(f"stuff= is for panoptic data; {path} is read as detection. Pass task='panoptic'.")
    elif options.stuff is not None:
        merged.call_stuff(options.stuff, str(path))
    else:
        coco_classes.settle_things(merged, files, log)
    box_format = options.box_format or "xywh"
    return ReadData(str(path), "coco", merged, records, log, box_format, options.box_format is not None)


def _read_yolo(path: Path, options: ReadOptions) -> ReadData:
    renamed = options.splits if isinstance(options.splits, dict) else {}
    image_root = options.image_root
    if isinstance(image_root, dict):  # by the names of the source
        image_root = {renamed.get(split, split): root for split, root in image_root.items()}
    layout = yolo.find_layout(path, image_root)
    if layout is None:
        raise LayoutError(f"{path} holds no YOLO data;\n{LOOKED_FOR}.")
    if options.image_root is not None and not layout.described:
        raise LayoutError(f"{path} has no data.yaml whose entries image_root= could be for. Leave it out.")
    splits = [*layout.pictures, *layout.missing]
    options.roots({name: name for name in splits} | renamed)
    chosen = choose_splits(splits, options.splits, str(path))
    log = FindingLog()
    records = yolo.read_yolo(layout, chosen, options.masks, log)
    return ReadData(str(path), "yolo", yolo.yolo_categories(layout, options.id2label, log), records, log)


def _read_voc(path: Path, options: ReadOptions) -> ReadData:
    # folders of single splits are put in place below; until then the path stands for those that cannot be told
    splits = voc_layout.find_voc(path, options.common_root or (path if options.image_root else None))
    if not splits:
        other = voc_layout.other_xml(path)
        raise LayoutError(f"{path} holds no Pascal VOC annotations{f' ({other})' if other else ''};\n{LOOKED_FOR}.")
    chosen = choose_splits([split.name for split in splits], options.splits, str(path))
    roots = options.roots(chosen)
    for split in splits:
        split.image_root = roots.get(split.name, split.image_root)
    if roots and not set(chosen.values()) <= set(roots):
        raise LayoutError(
            f"image_root= is given for {', '.join(roots)} only; give it for each of {', '.join(chosen)}."
        )
    read = voc.read_voc(splits)
    categories = voc.voc_categories(list(read.values()))
    if options.id2label:
        categories = named(options.id2label, read)
    records = {new_name: read[split] for new_name, split in chosen.items()}
    return ReadData(str(path), "voc", categories, records, FindingLog())


def named(id2label: dict[Any, str], records: dict[str, SplitRecords]) -> Categories:
    """Returns the classes that the user names; of data whose ids are texts, names by number are the ids themselves."""
    texts = [isinstance(value, str) for split in records.values() for value in split.category_ids]
    if texts and all(texts) and all(isinstance(key, int) for key in id2label):
        return Categories(list(id2label.values()), list(id2label.values()))
    return Categories.of(id2label)


def _read_hf(source: str, splits: dict[str, Any], options: ReadOptions) -> ReadData:
    options.refuse_useless("hf", source)
    chosen = {new: splits[name] for new, name in choose_splits(list(splits), options.splits, source).items()}
    categories = hf_objects.hf_categories(chosen, options.id2label, source, options.task)
    records = {
        name: hf_objects.read_hf(name, split, options.masks, options.task)
        for name, split in chosen.items()
        if not isinstance(split, hf_objects.IterableDataset)
    }
    if options.id2label:
        categories = named(options.id2label, records)
    log = hf_objects.settle_things(categories, chosen, records, options, source)
    box_format = options.box_format or "xywh"
    return ReadData(source, "hf", categories, records, log, box_format, options.box_format is not None, chosen)


def judge(read: ReadData) -> dict[str, JudgedSplit]:
    """Returns the splits after every check that needs no decoded picture; the findings go to `read.log`."""
    judged = {}
    for name, records in read.records.items():
        records.name = name  # another one than in the source, where the user gave it
        _fill_sizes(records)
        check_files(records)
        boxes, kept = check_boxes(records, read.box_format, read.explicit_box_format)
        indices = check_categories(records, read.categories, kept)
        check_ids(records, kept)
        if records.panoptic_paths is None:
            check_masks(records, kept, read.options.task == "instance", read.options.allow_missing_masks)
        else:
            check_segments(records, read.categories, indices, kept)
        read.log.extend(records.log)
        images = np.ones(len(records.image_ids), dtype=bool)
        images[list(records.unusable)] = False
        judged[name] = JudgedSplit(records, boxes, indices, kept, images)
    _compare_names(read, judged)
    return judged


def _compare_names(read: ReadData, judged: dict[str, JudgedSplit]) -> None:
    """Logs classes whose names are one and the same but for case, blanks or Unicode form."""
    alike: dict[str, list[int]] = {}
    for index, name in enumerate(read.categories.names):
        alike.setdefault(" ".join(name_key(name).casefold().split()), []).append(index)
    for indices in (indices for indices in alike.values() if len(indices) > 1):
        counts = [sum(int((split.indices == index).sum()) for split in judged.values()) for index in indices]
        shown = ", ".join(f"{read.categories.names[i]!r} ({n} objects)" for i, n in zip(indices, counts, strict=True))
        message = (
            f"the classes {shown} differ only in case, blanks or Unicode form: they are trained as different ones"
        )
        read.log.add("class-names-alike", "warning", message)


def _fill_sizes(records: SplitRecords) -> None:
    """Reads the sizes that the annotations do not tell from the pictures' headers."""
    for row, path in enumerate(records.paths):
        if path is not None and not records.widths[row]:
            try:
                records.widths[row], records.heights[row] = read_header(path, records.file_names[row]).upright_wh
            except PictureError as error:
                if "no file" not in str(error):  # `check_files` tells of those
                    records.fault("image-unreadable", str(error), row)
