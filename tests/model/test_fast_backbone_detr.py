"""The folded form of the backbone gives the numbers of the plain one, whatever happens to the weights."""

import copy
import io

import pytest
import timm
import torch
from torch import nn

from detr_hf import DETRForObjectDetection
from detr_hf.model.backbone_detr import Backbone, FrozenBatchNorm2d, freeze_batch_norms
from detr_hf.model.fast_backbone_detr import InferenceBody, find_pairs, logger
from detr_hf.model.fast_blocks_detr import FusedResidualBlock, FusedStem

from ..conftest import padded_batch, randomise_frozen_statistics, tiny_config, tiny_model

pytestmark = pytest.mark.processor

PIXELS = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def small_backbone(**changes) -> Backbone:
    torch.manual_seed(0)
    backbone = Backbone(tiny_config(**changes)).eval()
    randomise_frozen_statistics(backbone)
    return backbone


def folded_form(backbone: Backbone) -> nn.Module:
    with torch.no_grad():
        return backbone.inference_body.of(backbone.body, PIXELS)


def both_forms_differ_by(backbone: Backbone, pixels: torch.Tensor = PIXELS) -> float:
    """Returns the largest difference relative to the plain form, which runs when gradients are on."""
    plain = backbone(pixels, None)[-1][0].detach()
    with torch.no_grad():
        folded = backbone(pixels, None)[-1][0]
    return ((plain - folded).abs().max() / plain.abs().max()).item()


def norms(module: nn.Module) -> int:
    return sum(type(part) is FrozenBatchNorm2d for part in module.modules())


@pytest.fixture
def backbone() -> Backbone:
    return small_backbone()


@pytest.mark.parametrize(
    ("name", "left"),
    [("resnet18", 0), ("resnet50", 0), ("efficientnet_lite0", 0), ("seresnet50", 0), ("regnetx_002", 0)],
)
def test_every_norm_behind_a_convolution_is_folded_and_the_features_stay(name, left):
    backbone = small_backbone(backbone=name)
    before = norms(backbone.body)
    assert both_forms_differ_by(backbone) < 2e-5
    assert norms(folded_form(backbone)) == left < before == norms(backbone.body)


def test_a_norm_that_reads_no_convolution_of_its_own_is_left_alone():
    backbone = small_backbone(backbone="densenet121")  # its norms read concatenated features
    assert both_forms_differ_by(backbone) < 2e-5
    assert 0 < norms(folded_form(backbone)) < norms(backbone.body)


@pytest.mark.parametrize("name", ["convnext_atto", "swin_tiny_patch4_window7_224"])
def test_a_backbone_without_batch_norm_is_not_changed(name):
    backbone = small_backbone(backbone=name)
    assert both_forms_differ_by(backbone, torch.randn(1, 3, 224, 224)) < 2e-5


