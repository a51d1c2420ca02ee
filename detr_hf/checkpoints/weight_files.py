"""Reads tensors out of the weight files of a checkpoint without running any code that they contain.

What differs on purpose from transformers' own loading: a damaged file is named together with its size and the size
that it should have, shards may not lie outside the checkpoint's folder, and a pickle that asks for more than tensors
is refused with a sentence.
"""

import argparse
import json
import logging
import pickle
import re
import struct
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from .finding import Hub, find_file, read_json

logger = logging.getLogger(__name__)

LARGEST_HEADER = 100_000_000  # bytes of JSON that safetensors reads
_WHOLE_FILES = ("model.safetensors", "pytorch_model.bin")


def find_weights(
    name_or_path: str | Path, hub: Hub, variant: str | None = None, use_safetensors: bool | None = None
) -> list[Path]:
    """Returns the weight files of a checkpoint: one, or all of its shards. safetensors come before pickles.

    `variant` ("fp16": model.fp16.safetensors) and `use_safetensors` (those alone, or no such) are transformers'.

    Raises:
        FileNotFoundError: when it has none, or lacks a shard.
        ValueError: when its index names a file outside its folder.
    """
    wanted = [name for name in _WHOLE_FILES if use_safetensors in (None, name.endswith(".safetensors"))]
    inserted = f".{variant}" if variant else ""
    for stem, ending in (name.rsplit(".", 1) for name in wanted):
        path = find_file(name_or_path, f"{stem}{inserted}.{ending}", hub)
        if path is not None:
            return [path]
        index = find_file(name_or_path, f"{stem}.{ending}.index{inserted}.json", hub)
        if index is not None:
            return _find_shards(name_or_path, index, hub)
    names = " or ".join(name.replace(".", f"{inserted}.") for name in wanted)
    raise FileNotFoundError(
        f"{name_or_path} has a config.json but no weights: expected {names}, or their .index.json with shards."
    )


def _find_shards(name_or_path: str | Path, index: Path, hub: Hub) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise ValueError(f"{index} has no weight_map from tensor names to file names.")
    paths = []
    for shard in sorted(set(weight_map.values())):
        windows = PureWindowsPath(shard)
        if PurePosixPath(shard).is_absolute() or windows.drive or windows.root or ".." in windows.parts:
            raise ValueError(
                f"{index} names the weight file {shard!r}, outside the checkpoint's own folder. That is refused: do "
                "not trust this checkpoint, or move the shards beside the index and correct it."
            )
        path = find_file(name_or_path, shard, hub)
        if path is None:
            raise FileNotFoundError(f"{index} names the shard {shard!r}, which is missing. Copy or download it again.")
        paths.append(path)
    return paths


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors by name in a safetensors file, or in a pickle that holds nothing else, on the CPU.

    Raises:
        ValueError: for a damaged file, or one that is no plain mapping from names to tensors.
    """
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    content = read_pickle(path)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path} should map names to tensors, but holds {_describe(content)}.")
    return content


def read_pickle(path: Path) -> Any:
    """Returns what `torch.save` wrote: tensors, plain containers and an `argparse.Namespace`. Nothing else is ever
    executed.

    Raises:
        ValueError: for a file that asks for other objects, or is damaged.
    """
    size = path.stat().st_size
    if size == 0:
        raise ValueError(f"{path} is empty (0 bytes). Download or copy it again.")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        asks = f"asks for {wanted[1]}" if wanted else "is no file of torch.save, or asks for what is no tensor"
        raise ValueError(
            f"{path} ({size} bytes) was refused: it {asks}. Only tensors, plain containers and argparse.Namespace are "
            "read, because anything else could run code. If you trust its origin, load it yourself and save the "
            "state dict alone."
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} ({size} bytes) could not be read as a file of torch.save: {str(error).splitlines()[0]}. It is "
            "probably cut short: download or copy it again."
        ) from error


def check_safetensors(path: Path) -> None:
    """Compares a file with what its header promises, without reading the tensors.

    Raises:
        ValueError: naming the file, its size and the size that it should have.
    """
    size = path.stat().st_size
    promised = _promised_size(path, size)
    if promised != str(size):
        raise ValueError(_damaged(path, size, promised))
    try:
        with safe_open(path, framework="pt"):  # which looks whether the header fits together
            pass
    except SafetensorError as error:
        raise ValueError(f"{_damaged(path, size, promised)} ({error})") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    check_safetensors(path)
    try:
        return load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        size = path.stat().st_size
        raise ValueError(f"{_damaged(path, size, _promised_size(path, size))} ({error})") from error


def _damaged(path: Path, size: int, promised: str | None) -> str:
    promise = f"its header promises {promised}" if promised else "its header cannot be read"
    return (
        f"{path} is damaged: it has {size} bytes, and {promise}. Download or copy it again; one in the Hugging Face "
        "cache must be deleted first (`hf cache rm`; in Python force_download=True fetches it anew)."
    )


def _promised_size(path: Path, size: int) -> str | None:
    """Returns in words how many bytes a safetensors header announces, or None where the header makes no sense."""
    if size < 8:
        return None
    with path.open("rb") as file:
        (header_length,) = struct.unpack("<Q", file.read(8))
        if header_length > size - 8:
            return f"a header of {header_length} bytes alone"
        if header_length > LARGEST_HEADER:
            return None
        try:
            entries = json.loads(file.read(header_length))
            ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
            return f"{8 + header_length + max(ends, default=0)}"
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            return None


def _describe(content: Any) -> str:
    if isinstance(content, dict):
        return f"a dict with {', '.join(repr(key) for key in list(content)[:5]) or 'nothing'}"
    return f"a {type(content).__name__}"
