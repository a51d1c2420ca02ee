"""What went wrong between here and the Hub, in a sentence that says what to do.

`huggingface_hub` raises some thirty classes, several of them for one cause (a private repository without a token is
"not found"), and wraps others (a full disk, a cut connection) in words of its own. `explain` looks through the whole
chain of causes for the first one that a user can act on.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import HubError
from ..reaching import is_transport_error

LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN (in Python there is token=... too)"
AGAIN = "Run the same call again: what was uploaded already is not sent twice"

EITHER = "The repository is as it was, or complete; never a mixture."


@contextmanager
def explained(
    doing: str, repo_id: str, *, revision: str | None = None, token: str | bool | None = None, after: str = ""
) -> Iterator[None]:
    """Turns errors of the Hub within it into `HubError`; others pass.

    Args:
        doing: what was tried, as in "push to".
        repo_id: with which repository.
        revision, token: as they were given to the Hub.
        after: a sentence more, on what holds after the failure.
    """
    try:
        yield
    except HubError:
        raise
    except Exception as error:
        reason = explain(error, repo_id, revision, token)
        if reason is None:
            raise
        if after and any(is_transport_error(cause) for cause in chain(error)):
            after = EITHER  # the answer to a commit may have been lost
        raise HubError(f"Could not {doing} {repo_id}: {reason}{f' {after}' if after else ''}") from error
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(f"Interrupted while trying to {doing} {repo_id}. {EITHER} {AGAIN}.")
        raise


def explain(
    error: BaseException, repo_id: str, revision: str | None = None, token: str | bool | None = None
) -> str | None:
    """Returns why it failed and what to do, in sentences; None for what has nothing to do with the Hub."""
    for cause in chain(error):
        for reason in (_named(cause, repo_id, revision), _answered(cause, repo_id, token), _broken(cause)):
            if reason is not None:
                return reason
    return None


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yields the error, then what caused it, and so on."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def status_of(error: BaseException) -> int | None:
    """Returns the HTTP status of the answer that an error reports, or None."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _named(error: BaseException, repo_id: str, revision: str | None) -> str | None:
    """Returns the sentence for an error that has a class of its own, else None."""
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so that nothing is sent or fetched. Unset it to reach the Hub."
    if isinstance(error, errors.HFValidationError):
        return f"{repo_id!r} cannot be the id of a repository; expected 'name' or 'owner/name'."
    if isinstance(error, errors.LocalTokenNotFoundError):
        return f"there is no token. {LOG_IN}"
    if isinstance(error, errors.GatedRepoError):
        return f"its owner wants its terms accepted first. Do that on its page, then: {LOG_IN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no revision {revision or 'main'!r}. Check the name of the branch, tag or commit."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no such repository that you may see. Check the spelling; if it is private: {LOG_IN}"
    return None


def _answered(error: BaseException, repo_id: str, token: str | bool | None) -> str | None:
    """Returns the sentence for an answer of the Hub that is an error, else None."""
    status = status_of(error)
    if status is None or status < 400:
        return None
    headers = getattr(error.response, "headers", {})
    said = headers.get("X-Error-Message") or str(error).strip().splitlines()[0]
    if status == 401:
        if _has_token(token):
            return (
                "the token was refused: it is mistyped, expired or revoked. Make a new one in the settings of your "
                "account, and log in again with `hf auth login` or set HF_TOKEN."
            )
        return f"there is no token. {LOG_IN}"
    sentences = {
        403: "the token does not allow it. It needs the role 'write', and the repository must be yours or your "
        "organisation's.",
        409: f"it is being changed by somebody else ({said}). {AGAIN}.",
        412: f"somebody else committed to it meanwhile. {AGAIN}, or give a branch of your own with revision=... "
        "(--revision)",
        413: "a file is larger than the Hub takes. Give a smaller max_shard_size.",
        429: "the Hub asks for a pause (too many requests). Wait some minutes, then run the same call again.",
        507: "the Hub has no room left for you. Delete what you do not need there, or take a larger plan.",
    }
    if status in sentences:
        return sentences[status]
    if status >= 500:
        return f"the Hub answered {status}, which is trouble on its side. Wait a little. {AGAIN}."
    return f"the Hub answered {status}: {said}"


def _broken(error: BaseException) -> str | None:
    """Returns the sentence for a full disk or a network that fails, else None."""
    from huggingface_hub import constants

    full = getattr(error, "errno", None) == errno.ENOSPC
    if full or os.strerror(errno.ENOSPC) in str(error):  # safetensors has it in its words only
        file = getattr(error, "filename2", None) or getattr(error, "filename", None)
        where = f" while writing {file}" if file else ""
        return (
            f"the disk is full{where}. Free some space, or let TMPDIR (for pushing) or HF_HOME (for loading) name a "
            "folder on another disk."
        )
    if is_transport_error(error):
        return (
            f"{constants.ENDPOINT} was not reached, or the connection broke ({str(error) or type(error).__name__}). "
            "Check the network and HF_ENDPOINT, and run the same call again."
        )
    return None


def _has_token(token: str | bool | None) -> bool:
    from huggingface_hub import get_token

    return bool(token) if isinstance(token, str) or token is False else get_token() is not None