class Reader(nn.Module):
    """A convolution whose output is read twice, and one that is called twice."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.norms = nn.ModuleList(FrozenBatchNorm2d(3) for _ in range(3))

    def forward(self, x):
        x = self.norms[0](self.convs[0](x))
        raw = self.convs[1](x)
        x = self.norms[1](raw) + raw
        return [self.norms[2](self.convs[2](self.convs[2](x)))]


def test_only_a_convolution_that_is_read_by_its_norm_alone_is_paired():
    assert find_pairs(Reader(), FrozenBatchNorm2d, PIXELS) == [("convs.0", "norms.0")]


# ------------------------------------------------------------------------------------------------- weights that change


def changes() -> dict:
    """Ways in which weights change."""

    def load(backbone):
        other = small_backbone()
        for tensor in (*other.parameters(), *other.buffers()):
            tensor.data.add_(0.03)
        backbone.load_state_dict(other.state_dict())

    def edit_buffer(backbone):
        backbone.body.layer2[0].bn1.running_mean.add_(0.5)

    def edit_weight(backbone):
        with torch.no_grad():
            backbone.body.layer3[0].conv2.weight.mul_(1.5)

    def edit_one_value(backbone):
        with torch.no_grad():
            backbone.body.conv1.weight[0, 0, 3, 3] = 1.0

    def edit_through_data(backbone):
        backbone.body.layer3[0].conv2.weight.data.mul_(1.5)

    def edit_buffer_through_data(backbone):
        backbone.body.layer2[0].bn1.running_var.data[3] = 9.0

    def replace_parameter(backbone):
        conv = backbone.body.layer1[0].conv1
        conv.weight = nn.Parameter(conv.weight.detach() * 2, requires_grad=False)

    def replace_data(backbone):
        conv = backbone.body.layer1[0].conv1
        conv.weight.data = conv.weight.data * 2

    def replace_buffer(backbone):
        backbone.body.bn1.bias = backbone.body.bn1.bias + 1

    def replace_module(backbone):
        backbone.body.layer4[0].conv1 = copy.deepcopy(backbone.body.layer4[0].conv1)
        nn.init.normal_(backbone.body.layer4[0].conv1.weight, std=0.05)

    def round_trip(backbone):
        backbone.to(torch.bfloat16).to(torch.float32)

    def foreach_step(backbone):
        torch._foreach_mul_([parameter.data for parameter in backbone.parameters()], 1.1)

    def optimise(backbone):
        backbone.train()
        trainable = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=0.05, fused=True)
        backbone(PIXELS, None)[-1][0].square().mean().backward()
        optimizer.step()
        backbone.eval()

    return {change.__name__: change for change in list(locals().values())}


@pytest.mark.parametrize("change", changes().values(), ids=changes().keys())
def test_the_folded_form_follows_every_change_of_the_weights(backbone, change):
    with torch.no_grad():
        before = backbone(PIXELS, None)[-1][0]
    change(backbone)
    with torch.no_grad():
        after = backbone(PIXELS, None)[-1][0]
    assert not torch.equal(before, after)  # the change matters
    assert both_forms_differ_by(backbone) < 5e-5


def test_nothing_is_made_again_without_a_change(backbone):
    first = folded_form(backbone)
    assert first is not None and folded_form(backbone) is first
    backbone(PIXELS, None)  # the plain form
    assert folded_form(backbone) is first


def test_the_copy_shares_what_is_not_folded_and_frees_its_memory():
    backbone = small_backbone(backbone="seresnet50")
    folded = folded_form(backbone)
    gate, kept = (body.get_submodule("layer1.0.se.fc1") for body in (backbone.body, folded))
    assert gate.weight is kept.weight
    backbone.train()
    assert backbone.inference_body._made is None


def test_conversion_of_the_model_frees_the_copy_at_once(backbone):
    folded_form(backbone)
    backbone.to(torch.bfloat16)
    assert backbone.inference_body._made is None
    assert folded_form(backbone).layer4[0].last.weight.dtype == torch.bfloat16


# -------------------------------------------------------------------------------------------- what must not be noticed


def test_state_modules_and_copies_hold_nothing_of_it(model):
    names, modules = list(model.state_dict()), [name for name, _ in model.named_modules()]
    with torch.no_grad():
        model(PIXELS)
    assert list(model.state_dict()) == names and [name for name, _ in model.named_modules()] == modules
    twin = copy.deepcopy(model)
    assert twin.backbone[0].inference_body._made is None
    with torch.no_grad():
        twin.backbone[0].body.conv1.weight.zero_()
        assert not torch.equal(twin(PIXELS).logits, model(PIXELS).logits)


def test_a_pickled_model_is_as_small_as_before_and_works(model):
    def pickled() -> io.BytesIO:
        file = io.BytesIO()
        torch.save(model, file)
        return file

    before = pickled().tell()
    with torch.no_grad():
        expected = model(PIXELS).logits
    file = pickled()
    assert file.tell() < before * 1.01
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    with torch.no_grad():
        assert torch.equal(loaded(PIXELS).logits, expected)


def test_saved_and_loaded_after_inference(model, tmp_path):
    with torch.no_grad():
        expected = model(PIXELS).logits
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(DETRForObjectDetection.from_pretrained(tmp_path).eval()(PIXELS).logits, expected)


def test_hooks_on_the_backbone_are_called(backbone):
    folded_form(backbone)
    seen = []
    handle = backbone.body.layer2.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    with torch.no_grad():
        backbone(PIXELS, None)
    assert len(seen) == 1
    handle.remove()
    assert folded_form(backbone) is not None


def test_gradients_flow_in_eval_mode(model):
    pixels = PIXELS.clone().requires_grad_()
    model(pixels).logits.sum().backward()
    assert pixels.grad.abs().sum() > 0
    assert model.backbone[0].inference_body._made is None


@pytest.mark.parametrize("masked", [False, True])
def test_the_model_gives_the_same_with_and_without_gradients(model, masked):
    pixels, mask = padded_batch()
    batch = {"pixel_values": pixels, "pixel_mask": mask if masked else None}
    plain = model(**batch)
    for without_gradients in (torch.no_grad(), torch.inference_mode()):
        with without_gradients:
            folded = model(**batch)
        assert (plain.logits - folded.logits).abs().max() < 1e-5
        assert (plain.pred_boxes - folded.pred_boxes).abs().max() < 1e-5


def test_autocast_runs_and_agrees(model):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low = model(PIXELS)
    with torch.no_grad():
        assert (low.logits.float() - model(PIXELS).logits).abs().max() < 0.1


def test_a_model_made_in_inference_mode_runs_its_own_modules_and_says_so(caplog):
    logger.warning_once.cache_clear()
    with torch.inference_mode(), caplog.at_level("WARNING"):
        backbone = small_backbone()
        assert backbone.inference_body.of(backbone.body, PIXELS) is None  # no version counters there
        backbone(PIXELS, None)
    assert "inside torch.inference_mode()" in caplog.text


def test_the_meta_device_and_fake_inputs_run_the_plain_form():
    with torch.device("meta"):
        model = DETRForObjectDetection(tiny_config()).eval()
    with torch.no_grad():
        assert model(PIXELS.to("meta")).logits.shape == (1, 7, 4)


def test_export_sees_the_plain_form(model):
    with torch.no_grad():
        expected = model(PIXELS).logits
        program = torch.export.export(model, (PIXELS,), strict=False)
        assert torch.allclose(program.module()(PIXELS).logits, expected, atol=1e-5)


def test_threads_share_one_copy(backbone):
    from concurrent.futures import ThreadPoolExecutor

    with torch.no_grad():
        expected = backbone.body(PIXELS)[-1]

    def run(_):
        with torch.no_grad():
            return backbone(PIXELS, None)[-1][0]

    with ThreadPoolExecutor(4) as pool:
        assert all(torch.allclose(found, expected, atol=1e-4) for found in pool.map(run, range(8)))


# ------------------------------------------------------------------------------------------------------- fused kernels


def test_plain_residual_blocks_are_fused_and_others_are_not():
    plain, gated = (folded_form(small_backbone(backbone=name)) for name in ("resnet50", "seresnet50"))
    assert sum(isinstance(part, FusedResidualBlock) for part in plain.modules()) == 16
    assert isinstance(plain.conv1, FusedStem)
    assert not any(isinstance(part, FusedResidualBlock) for part in gated.modules())


@pytest.mark.parametrize("changes", [{"backbone": "resnet50"}, {"backbone_kwargs": {"channels": [64] * 4}}])
def test_a_block_overwrites_only_what_nobody_else_reads(changes):
    """The second backbone's stages begin without a downsampling where the stride is 1, on a feature map as it is."""
    torch.manual_seed(0)
    backbone = Backbone(tiny_config(dilation=True, **changes), return_interm_layers=True).eval()
    randomise_frozen_statistics(backbone)
    pixels = PIXELS.clone()
    with torch.no_grad():
        expected = backbone.body(pixels)
        assert any(getattr(block, "owns_input", False) for block in folded_form(backbone).modules())
        for _ in range(2):
            for (found, _), wanted in zip(backbone(pixels, None), expected, strict=True):
                assert (found - wanted).abs().max() < 2e-5 * wanted.abs().max()
    assert torch.equal(pixels, PIXELS)


