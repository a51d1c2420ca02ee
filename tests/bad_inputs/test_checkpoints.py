"""Checkpoints and arguments as people have them: the same weights, or a refusal that says what is wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForObjectDetection

from detr_hf import Detector, DETRForObjectDetection

from ..checkpoints.foreign import original_state_dict
from .kinds import Holds, Kind, Refused, each, try_out
from .models import detector, foreign, original, own, weights_with, without

SAME = "the same outputs"


def load(cls: Any = DETRForObjectDetection, **options: Any) -> Callable[[Path], str]:
    """Returns the road: load with these options and compare the outputs with the detector's."""

    def road(source: Path) -> str:
        model = cls.from_pretrained(source, **options)
        model = getattr(model, "model", model).eval()
        pixel_values = torch.linspace(-1, 1, 3 * 64 * 96).view(1, 3, 64, 96)
        with torch.no_grad():
            seen, expected = model(pixel_values), detector()(pixel_values)
        if seen.logits.shape != expected.logits.shape:
            return f"a class head of {seen.logits.shape[-1] - 1}"
        same = all(torch.allclose(seen[name], expected[name], atol=1e-4) for name in ("logits", "pred_boxes"))
        return SAME if same else "other outputs"

    return road


def names(**options: Any) -> Callable[[Path], list[str]]:
    """Returns the road: load, and give the class names in order."""

    def road(source: Path) -> list[str]:
        config = DETRForObjectDetection.from_pretrained(source, **options).config
        return [config.id2label[label] for label in range(config.num_labels)]

    return road


def one_nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors["query_embed.weight"][0, 0] = float("nan")


def one_more(tensors: dict[str, torch.Tensor]) -> None:
    tensors["query_scale.weight"] = torch.ones(3)


def cut(root: Path) -> None:
    own(root)
    content = (root / "model.safetensors").read_bytes()
    (root / "model.safetensors").write_bytes(content[: len(content) // 2])


def changed_header(root: Path) -> None:
    """A header of the right length, two of whose tensors lie in one place."""
    own(root)
    content = (root / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    first, second = [name for name in header if name != "__metadata__"][:2]
    header[first]["data_offsets"] = header[second]["data_offsets"]
    text = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    (root / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def nested_header(root: Path) -> None:
    own(root)
    text = b"[" * 100_000
    (root / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)


def nested_config(root: Path) -> None:
    own(root)
    (root / "config.json").write_text('{"model_type": ' + "[" * 100_000)


READ = {"nheads": 8, "dilation": False}  # what an original's file does not tell
NOT_WHOLE = [
    Kind(f"no {part}", without(part), load(), Refused("lacks", part))
    for part in ("bbox_embed", "input_proj", "class_embed", "query_embed", "transformer.decoder.norm")
]
NOT_WHOLE += [
    Kind("no input_proj in transformers' folder", without("model.input_projection", write=foreign), load(), Refused()),
    Kind("no box head, by an auto class", without("bbox_embed"), load(AutoModelForObjectDetection), Refused("lacks")),
    Kind("no box head, by Detector", without("bbox_embed"), load(Detector), Refused("lacks", "bbox_embed")),
    Kind("a NaN", weights_with(one_nan), load(), Refused("not finite", "query_embed.weight")),
    Kind("a tensor of another model", weights_with(one_more), load(), Refused("query_scale.weight")),
    Kind("half a file", cut, load(), Refused("model.safetensors")),
    Kind("a header that does not fit together", changed_header, load(), Refused("model.safetensors is damaged")),
    Kind("a header nested too deeply", nested_header, load(), Refused("model.safetensors is damaged")),
    Kind("a configuration nested too deeply", nested_config, load(), Refused("config.json")),
]
ROADS = [
    Kind("own folder", own, load(), SAME),
    Kind("transformers' folder", foreign, load(), SAME),
    Kind("a bare state dict", original(container=""), load(**READ), SAME),
    Kind("Lightning", original(container="state_dict", prefix="model."), load(**READ), SAME, ["model."]),
    Kind("torch.compile", original(container="", prefix="_orig_mod."), load(**READ), SAME, ["_orig_mod."]),
    Kind("DDP over torch.compile", original(prefix="module._orig_mod."), load(**READ), SAME, ["module."]),
    Kind("an EMA wrapper", original(container="state_dict_ema", prefix="module."), load(**READ), SAME),
    Kind("a pickle, and safetensors wanted", original(), load(use_safetensors=True, **READ), Refused("safetensors")),
    Kind("a variant that is not there", own, load(variant="fp16"), Refused("fp16")),
    Kind("a subfolder that is not there", own, load(subfolder="x"), Refused("x")),
]
ARGUMENTS = [
    Kind("num_labels as the checkpoint's", own, load(num_labels=2), SAME),
    Kind("id2label with text keys", own, names(id2label={"0": "cat", "1": "dog"}), ["cat", "dog"]),
    Kind("id2label as a list", own, names(id2label=["cat", "dog"]), ["cat", "dog"]),
    Kind("id2label with NumPy's keys", own, names(id2label={np.int64(0): "cat", np.int64(1): "dog"}), ["cat", "dog"]),
    Kind("id2label with a gap", own, names(id2label={0: "cat", 10**9: "dog"}), Refused("id2label")),
    Kind("two classes of one id", own, names(id2label={0: "cat", "0": "dog"}), Refused("id2label")),
    Kind("an argument of transformers' DETR", own, load(use_pretrained_backbone=False), SAME),
    Kind("a misspelt argument", own, load(num_querys=9), Refused("num_querys", "num_queries")),
    Kind("weights of a class that is not there", own, load(class_weights={"owl": 2}), Refused("owl", "nearest")),
    Kind("a negative class weight", own, load(class_weights=[1, -1]), Refused("class_weights")),
]


@each(NOT_WHOLE, ROADS, ARGUMENTS)
def test_checkpoints(kind: Kind, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    try_out(kind, tmp_path, caplog)


def load_state(**options: Any) -> Callable[[Path], str]:
    """Returns the road: `load_state_dict` of what a file holds, into a fresh model of the same configuration."""

    def road(path: Path) -> str:
        weights = torch.load(path)["model"]
        model = DETRForObjectDetection(detector().config)
        model.load_state_dict(weights, **options)
        return SAME if torch.equal(model.query_embed.weight, detector().query_embed.weight) else "other outputs"

    return road


def original_names(root: Path) -> Path:
    """Writes the original's file, which packs q, k and v."""
    torch.save({"model": original_state_dict(detector())}, root / "detr.pth")
    return root / "detr.pth"


def another_model(root: Path) -> Path:
    torch.save({"model": {"fc.weight": torch.zeros(3)}}, root / "other.pth")
    return root / "other.pth"


STATES = [
    Kind("the original's names", original_names, load_state(), SAME),
    Kind("a compiled model's names", original(prefix="_orig_mod."), load_state(), SAME),
    Kind("a name before all others", original(prefix="detector.net."), load_state(), SAME),
    Kind("nothing that fits", another_model, load_state(strict=False), Refused("None of 1 names")),
]


@each(STATES)
def test_state_dicts(kind: Kind, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    try_out(kind, tmp_path, caplog)


def test_the_table_would_notice_a_wrong_value(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with pytest.raises(AssertionError):
        try_out(Kind("other classes", own, load(id2label={0: "owl"}), SAME), tmp_path, caplog)
    assert issubclass(Holds, Refused)
