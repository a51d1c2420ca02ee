"""Pushes a model to the Hub: the whole repository in one commit, or nothing.

Large files go up first, where nobody sees them; then a single commit names them all and deletes what an earlier push
left behind (shards, code, pictures). So whoever loads the repository meanwhile gets the old one or the new one, and a
push that is killed has changed nothing. The commit names its parent: if somebody else commits in between, the push
looks again and goes on top, without touching what is not its own.

`huggingface_hub` retries uploads, but not the commit itself, whose answer may be lost after it was carried out. Doing
the push again is safe: files that are already there make no new commit.
"""

import fnmatch
import logging
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoints.hub_errors import chain, explained, is_transport_error, status_of
from ..checkpoints.processors import processor_of
from ..errors import lacking
from ..model.segmentation_detr import refuse_without_masks
from ..processing.image_processing_base_detr import DETRImageProcessingMixin
from ..visualize.plots import draw_training
from ..whole_files import unfinished_folder
from .card import WRITTEN_HERE
from .facts import facts_of
from .figures import draw_examples
from .staging import CARD, CURVES, EXAMPLES, OWNED, stage

logger = logging.getLogger(__name__)

TRIES = 4
PAUSE_SECONDS = 1.0  # before the second try; twice as long before each further one
UNCHANGED = "Nothing was committed: the repository is as it was."


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What goes to the Hub with a model.

    Attributes:
        processor: the image processor; by default the one of the checkpoint that the model was loaded from.
        evaluation: what `evaluate` returned, or `CocoMetrics`, for the card and the Hub's metadata.
        data: the data set that the model was trained on, as `load_detection_dataset` returns it; named in the card.
        examples: rows with an `image`, of which ten are drawn with what the model finds; by default the validation
            split of `data`.
        log_history: Trainer's, for the training curves.
        facts: more for the card, or in place of what is known from the model; see `facts.py`.
        format: "detr_hf", or "transformers" for a checkpoint that stock transformers loads without our code.
        license: an identifier of the Hub such as "apache-2.0".
        tags, max_shard_size: as in transformers.
    """

    processor: Any = None
    evaluation: Any = None
    data: Any = None
    examples: Any = None
    log_history: list[dict[str, Any]] | None = None
    facts: Mapping[str, Any] | None = None
    format: str = "detr_hf"
    license: str | None = None
    tags: list[str] | None = None
    max_shard_size: int | str = "50GB"


def push(
    model: Any,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
    overwrite_card: bool = False,
    **published: Any,
) -> Any:
    """Makes or replaces a model repository, and returns `huggingface_hub`'s `CommitInfo`.

    Args:
        model: the detector; training-only aids are left out.
        repo_id: "name" or "owner/name"; it is made if it does not exist.
        private, token, revision, create_pr, commit_message, commit_description: as in transformers. A branch that
            does not exist is made.
        overwrite_card: replace a card that was written by somebody else, or by hand.
        **published: what goes along, by the names of `Publication`: `processor`, `evaluation`, `data`, `license`, ...

    Raises:
        HubError: the push failed; the message says why and what to do, and nothing was changed.
        TypeError: a name that `Publication` does not have.
        ValueError: a model that the format cannot hold, or whose mask head was never trained.
    """
    publication = Publication(**published)
    with explained("push to", repo_id, revision=revision, token=token, after=UNCHANGED):
        repo_id = make_repository(repo_id, private=private, token=token, revision=revision)
        with unfinished_folder(Path(tempfile.gettempdir()) / "push") as scratch:
            lay_out(scratch, model, repo_id, publication)
            return commit_folder(
                scratch,
                repo_id,
                token=token,
                revision=revision,
                create_pr=create_pr,
                commit_message=commit_message or f"Upload {type(model).__name__}",
                commit_description=commit_description,
                overwrite_card=overwrite_card,
            )


def lay_out(folder: Path, model: Any, repo_id: str, publication: Publication) -> None:
    """Writes into an empty folder what `push` would commit to `repo_id`."""
    if model.has_mask_head:
        refuse_without_masks(model)
    processor = processor_of(model) if publication.processor is None else publication.processor
    if not isinstance(processor, DETRImageProcessingMixin):
        raise TypeError(
            f"processor is a {type(processor).__name__}; expected a DETRImageProcessor (of either backend)."
        )
    examples = validation_rows(publication.data) if publication.examples is None else publication.examples
    pictures = {}
    if examples is not None:
        pictures[EXAMPLES] = draw_examples(model, processor, examples)
    try:
        curves = draw_training(publication.log_history or [])
    except ImportError as error:
        curves = None
        logger.warning("The training curves are left out. %s", lacking(error, "Drawing them") or error)
    if curves is not None:
        pictures[CURVES] = curves
    known = facts_of(
        model,
        repo_id.split("/")[-1],
        processor,
        publication.evaluation,
        publication.data,
        license=publication.license,
        tags=publication.tags,
    )
    if known["base_model"] == repo_id:  # pushed back to where it came from
        known["base_model"] = None
    stage(
        folder,
        model,
        processor,
        {**known, "repo_id": repo_id, **(publication.facts or {})},
        format=publication.format,
        max_shard_size=publication.max_shard_size,
        pictures=pictures,
    )


def make_repository(
    repo_id: str, *, private: bool | None = None, token: str | bool | None = None, revision: str | None = None
) -> str:
    """Makes the repository, and the branch, if they do not exist; returns the full id."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with explained("make the repository", repo_id, revision=revision, token=token, after=UNCHANGED):
        repo_id = _tried(lambda: api.create_repo(repo_id, private=private, exist_ok=True)).repo_id
        if revision is not None and not revision.startswith("refs/"):
            _tried(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True))
    return repo_id


