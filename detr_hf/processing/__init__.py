"""Pictures and annotations in, detections out.

These files travel to the Hub with every image processor, flat and without the model's: they import each other as
`from .x_detr import y`, and nothing else of this package.
"""

from typing import TYPE_CHECKING

from ..lazy_names import lazy_names

if TYPE_CHECKING:
    from .image_processing_detr import (
        DETRImageProcessor as DETRImageProcessor,
        DETRImageProcessorPil as DETRImageProcessorPil,
    )

__getattr__, __dir__ = lazy_names(__name__)
