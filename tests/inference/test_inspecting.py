"""`inspect_model`: its lines add up to the model, say what hooks see, and leave the model as it was."""

import math
import time
import xml.etree.ElementTree as ElementTree
from functools import cache

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from detr_hf import Detector, DETRForObjectDetection, DETRForSegmentation, DETRImageProcessor, DETRModel, inspect_model
from detr_hf.model import PRESETS

from ..conftest import tiny_config

NARROW = {"backbone_kwargs": {"channels": (16, 16, 24, 32), "layers": (1, 1, 1, 1)}}
PRECISE = PRESETS["precise"] | {"dim_feedforward": 64, "num_queries": 7, "num_denoising": 0}
KINDS = {
    "plain": {},
    "DC5": {"dilation": True},
    "pre-norm": {"pre_norm": True, "position_embedding": "learned", "reference_points": True},
    "precise": PRECISE,
    "masks": {},
}
LAYER = ["attention", "add & norm", "feed-forward", "add & norm"]
DECODER_LAYER = [*LAYER[:2], "cross-attention", "add & norm", *LAYER[2:]]
BACKBONE = ["stem", "layer1", "layer2", "layer3", "layer4", "position encoding", "Joiner"]
HEIGHT, WIDTH = 33, 49


@cache
def model_of(kind: str, **changes):
    torch.manual_seed(0)
    model_class = DETRForSegmentation if kind == "masks" else DETRForObjectDetection
    return model_class(tiny_config(**{**NARROW, **KINDS[kind], "dec_layers": 2, **changes})).eval()


def padded_pixels() -> tuple[torch.Tensor, torch.Tensor]:
    pixel_values = torch.randn(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    pixel_mask = torch.ones(2, HEIGHT, WIDTH)
    pixel_mask[1, :, 20:] = 0
    return pixel_values, pixel_mask


def modules_of(model) -> dict[tuple[str, str], str]:
    """Names of modules whose outputs are those of steps."""
    layer = model.transformer.encoder.layers[0]
    last = "2" if not layer.pre_norm else "1"
    found = {("build_backbone", f"layer{number}"): f"backbone.0.body.layer{number}" for number in (1, 2, 3, 4)}
    found |= {("build_backbone", "position encoding"): "backbone.1", ("input_proj", "input_proj"): "input_proj"}
    found |= {("encoder layer 1", "attention"): "transformer.encoder.layers.0.self_attn"}
    found |= {("encoder layer 1", "feed-forward"): "transformer.encoder.layers.0.linear2"}
    found |= {("decoder layer 2", "cross-attention"): "transformer.decoder.layers.1.multihead_attn"}
    found |= {("encoder layer 2", "add & norm"): f"transformer.encoder.layers.1.norm{last}"}
    found |= {("class_embed", "class_embed"): "class_embed", ("Transformer", "query_embed"): "query_embed"}
    if model.config.box_queries:
        del found["encoder layer 2", "add & norm"]
    if model.has_mask_head:
        found |= {("mask head", "mask_head"): "mask_head", ("mask head", "bbox_attention"): "bbox_attention"}
    return found


def check_letters(found, config) -> None:
    """Every letter stands for its number."""
    (cells_hw,) = {step.shape[2:] for step in found.steps if step.name == "input_proj"}
    known = {"B": {2}, "B or 1": {1, 2}, "D": {config.hidden_dim}, "Q": {config.num_queries}, "M": {config.nheads}}
    known |= {"h": {cells_hw[0]}, "w": {cells_hw[1]}, "K + 1": {config.num_labels + 1}, "n": {config.num_queries}}
    known |= {f"H/{n}": {math.ceil(HEIGHT / n)} for n in (2, 4, 8, 16)}
    known |= {f"W/{n}": {math.ceil(WIDTH / n)} for n in (2, 4, 8, 16)}
    known |= {"D/8": {config.hidden_dim // 8}, "1": {1}, "2": {2}, "4": {4}}
    for step in found.steps:
        letters = step.letters.split(", ")
        assert len(letters) == len(step.shape), step
        for letter, number in zip(letters, step.shape, strict=True):
            assert letter in ("C", "S") or number in known[letter], step


@pytest.mark.parametrize("kind", KINDS)
def test_the_lines_are_the_model_and_what_hooks_see(kind):
    model, inputs = model_of(kind), padded_pixels()
    with torch.inference_mode():
        before = model(*inputs)
    kept = model.backbone[0].inference_body._made
    model.transformer.train()

    found = inspect_model(model, pixel_values=inputs[0], pixel_mask=inputs[1])

    assert model.transformer.encoder.layers[0].training and not model.class_embed.training
    model.transformer.eval()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with torch.inference_mode():
        after = model(*inputs)
    assert kept is not None and model.backbone[0].inference_body._made is kept
    assert all(torch.equal(before[name], after[name]) for name in before)

    parameters = list(model.parameters())
    assert found.total["trainable"] == sum(each.numel() for each in parameters if each.requires_grad)
    assert found.total["frozen"] == sum(each.numel() for each in parameters if not each.requires_grad) > 0
    seen, names = {}, modules_of(model)
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: seen.update(
                {name: tuple((output[0] if isinstance(output, tuple) else output).shape)}
            )
        )
        for name in names.values()
    ]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*inputs)
    for hook in hooks:
        hook.remove()
    assert sum(step.flop for step in found.steps) - found.fused_attention_flop == counter.get_total_flops()
    if kind == "plain":  # where nothing is fused, torch's counter leaves nothing out
        model.set_attn_implementation("eager")
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(*inputs)
        model.set_attn_implementation("sdpa")
        assert sum(step.flop for step in found.steps) == counter.get_total_flops()
    for (part, name), module in names.items():
        shapes = {step.shape for step in found.steps if step.part[-1] == part and step.name == name}
        assert seen[module] in shapes, name
    assert {"boxes": tuple(before.pred_boxes.shape)}.items() <= {step.name: step.shape for step in found.steps}.items()
    check_letters(found, model.config)
    assert sum(step.flop for step in found.steps if step.name == "layer2") > 0
    assert all(step.seconds > 0 for step in found.steps if step.flop)


