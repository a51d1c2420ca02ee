"""Panoptic PNGs: what is written is what the reader of annotations reads."""

import numpy as np
import pytest

from detr_hf.processing.mask_annotations_detr import read_panoptic_png
from detr_hf.processing.panoptic_png_detr import write_panoptic_png


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint8])
def test_ids_come_back(tmp_path, kind):
    most = min((1 << 24) - 1, np.iinfo(kind).max)
    ids = np.random.default_rng(0).integers(0, most + 1, (7, 9)).astype(kind)
    ids[0, :3] = 0, most, 255
    for written in (ids, np.asfortranarray(ids)):
        write_panoptic_png(written, tmp_path / "a.png")
        assert np.array_equal(read_panoptic_png(tmp_path, "a.png", (7, 9), "a"), ids)


def test_ids_beyond_three_bytes_are_refused(tmp_path):
    for wrong in (1 << 24, -1):
        with pytest.raises(ValueError, match="from 0 to 16777215"):
            write_panoptic_png(np.full((2, 2), wrong), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
