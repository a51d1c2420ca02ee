"""What `check` learns from the pictures themselves: sizes, EXIF orientation, pictures that occur twice.

Segment pictures and other masks are `mask_checks`' part.

Every picture is opened and decoded (JPEGs at an eighth of their size, which reads the whole file and costs a third),
and hashed: two pictures are the same when their files are. 10,000 pictures of 640x480 take well under a minute on two
cores.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
from datasets import Image as ImageFeature

from ..findings import left_out_for
from ..pictures import Header, inspect_picture
from ..readers.recognising import ReadData
from ..readers.records import JudgedSplit

PICTURES_IN_FLIGHT = 256


def check_pictures(read: ReadData, judged: dict[str, JudgedSplit], workers: int | None = None) -> None:
    """Opens every picture: sizes, EXIF orientation, and pictures that occur more than once."""
    seen: dict[bytes, tuple[str, str]] = {}
    for name, split in judged.items():
        for row, picture in inspect_all(inspect_picture, picture_sources(split, read), workers):
            if picture.error is not None:
                add(read, split, row, "image-unreadable", "error", f"the picture {picture.error}")
                continue
            _check_frame(read, split, row, picture.header)
            first = seen.setdefault(picture.digest, (name, split.records.file_names[row]))
            same_file = first[1] == split.records.file_names[row]
            if first[0] != name and same_file and "splits-overlap" in read.log.counts:
                continue
            if first[0] != name:
                message = f"the same picture is {first[1]} in split {first[0]!r}: a score measured on it means nothing"
                add(read, split, row, "image-in-two-splits", "warning", message)
            elif not same_file:
                add(read, split, row, "image-duplicate", "warning", f"the same picture is {first[1]} in this split")


def _check_frame(read: ReadData, split: JudgedSplit, row: int, header: Header) -> None:
    """Compares the picture's size and orientation with what is recorded."""
    recorded = (split.records.widths[row], split.records.heights[row])
    stored, upright = (header.width, header.height), header.upright_wh
    if not header.has_size(recorded):
        message = (
            f"the picture is {upright[0]}x{upright[1]} (width x height), its annotations are for "
            f"{recorded[0]}x{recorded[1]}"
        )
        add(read, split, row, "image-size-mismatch", "error", message)
    elif header.orientation != 1:
        turned = f"EXIF orientation {header.orientation}"
        if read.format == "yolo" or stored == upright:
            message = (
                f"{turned}: whether the boxes were drawn on the turned picture cannot be told; it is taken as turned"
            )
            add(read, split, row, "exif-ambiguous", "warning", message)
        elif recorded == stored:
            message = (
                f"{turned}: the annotations are for the picture as stored, which viewers turn; it is not turned here"
            )
            add(read, split, row, "exif-ignored", "warning", message)
        else:
            message = f"{turned}: the annotations are for the turned picture; it is turned when read"
            add(read, split, row, "exif-turned", "info", message)


def inspect_all(
    inspect: Callable[[Any], Any], sources: Iterable[tuple[int, Any]], workers: int | None
) -> Iterator[tuple[int, Any]]:
    """Yields rows and what `inspect` says of their pictures.

    Threads (decoding leaves the GIL free) run a few hundred ahead.
    """
    sources = iter(sources)
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        while chunk := list(islice(sources, PICTURES_IN_FLIGHT)):
            pictures = pool.map(inspect, [source for _, source in chunk])
            yield from zip([row for row, _ in chunk], pictures, strict=True)


def picture_sources(split: JudgedSplit, read: ReadData, segments: bool = False) -> Iterator[tuple[int, Any]]:
    """Yields row and path (or bytes) of each picture that there is, or of its segment picture."""
    records = split.records
    rows = np.flatnonzero(split.images).tolist()
    table = read.hf_splits.get(records.name)
    if table is None:
        paths = records.panoptic_paths if segments else records.paths
        yield from ((row, paths[row]) for row in rows)
        return
    column = records.panoptic_column if segments else "image"
    undecoded = table.select_columns(column).cast_column(column, ImageFeature(decode=False))
    for row in rows:
        image = undecoded[row][column]  # a row without one is not in `split.images`
        yield row, image["path"] if image.get("bytes") is None else image["bytes"]


def add(
    read: ReadData, split: JudgedSplit, row: int, code: str, severity: str, message: str, object_id: Any = None
) -> None:
    """Logs a finding; a picture that cannot be used leaves `split.images`."""
    read.log.add(code, severity, message, **split.records.place(row, object_id))
    if left_out_for(code) == "picture":
        split.images[row] = False