@pytest.mark.parametrize("kind", ["plain", "pre-norm", "precise", "masks"])
def test_the_steps_come_as_the_construction_is_taught(kind):
    model = model_of(kind)
    found = inspect_model(model, size_hw=(64, 64))
    encoder, decoder, ends = list(LAYER), list(DECODER_LAYER), ([], ["query_embed"], ["norm of the decoder"])
    if kind == "pre-norm":
        encoder, decoder = (["norm", *layer[:-1], "add"] for layer in (encoder, decoder))
        ends = (["norm of the encoder"], ["query_embed", "refpoint_embed"], ends[2])
    if kind == "precise":
        ends = (["levels", "tokens of all levels", "choice of queries"], ["query_embed", "positions of boxes"])
        ends = (*ends, ["moves of boxes", "norm of the decoder"])
    layers = len(model.transformer.encoder.layers), len(model.transformer.decoder.layers)
    expected = [*BACKBONE, "input_proj", *encoder * layers[0], *ends[0], *ends[1], *decoder * layers[1], *ends[2]]
    expected += ["class_embed", "bbox_embed", "boxes"]
    expected += ["adapters", "bbox_attention", "mask_head", "masks"] * (kind == "masks")
    assert [step.name for step in found.steps] == expected
    in_table, in_drawing = str(found), found.to_svg()
    for name in ("build_backbone", "Transformer", "encoder layer 1", *expected):
        assert name in in_table
    texts = [element.text for element in ElementTree.fromstring(in_drawing).iter("{http://www.w3.org/2000/svg}text")]
    assert {name.replace("add &amp; norm", "add & norm") for name in expected} <= set(texts)
    assert "1×32×2×2" in texts and f"Transformer: decoder, {layers[1]} layers" in texts
    assert "<script" not in in_drawing and in_drawing.count("http") == 1  # the name of SVG itself
    files = {step.name: step.file for step in found.steps}
    of_boxes = "box_" * (kind == "precise")  # the decoder's, which is the last of that name
    assert files["attention"] == f"detr_hf/model/{of_boxes}attention_detr.py"
    assert files["layer4"] == "timm/models/resnet.py"


