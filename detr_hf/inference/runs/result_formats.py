"""What the results of batch prediction look like: a record a picture, Parquet, and COCO's results.

A record is `{"picture": name, "width", "height", "objects": [{"name", "label", "score", "box"}]}` with xyxy boxes in
pixels of the upright picture, or `{"picture": name, "error": why}`; what the source adds (`image_id`, `frame`,
`seconds`) stands beside the name. Objects with masks have their `segmentation`, COCO run lengths of the picture's
size; panoptic `segments` and the `classes` of a semantic map stand beside the objects, with theirs. COCO's format has
no place for a picture without objects nor for an error, so `coco_images.json` says which pictures were looked at, by
which `image_id`. Scores are rounded to six digits and boxes to a thousandth of a pixel.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from ...errors import install_hint
from ...whole_files import whole_file
from ..results import FIELDS, Detections, coco_results
from ..sources.base import PARQUET_HINT, Picture
from .run_folder import RunFolder, read_records

# What `--format` takes -> the task that it needs, or None.
FORMATS = {"jsonl": None, "parquet": None, "coco": None, "coco-panoptic": "panoptic", "png": "semantic"}
COCO_RESULTS = "coco_results.json"
COCO_IMAGES = "coco_images.json"

ROWS_AT_ONCE = 1000
# The reader names a picture by its place in a list, which says nothing here.
PLACE = re.compile(r"^(In the batch of )?image \d+ ?")


def record_of(picture: Picture, outcome: Detections | Exception) -> dict[str, Any]:
    """Returns the record of one picture."""
    named = {"picture": picture.name, **picture.about}
    if isinstance(outcome, Exception):
        return {**named, "error": _why(outcome, picture.name)}
    return {**named, **outcome.record(rounded=True)}


def _why(error: Exception, name: str) -> str:
    """Returns the error's text without the picture's name, which stands beside it."""
    text = PLACE.sub("", str(error)).removeprefix(f"({name})").lstrip(": ")
    return text or type(error).__name__


def suffix_of(format: str, task: str | None = None) -> str:
    """Returns how a part's file name ends.

    Raises:
        ValueError: there is no such format, or not for this task, if one is named.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}.")
    if task is not None and FORMATS[format] not in (None, task):
        raise ValueError(
            f"The format {format} is of {FORMATS[format]} maps, and the task is {task}: name the task "
            f"{FORMATS[format]}, with a checkpoint that has masks, or another format."
        )
    if format == "parquet":
        _require_pyarrow()
    return ".parquet" if format == "parquet" else ".jsonl"


def write_parquet(records: Iterable[dict[str, Any]], path: Path, task: str = "detection") -> None:
    """Writes records of a task as a table, a thousand at a time."""
    pyarrow = _require_pyarrow()
    from pyarrow.parquet import ParquetWriter

    of_each = {each.one: each.column(pyarrow) for each in FIELDS.values()}
    mask = {"segmentation": of_each.pop("segmentation")}
    an_object = pyarrow.struct(of_each | (mask if task in ("instance", "panoptic") else {}))
    a_class = {"name": of_each["name"], "label": of_each["label"], "area": pyarrow.int64(), **mask}
    a_segment = a_class | {"score": of_each["score"], "was_fused": pyarrow.bool_()}
    maps = {"panoptic": ("segments", a_segment), "semantic": ("classes", a_class)}
    columns = {
        "picture": pyarrow.string(),
        "image_id": pyarrow.string(),  # a data set's own, a number or a text
        "frame": pyarrow.int64(),
        "seconds": pyarrow.float64(),
        "width": pyarrow.int32(),
        "height": pyarrow.int32(),
        "objects": pyarrow.list_(an_object),
        "error": pyarrow.string(),
    }
    if task in maps:
        key, one = maps[task]
        columns[key] = pyarrow.list_(pyarrow.struct(one))
    schema = pyarrow.schema(columns)
    records = iter(records)
    with ParquetWriter(path, schema, compression="zstd") as writer:
        while rows := [_plain_text(record) for record in islice(records, ROWS_AT_ONCE)]:
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))


