"""The digests that travel with a checkpoint, and whether its files still have them.

`SHA256SUMS` lists the SHA-256 of every file that was pushed, in the format of the command `sha256sum`, which can check
it without this package. It finds damage: a flipped bit, a cut or mixed-up file. It is no signature: who can replace a
weight file in a repository can replace the manifest too. The card (README.md) is not listed, so that its owner may
edit it on the Hub.
"""

import hashlib
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ..checkpoints.finding import Hub, find_file, local_path
from ..checkpoints.hub_errors import explained
from ..checkpoints.weight_files import find_weights
from ..errors import IntegrityError
from ..whole_files import whole_file

MANIFEST = "SHA256SUMS"
UNLISTED = ("README.md", ".gitattributes", MANIFEST)

_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Verified:
    """What was found to be whole: the files by name with their SHA-256, and the commit that they are of (Hub only)."""

    files: dict[str, str]
    commit: str | None = None


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file as hexadecimal text."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: str | Path) -> Path:
    """Writes `SHA256SUMS` into a folder, for every file in and below it but the card, and returns its path."""
    folder = Path(folder)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    listed = [name for name in names if name not in UNLISTED]
    manifest = folder / MANIFEST
    with whole_file(manifest) as unfinished:
        unfinished.write_text("".join(f"{sha256(folder / name)}  {name}\n" for name in listed), encoding="utf-8")
    return manifest


def verify(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    subfolder: str = "",
) -> Verified:
    """Compares every file that a checkpoint's manifest lists with its SHA-256.

    Args:
        name_or_path: a folder or Hub id. What the manifest of a Hub repository lists is downloaded, all of one commit.
        revision, token, cache_dir, force_download, local_files_only, subfolder: as in transformers.

    Raises:
        IntegrityError: naming each file that differs or is missing; or there is no manifest, or it does not list the
            weights.
        OSError: there is no such checkpoint, or the Hub is not reached.
    """
    hub = Hub(subfolder, revision, token, cache_dir, force_download, local_files_only)
    with explained("verify", str(name_or_path), revision=revision, token=token):
        manifest = find_file(name_or_path, MANIFEST, hub)
        if manifest is None:
            raise IntegrityError(
                f"{name_or_path} has no {MANIFEST}, so its files cannot be verified. `push_to_hub` of detr_hf writes "
                "one; in a folder that you trust, `detr-hf verify --write FOLDER` does."
            )
        commit = None
        if local_path(name_or_path) is None:
            commit = next(part for part in reversed(manifest.parts) if _COMMIT.fullmatch(part))
            hub = replace(hub, revision=commit)
        listed = read_manifest(manifest)
        faults = [fault for name, digest in listed.items() if (fault := _fault(name_or_path, name, digest, hub))]
        with suppress(FileNotFoundError):  # no weights at all
            weights = {path.name for path in find_weights(name_or_path, hub)}
            faults += [f"{name} is not listed, though it would be loaded" for name in sorted(weights - set(listed))]
    if faults:
        raise IntegrityError(
            f"{name_or_path} is not what was pushed: {'; '.join(faults)}. Copy or download it again (from the Hub "
            "with force_download=True), and do not use it until then."
        )
    return Verified(listed, commit)


def read_manifest(path: Path) -> dict[str, str]:
    """Returns the SHA-256 by file name that a manifest lists.

    Raises:
        IntegrityError: it is damaged, or names a file outside its folder.
    """
    listed: dict[str, str] = {}
    for number, line in enumerate(path.read_bytes().decode("utf-8", errors="replace").splitlines(), start=1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise IntegrityError(f"Line {number} of {path} is not '<SHA-256>  <file>': {line[:80]!r}. It is damaged.")
        windows = PureWindowsPath(match[2])
        if PurePosixPath(match[2]).is_absolute() or windows.drive or windows.root or ".." in windows.parts:
            raise IntegrityError(f"{path} lists {match[2]!r}, outside its own folder. Do not trust this checkpoint.")
        listed[match[2]] = match[1]
    return listed


def verified_arguments(name_or_path: str | Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """Verifies, and returns the arguments of `from_pretrained` with which the verified commit is loaded."""
    given = {name: arguments[name] for name in Hub.__dataclass_fields__ if arguments.get(name) is not None}
    commit = verify(name_or_path, **given).commit
    return arguments if commit is None else {**arguments, "revision": commit, "force_download": False}


def _fault(name_or_path: str | Path, name: str, digest: str, hub: Hub) -> str | None:
    """Returns what is wrong with one listed file, or None."""
    path = find_file(name_or_path, name, hub)
    if path is None:
        return f"{name} is missing"
    seen = sha256(path)
    if seen == digest:
        return None
    return f"{name} differs ({path.stat().st_size} bytes, SHA-256 {seen[:16]}..., expected {digest[:16]}...; {path})"
