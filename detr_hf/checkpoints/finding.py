"""Finds the files of a checkpoint: in a folder, in the cache, or on the Hub. Nothing here imports torch, so that a
name of nothing is refused at once.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import HubError, did_you_mean
from ..processing.image_opening_detr import PICTURE_SUFFIXES
from ..reaching import unreached, why_unreached
from .embedded import EMBEDDED_MODEL, shipped
from .hub_errors import explain

FILE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")
EXPORTED = (".onnx", ".xml", ".pt2", ".pte")
NAMED_FILES = (*FILE_SUFFIXES, *EXPORTED, ".json")  # none is the end of an id of the Hub
LARGEST_JSON = 100_000_000  # bytes of a configuration or an index
KNOWN = (EMBEDDED_MODEL, *(f"facebook/detr-resnet-{ending}" for ending in ("50", "101", "50-panoptic")))


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
        FileNotFoundError: for a path of nothing, and for an empty name.
    """
    text = str(name_or_path)
    if not text.strip():
        raise FileNotFoundError("The name of a model is empty, as that of an unset variable is: name one.")
    path = Path(shipped(text)).expanduser()
    if path.exists():
        return path
    if text.startswith(("http://", "https://")):
        raise FileNotFoundError(f"{text} is a web address: download the file, and give its path.")
    looks_like_path = (
        text.startswith((".", "~", "/")) or text.count("/") > 1 or "\\" in text or text.endswith(NAMED_FILES)
    )
    if looks_like_path:
        what = "file" if text.endswith(NAMED_FILES) else "folder or file"
        parent = path.parent
        seen = "" if parent.is_dir() else f"; {str(parent)!r} does not exist either"
        raise FileNotFoundError(f"There is no such {what}: {text!r}{seen}. Check the path.{nearest(path)}")
    return None


def where_reached(name_or_path: str | Path, hub: Hub) -> Hub:
    """Returns how to look for a checkpoint that is not of this disk: in the cache alone if the Hub is not reached."""
    alone = hub.local_files_only or (local_path(name_or_path) is None and why_unreached() is not None)
    return replace(hub, local_files_only=alone)


def located(files: tuple[str, ...], name_or_path: Any, arguments: dict[str, Any]) -> Any:
    """Returns what transformers shall load one of these files from: what is here, also by the shipped one's name, or
    the Hub id.

    Where the Hub is not reached `arguments` of `from_pretrained` get local_files_only: transformers would ask on.

    Raises:
        OSError: it is neither here nor in the cache, and the Hub is not reached.
    """
    path = local_path(name_or_path)
    hub = Hub(**{name: arguments[name] for name in Hub.__dataclass_fields__ if arguments.get(name) is not None})
    if path is None and where_reached(name_or_path, hub).local_files_only:
        if not any(_is_cached(name_or_path, hub, name) for name in files):
            find_file(name_or_path, files[0], hub)
        arguments["local_files_only"] = True
    return path or name_or_path


def find_config(name_or_path: str | Path, hub: Hub) -> Path:
    """Returns the path of the config.json of a folder or a Hub repository.

    Raises:
        OSError: as `find_file`.
        ValueError: it has none.
    """
    path = find_file(name_or_path, "config.json", hub)
    if path is None:
        where = f"{name_or_path}/{hub.subfolder}" if hub.subfolder else str(name_or_path)
        inside = sorted(config.parent for config in Path(where).glob("*/config.json"))
        raise ValueError(
            f"{where} has no config.json. Give the folder that save_pretrained wrote, or the weight file itself if it "
            f"is an original checkpoint (.pth).{f' Did you mean {inside[-1]}?' if inside else ''}"
        )
    return path


def refuse_no_checkpoint(name_or_path: str | Path, hub: Hub | None = None) -> None:
    """Raises an error where a name is no checkpoint at all: before seconds of imports, and before data are read.

    Raises:
        OSError: it is nowhere.
        ValueError: it is a picture, or a folder without a configuration.
    """
    hub, path = hub or Hub(), local_path(name_or_path)
    if path is None or path.is_dir():
        if not (path and (path / hub.subfolder / "adapter_config.json").is_file()):
            find_config(name_or_path, hub)
    elif path.suffix.lower() in PICTURE_SUFFIXES:
        raise ValueError(f"{path} is a picture, where the name of a model is expected.")


def nearest(name_or_path: str | Path) -> str:
    """Returns the question whether a checkpoint beside it, or one that is known, was meant, or ""."""
    if str(name_or_path) in KNOWN:
        return ""
    if Path(name_or_path).name == EMBEDDED_MODEL:  # a path that a clone has and an installation has not
        return f" Did you mean {EMBEDDED_MODEL}?"
    folders = [str(config.parent) for config in Path(name_or_path).parent.glob("*/config.json")]
    return did_you_mean(name_or_path, (*folders, *KNOWN))


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

    reason = None
    try:
        if hub.local_files_only or hub.force_download or not _is_cached(name_or_path, hub, filename):
            reason = why_unreached(hub.local_files_only)
        found = hf_hub_download(
            str(name_or_path),
            filename,
            subfolder=hub.subfolder or None,
            revision=hub.revision,
            token=hub.token,
            cache_dir=hub.cache_dir,
            force_download=hub.force_download,
            local_files_only=reason is not None,
        )
    except hub_errors.LocalEntryNotFoundError as error:
        if _is_cached(name_or_path, hub):
            return None  # offline, but the repository is here: it has no such file, or it was never asked for
        said = unreached(name_or_path, reason or f"the connection broke ({error})", hub.cache_dir)
        raise HubError(said + nearest(name_or_path)) from None
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
            "the spelling; for a private repository log in with `hf auth login` or set HF_TOKEN."
            + nearest(name_or_path)
        ) from error
    except hub_errors.HFValidationError as error:
        raise FileNotFoundError(
            f"{str(name_or_path)!r} is no folder or file here, and cannot be the id of a Hub repository ('name' or "
            f"'owner/name').{nearest(name_or_path)}"
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
        if size > LARGEST_JSON:
            raise ValueError(f"it has {size} bytes, more than the {LARGEST_JSON} that are read")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} should hold a JSON object, but holds a {type(content).__name__}.")
    return content


def _is_cached(name_or_path: str | Path, hub: Hub, filename: str = "config.json") -> bool:
    from huggingface_hub import try_to_load_from_cache

    filename = f"{hub.subfolder}/{filename}" if hub.subfolder else filename
    found = try_to_load_from_cache(str(name_or_path), filename, cache_dir=hub.cache_dir, revision=hub.revision)
    return isinstance(found, str)