def _plain_text(record: dict[str, Any]) -> dict[str, Any]:
    """Returns the record with its texts as Unicode (a file name may be none), and `image_id` as text."""
    if "image_id" in record:
        record = {**record, "image_id": str(record["image_id"])}
    return {
        key: value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value
        for key, value in record.items()
    }


def read_part(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the records of a finished part, JSONL or Parquet."""
    if path.suffix != ".parquet":
        yield from read_records(path)
        return
    _require_pyarrow()
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        for batch in file.iter_batches(ROWS_AT_ONCE):
            for row in batch.to_pylist():
                record = _without_gaps(row)
                for key in record.keys() & {"objects", "segments", "classes"}:
                    record[key] = [_without_gaps(found) for found in record[key]]
                yield record


def _without_gaps(row: dict[str, Any]) -> dict[str, Any]:
    """Returns what a row of a table says; a JSONL record leaves out the rest."""
    return {key: value for key, value in row.items() if value is not None}


def write_coco(run: RunFolder) -> None:
    """Writes the results of a complete run in COCO's format, each of the two files whole or not at all.

    A picture's `image_id` is the source's own number, or the number that is its file's name (`000000000139.jpg`);
    where one picture has neither, or two share one, all are numbered from 1.
    """
    ids = coco_ids(run)

    def results() -> Iterator[dict[str, Any]]:
        for place, record in enumerate(all_records(run)):
            yield from coco_results(ids(place, record), record.get("objects", ()), FIELDS["boxes"].digits)

    write_json_lists(run.folder / COCO_IMAGES, coco_images(run, ids))
    write_json_lists(run.folder / COCO_RESULTS, results())


def coco_images(run: RunFolder, ids: Callable[[int, dict[str, Any]], int]) -> Iterator[dict[str, Any]]:
    """Yields COCO's entries of all pictures, with their errors."""
    for place, record in enumerate(all_records(run)):
        known = {key: record[key] for key in ("width", "height", "error") if key in record}
        yield {"id": ids(place, record), "file_name": record["picture"], **known}


def all_records(run: RunFolder) -> Iterator[dict[str, Any]]:
    """Yields the records of all parts, in order."""
    for part in range(run.parts):
        yield from read_part(run.part_path(part))


def coco_ids(run: RunFolder) -> Callable[[int, dict[str, Any]], int]:
    """Returns what gives a picture's `image_id`, of its place in the run and its record."""
    seen: set[int] = set()
    for record in all_records(run):
        number = _own_number(record)
        if number is None or number in seen:
            return lambda place, record: place + 1
        seen.add(number)
    return lambda place, record: _own_number(record)


def _own_number(record: dict[str, Any]) -> int | None:
    text = str(record["image_id"]) if "image_id" in record else Path(record["picture"]).stem
    return int(text) if text.isascii() and text.isdigit() else None


def write_json_lists(path: Path, lists: Iterable[dict[str, Any]] | Mapping[str, Any]) -> None:
    """Writes a list, or an object of several (and of objects) by their names, an entry a line; whole or not at all."""
    with whole_file(path, flushed=True) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        named = lists.items() if isinstance(lists, Mapping) else [(None, lists)]
        for number, (name, entries) in enumerate(named):
            if name is not None:
                file.write(f"{',' if number else '{'}\n{json.dumps(name)}: ")
            if isinstance(entries, dict):
                file.write(json.dumps(entries))
                continue
            before = "[\n"
            for entry in entries:
                file.write(f"{before}{json.dumps(entry)}")
                before = ",\n"
            file.write("[]" if before == "[\n" else "\n]")
        file.write("}\n" if isinstance(lists, Mapping) else "\n")


def _require_pyarrow() -> Any:
    with install_hint(PARQUET_HINT):
        import pyarrow
    return pyarrow
