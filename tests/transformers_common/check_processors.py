"""transformers' common image processor tests, run on our two processors (see run.py)."""

import unittest

import torch

from detr_hf import DETRImageProcessor, DETRImageProcessorPil

from ...test_image_processing_common import (
    AnnotationFormatTestMixin,
    ImageProcessingTester,
    ImageProcessingTestMixin,
    PostProcessSemanticSegmentationTestMixin,
)


class DETRImageProcessingTester(ImageProcessingTester):
    """Small pictures, and every setting that the mixin reads."""

    def __init__(self, parent, **kwargs):
        defaults = {
            "size": {"shortest_edge": 18, "longest_edge": 1333},
            "do_resize": True,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "do_pad": True,
        }
        super().__init__(parent, **{**defaults, **kwargs})

    def _get_image_processing_classes(self):
        return {"torchvision": DETRImageProcessor, "pil": DETRImageProcessorPil}

    def prepare_post_process_semantic_segmentation_inputs(self):
        """Outputs of a model with masks, and what a picture's result measures without a size."""
        shape = {"num_labels": 5, "height": 8, "width": 10}
        logits = torch.randn(self.batch_size, 6, shape["num_labels"] + 1)
        boxes = torch.full((self.batch_size, 6, 4), 0.5)
        masks = torch.randn(self.batch_size, 6, shape["height"], shape["width"])
        return {"outputs": {"logits": logits, "pred_boxes": boxes, "pred_masks": masks}}, shape


class DETRImageProcessingTest(
    AnnotationFormatTestMixin,
    ImageProcessingTestMixin,
    PostProcessSemanticSegmentationTestMixin,
    unittest.TestCase,
):
    """The common tests."""

    image_processor_tester_class = DETRImageProcessingTester
    test_cast_dtype = True

    @unittest.skip("Reads a picture from the Hub; tests/test_image_processing_detr.py compares the backends.")
    def test_backends_equivalence(self):
        """Two backends."""

    @unittest.skip("Reads a fixture that the source distribution leaves out.")
    def test_processor_can_use_legacy_annotation_format(self):
        """Annotations."""

    @unittest.skip("Its process imports transformers alone, where no class from outside is known.")
    def test_pil_can_run_without_torchvision(self):
        """The PIL backend by itself."""
