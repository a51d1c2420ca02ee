"""The check passes the model itself and stops what exporters get wrong: masks, sizes, precision, NaN."""

import re

import numpy as np
import pytest

from detr_hf.export import check_parity
from detr_hf.export.parity import Difference, Parity, parity_cases, refuse_far

from .artefacts import ModelRuntime, info_of, other_cases, small_model


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


def test_a_mean_that_hides_a_lost_object_is_refused_unless_accepted():
    far, near = (Parity(24, {"logits": Difference(9.0, largest, 2.7e-3)}) for largest in (0.89, 0.3))
    refuse_far(near)
    with pytest.raises(ValueError, match=r"differs by 0\.89.*Nothing was kept.*--accept-difference"):
        refuse_far(far)


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


@pytest.mark.parametrize("mask_queries", [None, 1, 3])
def test_masks_of_a_batch_in_one_go_are_those_of_each_image(segmenter, mask_queries):
    info = info_of(segmenter, mask_queries=mask_queries)
    parity = check_parity(segmenter, ModelRuntime(segmenter, info), other_cases())
    assert list(parity.of) == ["logits", "boxes_cxcywh_norm", "masks"] and parity.of["masks"].largest < 1e-4
    assert re.search(r"boxes within .* \(mean .*\), mask logits within .*, masks within .* \(mean .*\)", str(parity))


class Spoiled(ModelRuntime):
    """A runtime whose masks, or the queries they are of, went wrong."""

    spoil = staticmethod(lambda found: found)

    def __call__(self, pixel_values, pixel_mask=None):
        return self.spoil(super().__call__(pixel_values, pixel_mask))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda found: found._replace(masks=found.masks + 1), "differs from the model .* in mask logits"),
        (lambda found: found._replace(masks=found.masks[:, ::-1]), "differs from the model .* in mask logits"),
        (lambda found: found._replace(masks=None), "The model gives masks, and the exported model gives none"),
        (lambda found: found._replace(mask_queries=0 * found.mask_queries), "mask_queries are not 3 of 7 queries"),
        (lambda found: found._replace(mask_queries=found.mask_queries + 7), "mask_queries are not 3 of 7 queries"),
        (
            lambda found: found._replace(mask_queries=np.argsort(found.logits[..., :-1].max(-1), axis=1)[:, :3]),
            "not of the 3 queries with the best scores",
        ),
    ],
)
def test_masks_that_went_wrong_are_refused(segmenter, spoil, message, monkeypatch):
    monkeypatch.setattr(Spoiled, "spoil", staticmethod(spoil))
    info = info_of(segmenter, mask_queries=3)
    with pytest.raises(ValueError, match=message):
        check_parity(segmenter, Spoiled(segmenter, info), other_cases()[:1])


def test_masks_that_the_model_lacks_are_refused(segmenter, model):
    with pytest.raises(ValueError, match="The exported model gives masks, and the model gives none"):
        check_parity(model, ModelRuntime(segmenter, info_of(segmenter)))
