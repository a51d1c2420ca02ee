"""`datasets` as a source: a table in memory or on disk, and streams of the Hub or of local files.

A table is cut into pieces by rows, a stream by the files that it is made of (`num_shards`).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .archives import picture_of_row
from .base import Picture, Piece, Source, SourceOptions

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


def load_dataset_source(name: str, options: SourceOptions) -> Source:
    """A data set by its Hub id or folder: streamed, or opened in place where `save_to_disk` wrote it.

    Raises:
        ValueError: it has several splits and none is chosen, or not the chosen one.
    """
    _require_datasets()
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
        loaded = datasets.load_dataset(name, options.config, streaming=True, **chosen)
    return from_dataset(loaded, options, name)


def from_dataset(dataset: Any, options: SourceOptions, name: str | None = None) -> Source:
    """A `Dataset`, an `IterableDataset`, or a dict of them that has one split.

    Raises:
        ValueError: it has several splits, or no column of images.
        TypeError: it is none of these.
    """
    _require_datasets()
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
    column = _image_column(dataset, options.image_column, title)
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


def _image_column(dataset: Any, wanted: str | None, title: str) -> str:
    from datasets import Image

    names = dataset.column_names or list(next(iter(dataset), {}))
    if wanted is None:
        images = [name for name, feature in (dataset.features or {}).items() if isinstance(feature, Image)]
        wanted = "image" if "image" in names else images[0] if len(images) == 1 else None
    if wanted not in names:
        problem = f"has no column {wanted!r}" if wanted else "does not tell which column holds the pictures"
        raise ValueError(f"{title} {problem}: it has {', '.join(names)}. Name one with image_column (--image-column).")
    return wanted


def _undecoded(dataset: Any, column: str) -> Any:
    """The picture and its id alone, as bytes or path: threads decode later, and a broken picture stops nothing."""
    from datasets import Image

    names = dataset.column_names
    if names:
        dataset = dataset.select_columns([column, *(["image_id"] if "image_id" in names else [])])
    if isinstance((dataset.features or {}).get(column), Image) or not names:
        dataset = dataset.cast_column(column, Image(decode=False))
    return dataset


def _require_datasets() -> None:
    try:
        import datasets  # noqa: F401
    except ImportError as error:
        raise ImportError("Data sets need the package datasets: pip install 'detr-hf[predict]'.") from error