def test_residual_blocks_take_no_new_memory_for_what_they_give():
    backbone = small_backbone(backbone="resnet50")
    block = next(block for block in folded_form(backbone).modules() if getattr(block, "owns_input", False))
    x = torch.randn(1, 256, 8, 8).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = block.block(x.clone())
        given = block(x)
    assert given.data_ptr() == x.data_ptr()
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)


def test_without_fused_kernels_the_numbers_are_the_same(backbone, monkeypatch):
    with torch.no_grad():
        fused = backbone(PIXELS, None)[-1][0]
        monkeypatch.setattr("detr_hf.model.fast_kernels_detr.fused_kernels", lambda device, dtype: None)
        assert torch.allclose(backbone(PIXELS, None)[-1][0], fused, atol=1e-4)


@pytest.mark.parametrize("size", [(1, 3, 64, 96), (2, 3, 101, 75), (1, 3, 33, 35)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stem_in_bands_gives_what_it_gives_at_once(size, dtype, monkeypatch):
    torch.manual_seed(0)
    stem = FusedStem(nn.Conv2d(3, 16, 7, 2, 3), nn.MaxPool2d(3, 2, 1)).to(dtype, memory_format=torch.channels_last)
    x = torch.randn(size).to(dtype).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = stem.pool(stem.conv(x).relu())
        whole = stem(x)
        for band in (2**30, 20_000, 4_000, 1):
            monkeypatch.setattr("detr_hf.model.fast_blocks_detr.BAND", band)
            found = stem(x)
            assert found.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(found, whole)
    torch.testing.assert_close(whole, expected)


def test_a_stem_whose_own_result_is_wanted_does_not_pool(monkeypatch):
    body = timm.create_model("resnet18", features_only=True, out_indices=(0, 4)).requires_grad_(False)
    freeze_batch_norms(body.eval(), keep_values=True)
    body.eval()
    with torch.no_grad():
        expected = body(PIXELS)
        folded = InferenceBody(FrozenBatchNorm2d).of(body, PIXELS)
        assert folded.conv1.pool is None
        for found, wanted in zip(folded(PIXELS), expected, strict=True):
            assert (found - wanted).abs().max() < 2e-5 * wanted.abs().max()
    assert folded_form(small_backbone(backbone="resnet18")).conv1.pool is not None


def test_large_feature_maps_lie_in_kept_memory_and_stay_while_somebody_holds_them(monkeypatch):
    """Also those that are returned: two calls with other pictures must not share a map."""
    monkeypatch.setattr("detr_hf.model.kept_memory_detr.LARGE", 1)
    torch.manual_seed(0)
    backbone = Backbone(tiny_config(backbone="resnet50"), return_interm_layers=True).eval()
    randomise_frozen_statistics(backbone)
    pictures = torch.randn(3, 1, *PIXELS.shape[1:], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = [backbone.body(picture) for picture in pictures]
        memory = backbone.inference_body.memory
        found = [[features for features, _ in backbone(picture, None)] for picture in pictures]
        for one, other in zip(found, expected, strict=True):
            for features, wanted in zip(one, other, strict=True):
                assert (features - wanted).abs().max() < 2e-5 * wanted.abs().max()
        held = len(memory._blocks)
        del found, one, features
        addresses = {block.data_ptr() for block in memory._blocks}
        maps = [features for features, _ in backbone(PIXELS, None)]
    assert len(memory._blocks) <= held
    assert maps[0].data_ptr() in addresses


def test_the_holder_forgets_and_copies_empty():
    holder = InferenceBody(FrozenBatchNorm2d)
    holder._made = ("something", None)
    assert copy.deepcopy(holder)._made is None
    holder.forget()
    assert holder._made is None


def test_models_with_other_seeds_do_not_share_anything():
    one, two = tiny_model(seed=0), tiny_model(seed=1)
    with torch.no_grad():
        assert not torch.equal(one(PIXELS).logits, two(PIXELS).logits)
