"""The Hub: push a model with its card, pictures and digests in one commit; verify what was downloaded.

The names are imported when first used, so that importing this package costs nothing.
"""

from typing import TYPE_CHECKING

from ..lazy_names import lazy_names

if TYPE_CHECKING:
    from .card import render_card
    from .datasets import push_dataset
    from .facts import facts_of
    from .manifest import IntegrityError, verified_arguments, verify, write_manifest
    from .pushing import HubError, push

_MODULE_OF = {
    "HubError": "pushing",
    "IntegrityError": "manifest",
    "facts_of": "facts",
    "push": "pushing",
    "push_dataset": "datasets",
    "render_card": "card",
    "verified_arguments": "manifest",
    "verify": "manifest",
    "write_manifest": "manifest",
}

__all__ = [
    "HubError",
    "IntegrityError",
    "facts_of",
    "push",
    "push_dataset",
    "render_card",
    "verified_arguments",
    "verify",
    "write_manifest",
]


__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF)
