"""What an artefact's masks become in NumPy: the model's instances and segments, on a canvas and without."""

import numpy as np
import pytest
import torch

from detr_hf import Detector
from detr_hf.inference.backends import ArtefactBackend
from detr_hf.inference.segments import MASK_THRESHOLD, OVERLAP_THRESHOLD
from detr_hf.model import Predictions
from detr_hf.processing.run_lengths_detr import run_length_mask

from ..inference.test_backends import picture
from .artefacts import ModelRuntime, info_of, small_processor

CANVAS = {"size": {"max_height": 96, "max_width": 96}, "pad_size": {"height": 96, "width": 96}}


@pytest.mark.parametrize(("canvas", "shape"), [({}, {}), (CANVAS, {}), (CANVAS, {"batch": 2, "size_hw": (96, 96)})])
def test_masks_lie_where_the_models_lie(segmenter, canvas, shape):
    """On a canvas and without one: the picture's part of the masks is told from its padding."""
    processor = small_processor(**canvas, label_ids_to_fuse=[1])
    info = info_of(segmenter, processor, **shape)
    on_artefact = Detector.on(ArtefactBackend(ModelRuntime(segmenter, info), "a.onnx"))
    assert on_artefact.task == "panoptic" and on_artefact.stuff_labels == [1]
    pictures = [picture(64, 96, 1), picture(96, 70, 2), picture(64, 64, 3)]
    for found, expected in zip(on_artefact(pictures, 0.2), Detector(segmenter, processor)(pictures, 0.2), strict=True):
        assert len(found) == 7 and 0.2 < expected.masks.mean() < 0.8 and expected.panoptic.segments_info
        assert (found.masks != expected.masks).mean() < 2e-3
        assert (found.panoptic.segmentation != expected.panoptic.segmentation).mean() < 2e-3


class Answers:
    """A runtime that says of every picture what it was told to say."""

    device = "cpu"

    def __init__(self, predictions: Predictions, info):
        self.predictions, self.info = predictions, info

    def __call__(self, pixel_values, pixel_mask=None):
        return self.predictions


def different_masks() -> Predictions:
    """Six queries on a canvas of 64x96: two objects that overlap, a class of stuff in three parts, and nothing."""
    masks = np.full((1, 6, 16, 24), -6.0, np.float32)
    for query, (rows, columns) in enumerate([(slice(2, 6), slice(3, 9)), (slice(5, 9), slice(7, 12))]):
        masks[0, query, rows, columns] = 4 + query
    masks[0, 2, :, :8], masks[0, 3, :, 8:], masks[0, 4, 12:] = 2, 3, 1
    labels, scores = [0, 1, 2, 2, 2, 3], [5, 4.5, 3, 3.5, 2, 5]
    logits = np.zeros((1, 6, 4), np.float32)
    logits[0, np.arange(6), labels] = scores
    return Predictions(logits, np.full((1, 6, 4), 0.5, np.float32), masks)


@pytest.mark.parametrize("mask_queries", [None, [3, 0, 1]])
def test_masks_are_read_as_the_image_processor_reads_them(segmenter, mask_queries, caplog):
    processor = small_processor(label_ids_to_fuse=[2])
    answers = different_masks()
    expected = {"logits": torch.from_numpy(answers.logits), "pred_masks": torch.from_numpy(answers.masks.copy())}
    if mask_queries is not None:
        others = [query for query in range(6) if query not in mask_queries]
        expected["pred_masks"][:, others] = -100.0
        answers = answers._replace(masks=answers.masks[:, mask_queries], mask_queries=np.array([mask_queries]))
    info = info_of(segmenter, processor, mask_queries=mask_queries and len(mask_queries))
    detector = Detector.on(ArtefactBackend(Answers(answers, info), "a.onnx"))
    found = detector(picture(128, 192), 0.6)
    sizes = {"threshold": 0.6, "target_sizes": [(128, 192)]}
    (wanted,) = processor.post_process_panoptic_segmentation(
        expected, **sizes, mask_threshold=MASK_THRESHOLD, overlap_mask_area_threshold=OVERLAP_THRESHOLD
    )
    np.testing.assert_array_equal(found.panoptic.segmentation, wanted["segmentation"])
    assert len(wanted["segments_info"]) == 3 and wanted["segments_info"] == [
        {name: segment[name] for name in wanted["segments_info"][0]} for segment in found.panoptic.segments_info
    ]
    (wanted,) = processor.post_process_instance_segmentation(expected, **sizes, return_coco_annotation=True)
    with_pixels = [mask for mask in found.segmentations if run_length_mask(mask, (128, 192)).any()]
    assert with_pixels == wanted["segmentation"]
    assert len(found) == 5 and len(with_pixels) == (5 if mask_queries is None else 3)
    lost = "2 of 5 objects in a picture have a box and no mask"
    assert [lost in record.message for record in caplog.records] == ([] if mask_queries is None else [True])
    detector(picture(128, 192), 0.6)
    assert len(caplog.records) == (mask_queries is not None)  # said once


def test_a_task_needs_the_masks_it_is_made_of(segmenter, exported_model):
    few = ModelRuntime(segmenter, info_of(segmenter, mask_queries=3))
    with pytest.raises(ValueError, match="the masks of the 3 best queries, and a semantic map is made of all"):
        ArtefactBackend(few, "few.onnx", "semantic")
    with pytest.raises(ValueError, match="has no masks, so there is no instance"):
        ArtefactBackend(ModelRuntime(exported_model, info_of(exported_model)), "boxes.onnx", "instance")
    boxes = Detector.on(ArtefactBackend(few, "few.onnx", "detection"))(picture(64, 64), 0.0)
    assert len(boxes) == 7 and boxes.segmentations is None and boxes.panoptic is None
    every = ModelRuntime(segmenter, info_of(segmenter))
    found = Detector.on(ArtefactBackend(every, "all.onnx", "semantic"))(picture(64, 64), 0.99)
    expected = Detector(segmenter, small_processor(), "semantic")(picture(64, 64), 0.99)
    assert (found.semantic.segmentation != expected.semantic.segmentation).mean() < 2e-3
