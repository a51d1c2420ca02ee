"""The check passes the model itself and stops what exporters get wrong: masks, sizes, precision, NaN."""

import re

import numpy as np
import pytest
import torch

from detr_hf.export import check_parity
from detr_hf.export.parity import parity_cases
from detr_hf.model import Predictions

from .artefacts import ModelRuntime, info_of, small_model


@pytest.fixture(scope="module")
def model():
    return small_model()


def test_cases_cover_batches_sizes_and_masks(model):
    cases = list(parity_cases(info_of(model)))
    assert {len(case.pixel_values) for case in cases} == {1, 2, 3}
    assert len({case.pixel_values.shape[2:] for case in cases}) == 4
    masks = [case.pixel_mask for case in cases if case.pixel_mask is not None]
    assert masks and all(mask.any(axis=(1, 2)).all() and not mask.all() for mask in masks)
    assert any(case.pixel_mask is None for case in cases)
    fixed = list(parity_cases(info_of(model, batch=2, size_hw=(64, 96), masked=False)))
    assert [case.pixel_values.shape for case in fixed] == [(2, 3, 64, 96)] and fixed[0].pixel_mask is None


def test_the_model_equals_itself(model):
    parity = check_parity(model, ModelRuntime(model, info_of(model)))
    assert parity.cases == 24 and [(one.largest, one.largest_seen) for one in parity.of.values()] == [(0, 0)] * 2


def test_a_graph_that_ignores_its_mask_is_refused(model):
    with pytest.raises(ValueError, match=r"differs from the model on a batch of 1, .* padding"):
        check_parity(model, ModelRuntime(model, info_of(model), ignores_mask=True))


@pytest.mark.parametrize(("dtype", "passes"), [("float32", 1e-6), ("bfloat16", 2e-2), ("int8", 5e-2)])
def test_each_precision_has_its_tolerance(model, dtype, passes):
    info = info_of(model, to="openvino", dtype=dtype)
    check_parity(model, ModelRuntime(model, info, noise=passes))
    with pytest.raises(ValueError, match=f"exported {dtype} model differs"):
        check_parity(model, ModelRuntime(model, info, noise=100 * passes))


def test_nan_is_refused(model):
    for dtype in ("float32", "int8"):
        with pytest.raises(ValueError, match="differs"):
            check_parity(model, ModelRuntime(model, info_of(model, to="openvino", dtype=dtype), noise=np.nan))


def test_a_runtime_that_fails_is_refused_with_the_case(model):
    class Broken:
        info = info_of(model)

        def __call__(self, pixel_values, pixel_mask=None):
            if pixel_values.shape[2:] != (160, 224):
                raise RuntimeError("shape mismatch inside")
            return ModelRuntime(model, self.info)(pixel_values, pixel_mask)

    with pytest.raises(ValueError, match=r"fails on a batch of 1, 224x160 pixels.*shape mismatch inside"):
        check_parity(model, Broken())


def test_nothing_to_compare_is_an_error(model):
    with pytest.raises(ValueError, match="no case"):
        check_parity(model, ModelRuntime(model, info_of(model)), [])


class WithMasks(torch.nn.Module):
    """A model that gives masks too, which a mask head will."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values, pixel_mask=None):
        output = self.model(pixel_values, pixel_mask)
        return {**output, "pred_masks": 9 * output["logits"][:, :, None]}


class RuntimeWithMasks(ModelRuntime):
    """The runtime of such a model; `noise` spoils the masks alone."""

    def __call__(self, pixel_values, pixel_mask=None):
        logits, boxes, _ = ModelRuntime(self.model, self.info)(pixel_values, pixel_mask)
        return Predictions(logits, boxes, 9 * logits[:, :, None] + self.noise)


def test_every_field_is_compared_by_name(model):
    info = info_of(model)
    parity = check_parity(WithMasks(model), RuntimeWithMasks(model, info))
    assert list(parity.of) == ["logits", "boxes_cxcywh_norm", "masks"] and parity.of["masks"].largest < 1e-5
    assert re.search(r"boxes within .* \(mean .*\), mask logits within .*, masks within .* \(mean .*\)", str(parity))
    with pytest.raises(ValueError, match=r"differs from the model .* in mask logits"):
        check_parity(WithMasks(model), RuntimeWithMasks(model, info, noise=1.0))


def test_a_field_that_is_missing_is_refused(model):
    with pytest.raises(ValueError, match="The model gives masks, and the exported model gives none"):
        check_parity(WithMasks(model), ModelRuntime(model, info_of(model)))
    with pytest.raises(ValueError, match="The exported model gives masks, and the model gives none"):
        check_parity(model, RuntimeWithMasks(model, info_of(model)))