def test_what_does_not_run_in_inference_is_counted_none_the_less():
    model = model_of("plain", num_query_groups=2)
    aids = inspect_model(model, size_hw=(64, 64)).steps[-1]
    assert (aids.part, aids.name, aids.shape) == (("besides",), "training_aids", None)
    assert aids.trainable == sum(each.numel() for each in model.training_aids.parameters()) > 0


def test_a_detector_prepares_the_picture():
    processor = DETRImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    detector = Detector(model_of("plain"), processor)
    assert inspect_model(detector, Image.new("RGB", (64, 32))).settings["shape"] == [1, 3, 48, 96]


def test_what_cannot_be_followed_is_answered_with_a_sentence(tmp_path):
    model, image = model_of.__wrapped__("plain"), Image.new("RGB", (8, 8))
    (tmp_path / "model.onnx").touch()
    with pytest.raises(ValueError, match=r"model\.onnx is an exported model.*inspect the checkpoint"):
        inspect_model(tmp_path / "model.onnx")
    base = DETRModel(model.config)
    with pytest.raises(ValueError, match="This DETRModel is a base model, without class_embed and bbox_embed"):
        inspect_model(base)
    base.save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="base is a base model"):
        inspect_model(tmp_path / "base")
    with pytest.raises(TypeError, match="this is a Linear"):
        inspect_model(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"give Detector\(model, image_processor\), or size_hw"):
        inspect_model(model, image)
    with pytest.raises(ValueError, match="one of image, size_hw and pixel_values"):
        inspect_model(model, image, size_hw=(64, 64))
    with pytest.raises(ValueError, match=r"size_hw is \(0, 64\); expected \(height, width\)"):
        inspect_model(model, size_hw=(0, 64))
    model.bbox_embed.forward = model.bbox_embed.forward  # a patch is still a call
    inspect_model(model, size_hw=(64, 64))
    model.predict = lambda states, reference=None: DETRForObjectDetection.predict(model_of("plain"), states)
    with pytest.raises(ValueError, match="class_embed, bbox_embed: not called"):
        inspect_model(model, size_hw=(64, 64))
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["tf_efficientnet_lite0", "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"])
def test_other_backbones_show_their_stages_or_are_one_step(backbone):
    of_size = {} if "lite" in backbone else {"backbone_kwargs": {"img_size": 64}}
    model = DETRForObjectDetection(tiny_config(backbone=backbone, **of_size)).eval()
    found = inspect_model(model, size_hw=(64, 64))
    stages = [step for step in found.steps if step.part == ("build_backbone",)][:-2]
    own = sum(each.numel() for each in model.backbone[0].parameters())
    assert sum(step.trainable + step.frozen for step in stages) == own
    assert len(stages) == {"tf_": 8, "swi": 5, "vit": 1}[backbone[:3]]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 64, 64))
    assert sum(step.flop for step in found.steps) - found.fused_attention_flop == counter.get_total_flops()


@pytest.mark.slow
def test_it_takes_less_than_two_forward_passes_and_a_second():
    model = DETRForObjectDetection(tiny_config(backbone="resnet50", hidden_dim=256, nheads=8)).eval()
    pixel_values = torch.randn(1, 3, 480, 640)
    plain, inspected = [], []
    for _ in range(3):
        start = time.process_time()
        with torch.inference_mode():
            model(pixel_values)
        middle = time.process_time()
        inspect_model(model, pixel_values=pixel_values)
        plain.append(middle - start), inspected.append(time.process_time() - middle)
    assert min(inspected) < 2 * min(plain) + 1
