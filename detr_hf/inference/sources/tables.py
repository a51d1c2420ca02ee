"""Tables with a column of images: those of `datasets`, in memory, on disk or streamed, and Parquet files.

A table in memory is cut into pieces by rows, a stream by the files that it is made of (`num_shards`); a Parquet file
is a piece. Parquet files are read a little at a time, and one that is damaged gives what can be read of it, with an
error for each row that is lost. A stopped stream is an error instead, because it can be tried again.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import HubError, install_hint
from ...reaching import unreached_data_set
from .base import PARQUET_HINT, Picture, Piece, Source, SourceOptions

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset, IterableDataset

DATASETS_HINT = "Data sets need the package datasets: pip install 'detr-hf[predict]'."
# Rows of a Parquet file decoded at a time: a picture may be large.
ROWS = 16


def load_dataset_source(name: str, options: SourceOptions) -> Source:
    """Returns a data set by its Hub id or folder: streamed, or opened in place where `save_to_disk` wrote it.

    Raises:
        ValueError: it has several splits and none is chosen, or not the chosen one.
    """
    with install_hint(DATASETS_HINT):
        import datasets

    folder = Path(name)
    if any((folder / file).is_file() for file in ("state.json", "dataset_dict.json")):
        loaded: Any = datasets.load_from_disk(name)
        if isinstance(loaded, dict) and options.split is not None:
            if options.split not in loaded:
                raise ValueError(f"{name} has no split {options.split!r}, it has {', '.join(loaded)}.")
            loaded = {options.split: loaded[options.split]}
    else:
        chosen = {"split": options.split, "revision": options.revision}
        if not folder.exists() and (unreached := unreached_data_set(name)) is not None:
            raise HubError(unreached)
        loaded = datasets.load_dataset(name, options.config, streaming=True, **chosen)
    return from_dataset(loaded, options, name)


def from_dataset(dataset: Any, options: SourceOptions, name: str | None = None) -> Source:
    """Returns the pieces of a `Dataset`, an `IterableDataset`, or a dict of them that has one split.

    Raises:
        ValueError: it has several splits, or no column of images.
        TypeError: it is none of these.
    """
    with install_hint(DATASETS_HINT):
        from datasets import Dataset, IterableDataset

    if isinstance(dataset, dict):
        if len(dataset) != 1:
            raise ValueError(
                f"{name or 'The data set'} has the splits {', '.join(dataset)}: choose one with split (--split)."
            )
        ((split, dataset),) = dataset.items()
    else:
        split = getattr(dataset, "split", None)
    if not isinstance(dataset, Dataset | IterableDataset):
        raise TypeError(f"Expected a Dataset or an IterableDataset, got {type(dataset).__name__}.")
    title = f"{name or 'dataset'}/{split or 'all'}"
    column = _column_of_dataset(dataset, options.image_column, title)
    dataset = _undecoded(dataset, column)
    identity = {"dataset": title, "config": options.config, "revision": options.revision, "image_column": column}
    if isinstance(dataset, Dataset):
        size = options.piece_of(len(dataset))
        pieces = [_rows(dataset, column, title, at, size) for at in range(0, len(dataset), size)]
        return Source(pieces, {**identity, "rows": len(dataset)})
    pieces = [_stream(dataset, column, title, index) for index in range(dataset.num_shards)]
    return Source(pieces, identity)


def _rows(dataset: "Dataset", column: str, title: str, first: int, shard_size: int) -> Piece:
    last = min(first + shard_size, len(dataset))

    def pictures(start: int) -> Iterator[Picture]:
        for row in range(first + start, last):
            yield picture_of_row(f"{title}#{row}", dataset[row], column)

    return Piece(f"{title}#{first}", last - first, pictures)


def _stream(dataset: "IterableDataset", column: str, title: str, index: int) -> Piece:
    name = f"{title}/{index}"

    def pictures(start: int) -> Iterator[Picture]:
        shard = dataset.shard(num_shards=dataset.num_shards, index=index)
        for row, record in enumerate(shard.skip(start) if start else shard, start):
            yield picture_of_row(f"{name}#{row}", record, column)

    return Piece(name, None, pictures)


def _column_of_dataset(dataset: Any, wanted: str | None, title: str) -> str:
    from datasets import Image

    names = dataset.column_names or list(next(iter(dataset), {}))
    images = [name for name, feature in (dataset.features or {}).items() if isinstance(feature, Image)]
    return _chosen_column(wanted, names, images, title)


def _chosen_column(wanted: str | None, names: list[str], images: list[str], title: str) -> str:
    """Returns the wanted column; else `image`, else the only one of those that may hold images."""
    if wanted is None:
        wanted = "image" if "image" in names else images[0] if len(images) == 1 else None
    if wanted not in names:
        problem = f"has no column {wanted!r}" if wanted else "does not tell which column holds the pictures"
        raise ValueError(f"{title} {problem}: it has {', '.join(names)}. Name one with image_column (--image-column).")
    return wanted


def _undecoded(dataset: Any, column: str) -> Any:
    """Returns rows of picture and id alone, as bytes or path: threads decode later, and a broken one stops nothing."""
    from datasets import Image

    names = dataset.column_names
    if names:
        dataset = dataset.select_columns([column, *(["image_id"] if "image_id" in names else [])])
    if isinstance((dataset.features or {}).get(column), Image) or not names:
        dataset = dataset.cast_column(column, Image(decode=False))
    return dataset


def parquet_piece(path: Path, options: SourceOptions) -> Piece:
    """Returns the rows of a Parquet file. Row groups before the start are not read.

    Raises:
        ValueError: no column holds images, or several do and none is chosen.
    """
    with install_hint(PARQUET_HINT):
        from pyarrow.lib import ArrowException
        from pyarrow.parquet import ParquetFile
    try:
        with ParquetFile(path) as file:
            rows, schema = file.metadata.num_rows, file.schema_arrow
    except (ArrowException, OSError) as error:
        damage = Picture(f"{path}#0", ValueError(f"{path} is not a Parquet file that can be read: {error}"))
        return Piece(str(path), 1, lambda start: iter([damage][start:]))
    column = _column_of_schema(schema, options.image_column, path)
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


def _column_of_schema(schema: "pyarrow.Schema", wanted: str | None, path: Path) -> str:
    import pyarrow

    holds_bytes = [
        field.name
        for field in schema
        if pyarrow.types.is_binary(field.type)
        or pyarrow.types.is_large_binary(field.type)
        or (pyarrow.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0)
    ]
    return _chosen_column(wanted, schema.names, holds_bytes, str(path))


def picture_of_row(name: str, row: dict[str, Any], column: str, folder: Path | None = None) -> Picture:
    """Returns the picture in a row of a table: bytes, a path (from `folder` on, or from here), or as in `datasets`."""
    cell = row.get(column)
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, str) and folder is not None and (folder / cell).exists():
        cell = str(folder / cell)
    image = cell if cell else ValueError(f"column {column!r} holds no picture here")
    image_id = row.get("image_id")
    return Picture(name, image, {"image_id": image_id} if isinstance(image_id, int | str) else {})
