"""Finds the files of a checkpoint (folder or Hub) and reads tensors out of them without running any code that they
contain.

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
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..errors import HubError
from .hub_errors import explain

logger = logging.getLogger(__name__)

PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
FILE_SUFFIXES = (*PICKLE_SUFFIXES, ".safetensors")
LARGEST_HEADER = 100_000_000  # bytes of JSON that safetensors reads, and we of a configuration or an index
_WHOLE_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Hub:
    """Where on the Hub, and how, files are looked for: the arguments of `huggingface_hub.hf_hub_download`."""

    subfolder: str = ""
    revision: str | None = None
    token: str | bool | None = None
    cache_dir: str | Path | None = None
    force_download: bool = False
    local_files_only: bool = False


def local_path(name_or_path: str | Path) -> Path | None:
    """Returns the existing file or folder that is meant, or None for what can only be a Hub id.

    Raises:
        FileNotFoundError: for a path of nothing.
    """
    text = str(name_or_path)
    path = Path(text).expanduser()
    if path.exists():
        return path
    if text.startswith(("http://", "https://")):
        raise FileNotFoundError(f"{text} is a web address: download the file, and give its path.")
    looks_like_path = (
        text.startswith((".", "~", "/")) or text.count("/") > 1 or "\\" in text or text.endswith(FILE_SUFFIXES)
    )
    if looks_like_path or not text:
        what = "file" if text.endswith(FILE_SUFFIXES) else "folder or file"
        parent = path.parent
        seen = "" if parent.is_dir() else f"; {str(parent)!r} does not exist either"
        raise FileNotFoundError(f"There is no such {what}: {text!r}{seen}. Check the path.")
    return None


def find_file(name_or_path: str | Path, filename: str, hub: Hub) -> Path | None:
    """Returns the path of one file of a checkpoint, downloaded from the Hub if need be, or None where it has no such
    file.

    Raises:
        OSError: no such folder, repository or revision, no access, or the Hub cannot be reached.
    """
    folder = local_path(name_or_path)
    if folder is not None:
        path = folder / hub.subfolder / filename
        return path if path.is_file() else None

    from huggingface_hub import errors as hub_errors, hf_hub_download

    try:
        found = hf_hub_download(
            str(name_or_path),
            filename,
            subfolder=hub.subfolder or None,
            revision=hub.revision,
            token=hub.token,
            cache_dir=hub.cache_dir,
            force_download=hub.force_download,
            local_files_only=hub.local_files_only,
        )
    except hub_errors.LocalEntryNotFoundError as error:
        if _is_cached(name_or_path, hub):
            return None  # offline, but the repository is here: it has no such file, or it was never asked for
        raise OSError(
            f"{str(name_or_path)!r} is no folder or file here, is not in the Hugging Face cache, and the Hub was not "
            "reached (offline, or local_files_only). Check the path, or connect once so that the checkpoint is "
            "cached."
        ) from error
    except hub_errors.EntryNotFoundError:
        return None
    except hub_errors.GatedRepoError as error:
        raise OSError(
            f"{name_or_path} is gated on the Hub: accept its terms there, and log in with `hf auth login`."
        ) from error
    except hub_errors.RevisionNotFoundError as error:
        raise OSError(f"{name_or_path} has no revision {hub.revision!r} on the Hub.") from error
    except hub_errors.RepositoryNotFoundError as error:
        raise OSError(
            f"{str(name_or_path)!r} is no folder or file here, and no repository on the Hub that you may read. Check "
            "the spelling; for a private repository log in with `hf auth login` or give token=."
        ) from error
    except hub_errors.HFValidationError as error:
        raise FileNotFoundError(
            f"{str(name_or_path)!r} is no folder or file here, and cannot be the id of a Hub repository ('name' or "
            "'owner/name')."
        ) from error
    except Exception as error:
        reason = explain(error, str(name_or_path), hub.revision, hub.token)
        if reason is None:
            raise
        raise HubError(f"Could not load {filename} of {name_or_path}: {reason}") from error
    return Path(found)


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Raises:
        ValueError: when it holds no JSON object.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST_HEADER:
            raise ValueError(f"it has {size} bytes, more than the {LARGEST_HEADER} that are read")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} should hold a JSON object, but holds a {type(content).__name__}.")
    return content


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
        "cache must be deleted first, or fetched with force_download=True."
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


def _is_cached(name_or_path: str | Path, hub: Hub) -> bool:
    from huggingface_hub import try_to_load_from_cache

    filename = f"{hub.subfolder}/config.json" if hub.subfolder else "config.json"
    found = try_to_load_from_cache(str(name_or_path), filename, cache_dir=hub.cache_dir, revision=hub.revision)
    return isinstance(found, str)


def _describe(content: Any) -> str:
    if isinstance(content, dict):
        return f"a dict with {', '.join(repr(key) for key in list(content)[:5]) or 'nothing'}"
    return f"a {type(content).__name__}"
