"""What `check` learns from the pictures themselves: sizes, EXIF orientation, pictures that occur twice, segment PNGs.

Every picture is opened and decoded (JPEGs at an eighth of their size, which reads the whole file and costs a third),
and hashed: two pictures are the same when their files are. 10,000 pictures of 640x480 take well under a minute on two
cores.
"""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
from datasets import Image as ImageFeature

from ..findings import left_out_for
from ..pictures import Header, SeenPicture, inspect_picture, inspect_segments
from ..readers.recognising import ReadData
from ..readers.records import JudgedSplit

PICTURES_IN_FLIGHT = 256


def check_pictures(read: ReadData, judged: dict[str, JudgedSplit], workers: int | None = None) -> None:
    """Opens every picture: sizes, EXIF orientation, and pictures that occur more than once."""
    seen: dict[bytes, tuple[str, str]] = {}
    for name, split in judged.items():
        for row, picture in inspect_all(picture_sources(split, read), workers):
            if picture.error is not None:
                _add(read, split, row, "image-unreadable", "error", f"the picture {picture.error}")
                continue
            _check_frame(read, split, row, picture.header)
            first = seen.setdefault(picture.digest, (name, split.records.file_names[row]))
            if first[0] != name:
                message = f"the same picture is {first[1]} in split {first[0]!r}: a score measured on it means nothing"
                _add(read, split, row, "image-in-two-splits", "warning", message)
            elif first[1] != split.records.file_names[row]:
                _add(read, split, row, "image-duplicate", "warning", f"the same picture is {first[1]} in this split")
        if split.records.panoptic_paths is not None:
            check_panoptic(read, split, workers)


def _check_frame(read: ReadData, split: JudgedSplit, row: int, header: Header) -> None:
    """Compares the picture's size and orientation with what is recorded."""
    recorded = (split.records.widths[row], split.records.heights[row])
    stored, upright = (header.width, header.height), header.upright_wh
    if not header.has_size(recorded):
        message = (
            f"the picture is {upright[0]}x{upright[1]} (width x height), its annotations are for "
            f"{recorded[0]}x{recorded[1]}"
        )
        _add(read, split, row, "image-size-mismatch", "error", message)
    elif header.orientation != 1:
        turned = f"EXIF orientation {header.orientation}"
        if read.format == "yolo" or stored == upright:
            message = (
                f"{turned}: whether the boxes were drawn on the turned picture cannot be told; it is taken as turned"
            )
            _add(read, split, row, "exif-ambiguous", "warning", message)
        elif recorded == stored:
            message = (
                f"{turned}: the annotations are for the picture as stored, which viewers turn; it is not turned here"
            )
            _add(read, split, row, "exif-ignored", "warning", message)
        else:
            message = f"{turned}: the annotations are for the turned picture; it is turned when read"
            _add(read, split, row, "exif-turned", "info", message)


def check_panoptic(read: ReadData, split: JudgedSplit, workers: int | None) -> None:
    """Compares each segment PNG with its picture's size and its listed segments."""
    listed: list[set[Any]] = [set() for _ in split.records.image_ids]
    for row, segment in zip(split.records.rows, split.records.object_ids, strict=True):
        listed[row].add(segment)
    rows = np.flatnonzero(split.images).tolist()
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        inspected = pool.map(inspect_segments, [split.records.panoptic_paths[row] for row in rows])
        for row, seen in zip(rows, inspected, strict=True):
            recorded = (split.records.widths[row], split.records.heights[row])
            if isinstance(seen, str):
                _add(read, split, row, "panoptic-unreadable", "error", seen)
            elif seen[0] != recorded:
                message = (
                    f"the segment picture is {seen[0][0]}x{seen[0][1]}, the picture {recorded[0]}x{recorded[1]} "
                    "(width x height)"
                )
                _add(read, split, row, "panoptic-size-mismatch", "error", message)
            else:
                for segment in sorted(listed[row] - seen[1], key=str):
                    message = "the segment has no pixel in the PNG and is left out"
                    _add(read, split, row, "segment-absent", "warning", message, segment)
                for segment in sorted(seen[1] - listed[row]):
                    message = "the PNG holds a segment that segments_info does not list"
                    _add(read, split, row, "segment-unlisted", "warning", message, segment)


def inspect_all(sources: Iterable[tuple[int, Any]], workers: int | None) -> Iterator[tuple[int, SeenPicture]]:
    """Yields rows and what their pictures show; threads (decoding leaves the GIL free) run a few hundred ahead."""
    sources = iter(sources)
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        while chunk := list(islice(sources, PICTURES_IN_FLIGHT)):
            pictures = pool.map(inspect_picture, [source for _, source in chunk])
            yield from zip([row for row, _ in chunk], pictures, strict=True)


def picture_sources(split: JudgedSplit, read: ReadData) -> Iterator[tuple[int, Any]]:
    """Yields row and path (or bytes) of each picture that there is."""
    rows = np.flatnonzero(split.images).tolist()
    table = read.hf_splits.get(split.records.name)
    if table is None:
        yield from ((row, split.records.paths[row]) for row in rows)
        return
    undecoded = table.select_columns("image").cast_column("image", ImageFeature(decode=False))
    for row in rows:
        image = undecoded[row]["image"]  # a row without one is not in `split.images`
        yield row, image["path"] if image.get("bytes") is None else image["bytes"]


def _add(
    read: ReadData, split: JudgedSplit, row: int, code: str, severity: str, message: str, object_id: Any = None
) -> None:
    """Logs a finding; a picture that cannot be used leaves `split.images`."""
    read.log.add(code, severity, message, **split.records.place(row, object_id))
    if left_out_for(code) == "picture":
        split.images[row] = False
