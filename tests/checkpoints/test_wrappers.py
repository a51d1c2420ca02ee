"""Weights as training tools save them: under a key, with prefixes of wrappers; read, or the prefix is named."""

import itertools
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from detr_hf import Detector, DETRForObjectDetection, DETRModel
from detr_hf.checkpoints.conversion import convert
from detr_hf.checkpoints.layouts import transformers_from_own
from detr_hf.checkpoints.wrappers import without_wrappers

from .foreign import assert_same_tensors, narrow_model, original_state_dict, panoptic_extras


def prefixed(prefix: str):
    return lambda tensors: {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def inside(*modules: str):
    """Returns a renaming that puts torch's wrapper before the whole and before these modules."""
    wrapper, *modules = modules

    def rename(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        for module in modules:
            tensors = {name.replace(f"{module}.", f"{module}.{wrapper}."): value for name, value in tensors.items()}
        return {f"{wrapper}.{name}": value for name, value in tensors.items()}

    return rename


WRAPPED = {  # what is taken off, and how it comes there
    "'model.'": prefixed("model."),  # Lightning, for the attribute that holds the model
    "'net.'": prefixed("net."),
    "'lit.detector.'": prefixed("lit.detector."),
    "'module.'": prefixed("module."),  # DDP, DeepSpeed
    "'ema_model.'": prefixed("ema_model."),
    "'_orig_mod.'": prefixed("_orig_mod."),  # torch.compile
    "'module.' and '_orig_mod.'": prefixed("module._orig_mod."),
    "'model.module.' and '_orig_mod.'": prefixed("model._orig_mod.module."),
    "'_fsdp_wrapped_module.'": inside("_fsdp_wrapped_module", "transformer", "class_embed", "model"),
    "'_checkpoint_wrapped_module.'": inside("_checkpoint_wrapped_module", "encoder", "decoder"),
}
FILES = {
    "Lightning": lambda weights: {
        "state_dict": prefixed("model.")(weights),
        "epoch": 3,
        "hyper_parameters": {"lr": 1},
    },
    "timm, averaged": lambda weights: {"state_dict_ema": weights},
    "RT-DETR": lambda weights: {"ema": {"module": weights, "updates": 7}, "last_epoch": 1},
    "DeepSpeed": lambda weights: {"module": weights, "dp_world_size": 2},
    "AveragedModel": lambda weights: prefixed("module.")(weights) | {"n_averaged": torch.tensor(4)},
    "the original's criterion": lambda weights: {
        "state_dict": prefixed("model.")(weights) | {"criterion.empty_weight": torch.ones(4)}
    },
}


@pytest.fixture(scope="module")
def model() -> DETRForObjectDetection:
    return narrow_model()


@pytest.fixture(scope="module")
def layouts(model) -> dict[str, dict[str, Tensor]]:
    return {
        "own": model.state_dict(),
        "original": original_state_dict(model),
        "transformers": {transformers_from_own(name, False): tensor for name, tensor in model.state_dict().items()},
    }


def fresh_model(**changes) -> DETRForObjectDetection:
    return DETRForObjectDetection(narrow_model(**changes).config)


def load(path: Path) -> DETRForObjectDetection:
    return DETRForObjectDetection.from_pretrained(path, nheads=4, dilation=False)


@pytest.mark.parametrize("layout", ["own", "original", "transformers"])
@pytest.mark.parametrize("taken", WRAPPED)
def test_names_are_the_same_without_wrappers(layouts, taken, layout):
    assert without_wrappers(WRAPPED[taken](layouts[layout]), "weights.pt").keys() == layouts[layout].keys()


@pytest.mark.parametrize(("taken", "layout"), [*zip(WRAPPED, itertools.cycle(["own", "original", "transformers"]))])
def test_what_stands_before_all_names_is_taken_off_and_said(model, layouts, tmp_path, caplog, taken, layout):
    torch.save(WRAPPED[taken](layouts[layout]), tmp_path / "weights.pt")
    with caplog.at_level(logging.WARNING):
        assert_same_tensors(load(tmp_path / "weights.pt").state_dict(), model.state_dict())
    assert f"weights.pt: {taken} of a wrapper was taken off the names" in caplog.text


@pytest.mark.parametrize("tool", FILES)
def test_the_weights_are_found_in_what_a_tool_writes(model, layouts, tmp_path, tool):
    torch.save(FILES[tool](layouts["original"]), tmp_path / "last.ckpt")
    assert_same_tensors(load(tmp_path / "last.ckpt").state_dict(), model.state_dict())


def test_averaged_weights_beside_others_are_mentioned(model, layouts, tmp_path, caplog):
    torch.save({"model": layouts["original"], "ema": prefixed("x.")(layouts["original"])}, tmp_path / "last.pth")
    load(tmp_path / "last.pth")
    assert "'model' is read; it holds averaged weights as well, under 'ema'" in caplog.text


def test_every_road_reads_them(model, layouts, tmp_path):
    torch.save(prefixed("module.")(layouts["own"]), tmp_path / "weights.pt")
    convert(tmp_path / "weights.pt", tmp_path / "folder", nheads=4, dilation=False)
    for loaded in (load(tmp_path / "folder"), Detector.from_pretrained(tmp_path / "folder", device="cpu").model):
        assert torch.equal(loaded.query_embed.weight, model.query_embed.weight)


@pytest.mark.parametrize("layout", ["own", "original"])
def test_a_folder_of_ours_with_wrapped_or_packed_names_is_read(model, layouts, tmp_path, layout):
    model.save_pretrained(tmp_path)
    weights = {name: tensor.contiguous() for name, tensor in layouts[layout].items()}
    save_file(prefixed("_orig_mod.")(weights), tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_same_tensors(DETRForObjectDetection.from_pretrained(tmp_path).state_dict(), model.state_dict())
    assert len(load_file(tmp_path / "model.safetensors")) == len(weights)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda own: prefixed("online_model.")(own) | prefixed("ema_model.")(own), "'ema_model.' and 'online_model.'"),
        (lambda own: own | prefixed("teacher.")(own), r"tensors that no DETR has|beyond what the model has"),
        (lambda own: {"_fsdp_wrapped_module._flat_param": torch.zeros(9)}, "FULL_STATE_DICT"),
        (lambda own: {"optimizer": {"state": {}}}, "holds no weights"),
    ],
)
def test_what_is_not_one_model_is_refused_with_its_prefixes(layouts, tmp_path, content, words):
    torch.save(content(layouts["own"]), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=words):
        load(tmp_path / "weights.pt")


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("layout", ["own", "original", "transformers"])
def test_load_state_dict_takes_every_layout(model, layouts, layout, strict):
    fresh = fresh_model()
    result = fresh.load_state_dict(prefixed("module.")(layouts[layout]), strict=strict)
    assert_same_tensors(fresh.state_dict(), model.state_dict())
    assert not result.missing_keys and not result.unexpected_keys


