"""The model is what it was: names of tensors, `print(model)`, what travels, outputs, losses, against a stored record.

The record was made by the code before it was moved into rooms. A change that means to change one of these makes the
record anew and says so: `python -m tests.model.test_fingerprint` writes it.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ..conftest import padded_batch, some_labels, tiny_model

RECORD = Path(__file__).with_suffix(".json")
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "pre_norm learned": {"pre_norm": True, "position_embedding": "learned"},
    "dc5 gelu": {"dilation": True, "backbone": "resnet50", "activation": "gelu"},
    "another backbone": {"backbone": "tf_efficientnet_lite0"},
    "reference points": {"reference_points": True},
    "every aid": {
        "encoder_aux_head": True,
        "num_query_groups": 2,
        "num_denoising": 6,
        "denoising_negatives": True,
        "reference_points": True,
    },
}
TOLERANCE = {"rtol": 1e-3, "atol": 2e-4}  # processors round differently


def fingerprint(changes: dict[str, Any]) -> dict[str, Any]:
    """Returns what must stay: texts to the letter, numbers within rounding."""
    model = tiny_model(dropout=0.0, **changes)
    pixel_values, pixel_mask = padded_batch()
    with torch.no_grad():
        outputs = model(pixel_values, pixel_mask)
    torch.manual_seed(1)
    trained = model.train()(pixel_values, pixel_mask, labels=some_labels(2, 0))
    trained.loss.backward()
    gradients = torch.stack([p.grad.double().norm() for p in model.parameters() if p.grad is not None])
    return {
        "state_dict": {name: list(tensor.shape) for name, tensor in model.state_dict().items()},
        "print": str(model).splitlines(),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "numbers": {
            "logits": outputs.logits[:, :2].flatten().tolist(),
            "pred_boxes": outputs.pred_boxes[:, :2].flatten().tolist(),
            "loss": trained.loss.item(),
            **{name: part.item() for name, part in trained.loss_dict.items()},
            "gradients": gradients.norm().item(),
        },
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_model_is_what_it_was(variant):
    was, now = json.loads(RECORD.read_text())["variants"][variant], fingerprint(VARIANTS[variant])
    assert list(now["state_dict"].items()) == list(was["state_dict"].items())
    assert now["print"] == was["print"]
    assert now["trainable"] == was["trainable"]
    assert now["numbers"].keys() == was["numbers"].keys()
    for name, value in now["numbers"].items():
        torch.testing.assert_close(
            torch.tensor(value),
            torch.tensor(was["numbers"][name]),
            msg=lambda text, name=name: f"{name}: {text}",
            **TOLERANCE,
        )


def auto_maps() -> dict[str, Any]:
    from detr_hf.model.heads_detr import AUTO_MAP
    from detr_hf.processing.image_processing_base_detr import CLASS_OF_BACKEND

    return {**AUTO_MAP, "AutoImageProcessor": CLASS_OF_BACKEND}


def test_what_travels_has_its_names():
    assert auto_maps() == json.loads(RECORD.read_text())["auto_map"]


if __name__ == "__main__":
    record = {"auto_map": auto_maps(), "variants": {name: fingerprint(changes) for name, changes in VARIANTS.items()}}
    RECORD.write_text(json.dumps(record, indent=0) + "\n")
