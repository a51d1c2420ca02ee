"""The Hub: push a model with its card, pictures and digests in one commit; verify what was downloaded.

The names are imported when first used, so that importing this package costs nothing.
"""

from typing import TYPE_CHECKING

from ..lazy_names import lazy_names

if TYPE_CHECKING:
    from .card import render_card as render_card
    from .datasets import push_dataset as push_dataset
    from .facts import facts_of as facts_of
    from .manifest import verified_arguments as verified_arguments, verify as verify, write_manifest as write_manifest
    from .pushing import Publication as Publication, push as push

__getattr__, __dir__ = lazy_names(__name__)