def test_load_state_dict_without_the_head_as_the_original_is_fine_tuned(model, layouts):
    """`del state_dict["class_embed.weight"]`, then `strict=False`."""
    cut = {name: tensor for name, tensor in layouts["original"].items() if not name.startswith("class_embed")}
    fresh = narrow_model(id2label={0: "owl"})
    assert fresh.load_state_dict(cut, strict=False).missing_keys == ["class_embed.weight", "class_embed.bias"]
    assert torch.equal(fresh.query_embed.weight, model.query_embed.weight)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("wrong", [lambda own: {"model": own}, lambda own: {"encoder.x": torch.zeros(1)}])
def test_load_state_dict_never_loads_nothing_without_a_word(layouts, wrong, strict):
    with pytest.raises(RuntimeError, match="from_pretrained"):
        narrow_model().load_state_dict(wrong(layouts["own"]), strict=strict)


def test_load_state_dict_of_other_shapes_or_a_mask_head_names_from_pretrained(layouts):
    with pytest.raises(RuntimeError, match=r"size mismatch[\s\S]*from_pretrained"):
        narrow_model(num_queries=9).load_state_dict(layouts["original"])
    with pytest.raises(RuntimeError, match=r"mask_head\.lay1\.weight[\s\S]*from_pretrained"):
        narrow_model().load_state_dict(prefixed("detr.")(layouts["original"]) | panoptic_extras())


@pytest.mark.parametrize("layout", ["own", "original", "transformers"])
def test_a_state_dict_that_is_given_to_from_pretrained_is_read_and_checked(model, layouts, layout):
    loaded = DETRForObjectDetection.from_pretrained(None, config=model.config, state_dict=layouts[layout])
    assert_same_tensors(loaded.state_dict(), model.state_dict())
    cut = {name: value for name, value in layouts[layout].items() if "bbox" not in name}
    with pytest.raises(ValueError, match="The state dict lacks 6 tensors"):
        DETRForObjectDetection.from_pretrained(None, config=model.config, state_dict=cut)


def test_the_base_model_reads_a_wrapped_detector(model, layouts, tmp_path):
    torch.save(prefixed("net.")(layouts["transformers"]), tmp_path / "weights.pt")
    base = DETRModel.from_pretrained(tmp_path / "weights.pt", nheads=4, dilation=False)
    assert torch.equal(base.query_embed.weight, model.query_embed.weight)
