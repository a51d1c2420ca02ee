"""Pushes a detection data set to the Hub as Parquet, from where `load_detection_dataset` reads it back.

Pictures go along as the bytes that they are, annotations in the package's own schema, the class names as `ClassLabel`.
What is not kept: category ids of the source. On the Hub, and after loading, ids are the indices 0..K-1.
"""

from collections.abc import Mapping
from typing import Any

from ..checkpoints.hub_errors import explained


def push_dataset(
    data: Any,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    max_shard_size: int | str | None = None,
) -> Any:
    """Makes or replaces a data set repository, all splits in one commit, and returns `CommitInfo`.

    Args:
        data: what `load_detection_dataset` returns (not streamed), or a mapping of such splits.
        repo_id: "name" or "owner/name"; it is made if it does not exist.
        private: whether only its owner may read it; this and the others as in `datasets`.
        token: who pushes; by default who is logged in.
        revision: the branch.
        commit_message: what the commit says.
        max_shard_size: of a Parquet file.

    Raises:
        TypeError: for streamed splits, which have no length.
        ValueError: two splits would have one name on the Hub.
        HubError: the push failed; the message says why and what to do.
    """
    from datasets import Dataset, DatasetDict, NamedSplit

    if isinstance(data, Dataset):
        data = {str(data.split or "train"): data}
    if not isinstance(data, Mapping) or not all(isinstance(rows, Dataset) for rows in data.values()):
        raise TypeError(
            "data must be what load_detection_dataset returns, or a mapping of split names to `datasets.Dataset`; "
            "load it without streaming=True."
        )
    names = [_split_name(name) for name in data]
    if len(set(names)) < len(names):
        raise ValueError(
            f"The splits {', '.join(map(repr, data))} would be {', '.join(names)} on the Hub, where each needs a name "
            "of its own. Rename one first."
        )
    splits = DatasetDict({_split_name(name): rows.with_format(None) for name, rows in data.items()})
    for name, rows in splits.items():
        rows.info.splits = None
        rows._split = NamedSplit(name)
    options = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
    message = commit_message or "Upload detection data set"
    with explained("push to", repo_id, revision=revision, token=token):
        return splits.push_to_hub(
            repo_id, private=private, token=token, revision=revision, commit_message=message, **options
        )


def _split_name(name: str) -> str:
    """Returns a name that the Hub takes for a split: letters, digits, underscores and dots."""
    return "".join(sign if sign.isalnum() or sign in "_." else "_" for sign in name)
