"""Any DETR checkpoint in, ours out; and back to transformers where that is exact.

`read_checkpoint` reads, `adapt_heads` fits weights to other classes or queries, `prepare_loading` does both for
`from_pretrained`, `to_transformers` and `convert` write. The names are imported when first used, so that importing
this package costs nothing.
"""

from typing import TYPE_CHECKING

from ..lazy_names import lazy_names

if TYPE_CHECKING:
    from .conversion import convert
    from .loading import prepare_loading
    from .reading import Checkpoint, is_foreign, read_checkpoint
    from .surgery import adapt_heads
    from .transformers_model import to_transformers

_MODULE_OF = {
    "Checkpoint": "reading",
    "adapt_heads": "surgery",
    "convert": "conversion",
    "is_foreign": "reading",
    "prepare_loading": "loading",
    "read_checkpoint": "reading",
    "to_transformers": "transformers_model",
}

__all__ = [
    "Checkpoint",
    "adapt_heads",
    "convert",
    "is_foreign",
    "prepare_loading",
    "read_checkpoint",
    "to_transformers",
]


__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF)