def commit_folder(
    folder: Path,
    repo_id: str,
    *,
    commit_message: str,
    commit_description: str | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    overwrite_card: bool = False,
    checkpoint: tuple[Path, str] | None = None,
) -> Any:
    """Commits what `stage` wrote to an existing repository, all at once, and returns `CommitInfo`.

    `checkpoint` is another folder that goes along, and its place in the repository; the rest is as in `push`.

    Raises:
        HubError: nothing was committed.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)

    def attempt() -> Any:
        head = api.repo_info(repo_id, revision=revision)
        return api.create_commit(
            repo_id,
            _operations(api, repo_id, head, folder, overwrite_card, checkpoint),
            commit_message=commit_message,
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
            parent_commit=None if create_pr else head.sha,
        )

    with explained("push to", repo_id, revision=revision, token=token, after=UNCHANGED):
        return _tried(attempt)


def _operations(
    api: Any, repo_id: str, head: Any, folder: Path, overwrite_card: bool, checkpoint: tuple[Path, str] | None
) -> list[Any]:
    """Returns what makes of the commit `head` one with the files of `folder`, and no file of an earlier push."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    there = {file.rfilename for file in head.siblings or []}
    new = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    if not overwrite_card and CARD in there and not _is_our_card(api, repo_id, head.sha):
        logger.warning(
            "%s has a card that detr_hf did not write: it stays. overwrite_card=True would replace it.", repo_id
        )
        del new[CARD]
    owned = {name for name in there if "/" not in name and any(fnmatch.fnmatchcase(name, sign) for sign in OWNED)}
    stale = owned - set(new)
    if checkpoint is not None:
        inner, place = checkpoint
        fresh = {f"{place}/{path.relative_to(inner).as_posix()}": path for path in inner.rglob("*") if path.is_file()}
        stale |= {name for name in there if name.startswith(f"{place}/")} - set(fresh)
        new |= fresh
    additions = [CommitOperationAdd(name, str(path)) for name, path in sorted(new.items())]
    return additions + [CommitOperationDelete(name) for name in sorted(stale)]


def _is_our_card(api: Any, repo_id: str, commit: str) -> bool:
    with tempfile.TemporaryDirectory() as scratch:
        path = api.hf_hub_download(repo_id, CARD, revision=commit, local_dir=scratch)
        return WRITTEN_HERE in Path(path).read_text(encoding="utf-8", errors="replace")


def _tried(attempt: Any) -> Any:
    """Returns what `attempt` does, done again after a failure that passes: of the Hub, the network, or a rival."""
    for number in range(TRIES):
        try:
            return attempt()
        except Exception as error:
            if number == TRIES - 1 or not _passes(error):
                raise
            logger.warning("The Hub did not take it (%s); once more.", str(error).strip().splitlines()[0])
            time.sleep(PAUSE_SECONDS * 2**number)


def _passes(error: BaseException) -> bool:
    """Whether it is worth trying again: an answer 409, 412 or 5xx, or none at all, except where nobody listens or
    nobody is asked."""
    for cause in chain(error):
        status = status_of(cause)
        if status is not None and status >= 400:
            return status in (409, 412) or 500 <= status < 507
        if is_transport_error(cause):
            return not {"ConnectError", "OfflineModeIsEnabled"} & {base.__name__ for base in type(cause).__mro__}
    return False


def validation_rows(data: Any) -> Any:
    """Returns the validation split of a data set, else its test split, else None."""
    if data is None:
        return None
    from ..data.detection_data import split_kind

    for kind in ("validation", "test"):
        for name in data:
            if split_kind(name) == kind:
                return data[name]
    return None
