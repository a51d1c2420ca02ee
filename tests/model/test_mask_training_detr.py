"""How a segmentation model learns, where that needs no data: what is not finite is refused."""

import copy

import pytest
import torch

from ..bad_inputs.models import segmenter
from ..conftest import some_labels


@pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluation"])
def test_masks_that_are_not_finite_are_refused_with_the_image(mode):
    model = copy.deepcopy(segmenter()).train(mode)
    labels = [{**each, "masks": torch.ones(len(each["boxes"]), 64, 96) > 0} for each in some_labels(0, 2, 1)]
    labels = [{**each, "class_labels": each["class_labels"] % 2} for each in labels]
    pixels = torch.randn(3, 3, 64, 96)
    assert model(pixels, labels=labels).loss.isfinite()
    model.mask_head.out_lay.bias.data.fill_(torch.nan)
    words = "loss is not finite: the masks that the model gives for image 1, image 2 of the batch"
    with pytest.raises(FloatingPointError, match=words):
        model(pixels, labels=labels)
