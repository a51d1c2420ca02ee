"""Whether the Hub answers, asked once before huggingface_hub, which asks for half a minute, file by file."""

import time
from pathlib import Path

from .errors import did_you_mean

SECONDS = 5  # that an answer may take
REMEMBERED = 60  # seconds that it holds
_asked: dict[str, tuple[float, str | None]] = {}  # endpoint -> when, and why it was not reached


def why_unreached(local_files_only: bool = False) -> str | None:
    """Returns why the Hub is not asked or not reached, as the end of a sentence; None where it answers anything."""
    from huggingface_hub import constants

    if local_files_only:
        return "the Hub was not asked (local_files_only)"
    if constants.is_offline_mode():
        return "the Hub was not asked (HF_HUB_OFFLINE is set)"
    when, reason = _asked.get(constants.ENDPOINT, (-REMEMBERED, None))
    if time.monotonic() - when > REMEMBERED:
        reason = _silence_of(constants.ENDPOINT)
        _asked[constants.ENDPOINT] = time.monotonic(), reason
    return reason


def _silence_of(endpoint: str) -> str | None:
    from huggingface_hub.utils import get_session

    try:
        get_session().request("HEAD", endpoint, timeout=SECONDS)
    except Exception as error:
        if is_transport_error(error):
            return f"{endpoint} was not reached ({str(error) or type(error).__name__})"
    return None


def is_transport_error(error: BaseException) -> bool:
    """Whether no whole answer came. By name, because the client's HTTP library changes with its version."""
    return any(base.__name__ == "TransportError" for base in type(error).__mro__) or isinstance(
        error, ConnectionError | TimeoutError
    )


def unreached(name: object, reason: str, cache: object = None, ships: str = "detr-digits") -> str:
    """Returns the sentences for what is neither here nor on a Hub that was reached, with all that helps.

    `cache` is the folder that was looked into, by default the usual one.
    """
    from huggingface_hub import constants

    return (
        f"{str(name)!r} is no folder or file here, is not in the Hugging Face cache "
        f"({cache or constants.HF_HUB_CACHE}), and {reason}. Check the spelling and the network. HF_ENDPOINT names a "
        "mirror, `hf auth login` or HF_TOKEN opens what is private, and what was copied here is named by its path. "
        f"{ships}, which comes with detr_hf, needs no network."
    )


def unreached_data_set(name: str) -> str | None:
    """Returns the sentences for a data set that is neither in a cache nor on a Hub that was reached; else None."""
    from datasets import config
    from huggingface_hub import constants

    kept = (
        Path(config.HF_DATASETS_CACHE, name.replace("/", "___").lower()),
        Path(constants.HF_HUB_CACHE, f"datasets--{name.replace('/', '--')}"),
    )
    if any(folder.exists() for folder in kept) or (reason := why_unreached()) is None:
        return None
    return unreached(name, reason, config.HF_DATASETS_CACHE, "The data set digits") + did_you_mean(name, ["digits"])
