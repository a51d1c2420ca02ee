"""Quantised and sharded tensors are loaded, and looked through for values that are not finite."""

import json
from importlib.util import find_spec

import pytest
import torch
import transformers
from torch.testing._internal.two_tensor import TwoTensor

from detr_hf import DETRForObjectDetection
from detr_hf.model.pretrained_detr import _is_broken

from ..checkpoints.foreign import narrow_model, their_detr


@pytest.mark.parametrize(
    ("tensor", "broken"),
    [
        (TwoTensor(torch.ones(2), torch.ones(2)), False),
        (TwoTensor(torch.ones(2), torch.tensor([1.0, torch.nan])), True),
        (TwoTensor(TwoTensor(torch.ones(1), torch.ones(1)), TwoTensor(torch.ones(1), torch.ones(1) / 0)), True),
        (torch.ones(2, device="meta") / 0, False),
        (torch.nn.Parameter(torch.ones(2)), False),
        (torch.ones(2, dtype=torch.int8), False),
        (torch.tensor([torch.inf], dtype=torch.bfloat16), True),
    ],
)
def test_the_parts_of_a_tensor_are_looked_at(tensor, broken):
    assert _is_broken(tensor) is broken


@pytest.mark.parametrize("layout", ["own", "theirs"])
def test_torchao_quantises_while_loading_and_reads_its_own(tmp_path, layout):
    torchao = pytest.importorskip("torchao.quantization")
    (narrow_model() if layout == "own" else their_detr()).save_pretrained(tmp_path / "full")
    config = transformers.TorchAoConfig(torchao.Int8WeightOnlyConfig())
    full = DETRForObjectDetection.from_pretrained(tmp_path / "full")
    model = DETRForObjectDetection.from_pretrained(tmp_path / "full", quantization_config=config)
    model.save_pretrained(tmp_path / "int8")
    again = DETRForObjectDetection.from_pretrained(tmp_path / "int8")
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected, seen, reloaded = (one.eval()(pixel_values).logits for one in (full, model, again))
    torch.testing.assert_close(seen, expected, atol=0.1, rtol=0)
    assert torch.equal(seen, reloaded)


@pytest.mark.parametrize("changes", [{"id2label": ["cat", "ox"]}, {"num_queries": 3}])
@pytest.mark.parametrize("layout", ["own", "theirs"])
def test_a_quantised_checkpoint_is_not_fitted_to_other_classes(tmp_path, layout, changes):
    (narrow_model() if layout == "own" else their_detr()).save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | {"quantization_config": {"quant_method": "torchao"}}))
    with pytest.raises(ValueError, match=r"is quantised \(torchao\).*change the checkpoint that it was made from"):
        DETRForObjectDetection.from_pretrained(tmp_path, **changes)


@pytest.mark.parametrize(
    ("package", "config"),
    [
        ("bitsandbytes", lambda: transformers.BitsAndBytesConfig(load_in_8bit=True)),
        ("optimum.quanto", lambda: transformers.QuantoConfig(weights="int8")),
    ],
)
def test_a_quantiser_that_is_not_installed_is_named(tmp_path, package, config):
    if find_spec(package.partition(".")[0]) is not None:
        pytest.skip(f"{package} is installed")
    narrow_model().save_pretrained(tmp_path)
    with pytest.raises(ImportError, match="pip install"):
        DETRForObjectDetection.from_pretrained(tmp_path, quantization_config=config())


@pytest.mark.parametrize("layout", ["own", "theirs"])
@pytest.mark.parametrize("place", ["auto", {"": "disk"}])
def test_weights_that_are_elsewhere_are_no_fault(tmp_path, layout, place):
    (narrow_model() if layout == "own" else their_detr()).save_pretrained(tmp_path)
    model = DETRForObjectDetection.from_pretrained(tmp_path, device_map=place, offload_folder=tmp_path / "off")
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 64)).logits.isfinite().all()


def test_a_model_may_be_built_on_the_meta_device():
    with torch.device("meta"):
        assert DETRForObjectDetection(narrow_model().config).device.type == "meta"
