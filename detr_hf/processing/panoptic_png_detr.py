"""Maps of segments -> COCO's panoptic PNG files, in NumPy and Pillow alone; `mask_annotations_detr.py` reads them."""

import os
from typing import Any

import numpy as np
import PIL.Image

_LARGEST = (1 << 24) - 1


def write_panoptic_png(ids: Any, path: str | os.PathLike) -> None:
    """Writes segment ids (H, W) as the colours of an RGB PNG: id = R + 256 G + 65536 B, 0 for no segment.

    Raises:
        ValueError: an id does not go into three bytes.
    """
    ids = np.asarray(ids)
    least, most = int(ids.min(initial=0)), int(ids.max(initial=0))
    if least < 0 or most > _LARGEST:
        raise ValueError(f"Segment ids are {least} to {most}; a PNG holds ids from 0 to {_LARGEST}.")
    colours = np.ascontiguousarray(ids, dtype="<u4").view(np.uint8).reshape(*ids.shape, 4)
    PIL.Image.fromarray(np.ascontiguousarray(colours[..., :3])).save(path, "PNG")
