"""Files that hold many pictures: WebDataset's tar files, and Parquet files with a column of images.

Both are read in order and a little at a time. A file that is damaged gives what can be read of it, and then one entry
that says so; a stopped network stream (`dataset_source.py`) is an error instead, because it can be tried again.
"""

import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..pictures import PICTURE_SUFFIXES
from .base import Picture, Piece, SourceOptions

if TYPE_CHECKING:
    import pyarrow

# Rows decoded at a time: a picture may be large.
ROWS = 16


def tar_piece(path: Path, options: SourceOptions) -> Piece:
    """The pictures in a tar file, plain or compressed, in its order.

    With `image_column` only the members with this ending, in WebDataset's sense: all after the first dot of the name.
    """
    return Piece(str(path), None, lambda start: _tar_pictures(path, options.image_column, start))


def _tar_pictures(path: Path, ending: str | None, start: int) -> Iterator[Picture]:
    count = 0
    try:
        with tarfile.open(path) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # or the list of a large file grows without end
                if not member.isfile() or not _is_wanted(member.name, ending):
                    continue
                if count >= start:
                    yield Picture(f"{path}/{member.name}", _content(tar, member))
                count += 1
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        if count >= start:
            yield Picture(f"{path}#{count}", ValueError(f"{path} could be read no further: {error}"))


def _is_wanted(name: str, ending: str | None) -> bool:
    file_name = Path(name).name
    if file_name.startswith("."):
        return False
    if ending is not None:
        return file_name.partition(".")[2].lower() == ending.lower().removeprefix(".")
    return Path(file_name).suffix.lower() in PICTURE_SUFFIXES


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | Exception:
    content = tar.extractfile(member).read()
    return content or ValueError("an empty file (0 bytes)")


def parquet_piece(path: Path, options: SourceOptions) -> Piece:
    """The rows of a Parquet file. Row groups before the start are not read.

    Raises:
        ValueError: no column holds images, or several do and none is chosen.
    """
    try:
        from pyarrow.lib import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ImportError("Parquet files need pyarrow: pip install 'detr-hf[predict]'.") from error
    try:
        with ParquetFile(path) as file:
            rows, schema = file.metadata.num_rows, file.schema_arrow
    except (ArrowException, OSError) as error:
        damage = Picture(f"{path}#0", ValueError(f"{path} is not a Parquet file that can be read: {error}"))
        return Piece(str(path), 1, lambda start: iter([damage][start:]))
    column = _image_column(schema, options.image_column, path)
    columns = [column, *(["image_id"] if "image_id" in schema.names and column != "image_id" else [])]
    return Piece(str(path), rows, lambda start: _parquet_pictures(path, columns, start))


def _parquet_pictures(path: Path, columns: list[str], start: int) -> Iterator[Picture]:
    from pyarrow.lib import ArrowException
    from pyarrow.parquet import ParquetFile

    row = 0
    with ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            end = row + file.metadata.row_group(group).num_rows
            if end <= start:
                row = end
                continue
            try:
                for batch in file.iter_batches(ROWS, row_groups=[group], columns=columns):
                    for record in batch.to_pylist():
                        if row >= start:
                            yield picture_of_row(f"{path}#{row}", record, columns[0], path.parent)
                        row += 1
            except (ArrowException, OSError) as error:
                for lost in range(max(row, start), end):
                    yield Picture(f"{path}#{lost}", ValueError(f"row {lost} of {path} cannot be read: {error}"))
            row = end


def _image_column(schema: "pyarrow.Schema", wanted: str | None, path: Path) -> str:
    import pyarrow

    names = schema.names
    if wanted is None:
        holds_bytes = [
            field.name
            for field in schema
            if pyarrow.types.is_binary(field.type)
            or pyarrow.types.is_large_binary(field.type)
            or (pyarrow.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0)
        ]
        wanted = "image" if "image" in names else holds_bytes[0] if len(holds_bytes) == 1 else None
    if wanted not in names:
        problem = f"has no column {wanted!r}" if wanted else "does not tell which column holds the pictures"
        raise ValueError(f"{path} {problem}: it has {', '.join(names)}. Name one with image_column (--image-column).")
    return wanted


def picture_of_row(name: str, row: dict[str, Any], column: str, folder: Path | None = None) -> Picture:
    """The picture in a row of a table: bytes, a path (from `folder` on, or from here), or both as in `datasets`."""
    cell = row.get(column)
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, str) and folder is not None and (folder / cell).exists():
        cell = str(folder / cell)
    image = cell if cell else ValueError(f"column {column!r} holds no picture here")
    image_id = row.get("image_id")
    return Picture(name, image, {"image_id": image_id} if isinstance(image_id, int | str) else {})
