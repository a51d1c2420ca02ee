"""Masks beside transformers' `DetrForSegmentation`, and losses beside an independent writing of their definition."""

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import DetrConfig, DetrForSegmentation, TimmBackboneConfig

from detr_hf.model import DETRConfig, DETRForObjectDetection, DETRForSegmentation
from detr_hf.model.mask_loss_detr import PIXELS_AT_ONCE

from ..checkpoints.foreign import original_state_dict

SMALL = {"hidden_dim": 64, "enc_layers": 2, "dec_layers": 2, "dim_feedforward": 128, "num_queries": 7}


def small(**options) -> DETRForSegmentation:
    torch.manual_seed(0)
    config = DETRConfig(**{"backbone": "resnet18", "id2label": {0: "cat", 1: "dog", 2: "grass"}, **SMALL, **options})
    return with_statistics(DETRForSegmentation(config))


def with_statistics(model: torch.nn.Module) -> torch.nn.Module:
    """Returns the model with frozen norms that do something."""
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return model


def padded_batch(height: int = 120, width: int = 90) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    pixel_values = torch.randn(2, 3, height, width, generator=generator)
    pixel_mask = torch.ones(2, height, width, dtype=torch.long)
    pixel_mask[1, height * 2 // 3 :] = 0
    pixel_mask[1, :, width * 2 // 3 :] = 0
    return pixel_values * pixel_mask[:, None], pixel_mask


def labels_of(*counts: int, size_hw: tuple[int, int] = (120, 90)) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [
        {
            "class_labels": torch.randint(0, 3, (count,), generator=generator),
            "boxes": torch.rand(count, 4, generator=generator) * 0.4 + 0.1,
            "masks": torch.rand(count, *size_hw, generator=generator) > 0.5,
        }
        for count in counts
    ]


@pytest.fixture(scope="module", params=["resnet18", pytest.param("resnet50", marks=pytest.mark.slow)])
def theirs(request: pytest.FixtureRequest) -> DetrForSegmentation:
    torch.manual_seed(0)
    backbone = TimmBackboneConfig(backbone=request.param, out_indices=[1, 2, 3, 4], use_pretrained_backbone=False)
    sizes = {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128}
    config = DetrConfig(backbone_config=backbone, num_queries=7, num_labels=3, **sizes)
    return with_statistics(DetrForSegmentation(config).eval())


@pytest.mark.parametrize("size", [(120, 90), (97, 131)])
@pytest.mark.parametrize("with_gradients", [False, True])
def test_transformers_folder_gives_the_same_masks(
    theirs: DetrForSegmentation, size: tuple[int, int], with_gradients: bool, tmp_path: Path
):
    theirs.save_pretrained(tmp_path)
    ours = DETRForSegmentation.from_pretrained(tmp_path).eval()
    pixel_values, pixel_mask = padded_batch(*size)
    with torch.set_grad_enabled(with_gradients):
        expected, seen = theirs(pixel_values, pixel_mask), ours(pixel_values, pixel_mask)
    for name in ("logits", "pred_boxes", "pred_masks"):
        torch.testing.assert_close(seen[name], expected[name], atol=1e-4, rtol=1e-4)
    assert seen.image_sizes_hw.tolist() == [list(size), [size[0] * 2 // 3, size[1] * 2 // 3]]
    assert seen.padded_sizes_hw.tolist() == [list(size)] * 2


def test_there_and_back_again(tmp_path: Path):
    model, batch = small(nheads=8).eval(), padded_batch()
    theirs = model.to_transformers()
    assert type(theirs) is DetrForSegmentation
    with torch.no_grad():
        expected = model(*batch)
        torch.testing.assert_close(theirs(*batch).pred_masks, expected.pred_masks, atol=1e-4, rtol=1e-4)
        theirs.save_pretrained(tmp_path)
        back = DETRForSegmentation.from_pretrained(tmp_path).eval()
        torch.testing.assert_close(back(*batch).pred_masks, expected.pred_masks)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pre_norm": True, "nheads": 8}, "no masks with pre_norm"),
        ({"nheads": 4}, "multiple of 8, and they are 68"),
        ({"hidden_dim": 48, "nheads": 8}, "norm of 12 channels has 4 groups, there 8"),
    ],
)
def test_what_transformers_masks_cannot_be_is_refused(options: dict, words: str):
    with pytest.raises(ValueError, match=words):
        small(**options).to_transformers()


def test_either_class_reads_the_others_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    model = small().eval()
    pixel_values, pixel_mask = padded_batch()
    expected = model(pixel_values, pixel_mask)
    model.save_pretrained(tmp_path / "masks")
    detector = DETRForObjectDetection.from_pretrained(tmp_path / "masks").eval()
    assert torch.equal(detector(pixel_values, pixel_mask).logits, expected.logits)
    detector.save_pretrained(tmp_path / "boxes")
    again = DETRForSegmentation.from_pretrained(tmp_path / "boxes").eval()
    with pytest.raises(ValueError, match="masks would be random"):
        again(pixel_values, pixel_mask)
    assert torch.equal(again(pixel_values, pixel_mask, labels_of(1, 1)).pred_boxes, expected.pred_boxes)
    assert not DETRForSegmentation.from_pretrained(tmp_path / "masks").mask_head_is_new
    again.train()(pixel_values, pixel_mask, labels_of(1, 1))
    assert not again.mask_head_is_new
    columns = (again.config.hidden_dim, again.config.nheads)
    of_features, of_attention = again.mask_head.lay1.weight.detach().split(columns, dim=1)
    assert (of_attention.std() / of_features.std()).item() == pytest.approx(100, rel=0.1)


@pytest.mark.parametrize(
    "lost", ["mask_head.lay3.weight", "bbox_attention.k_linear.bias", "mask_head", "bbox_attention"]
)
def test_a_segmentation_checkpoint_without_a_part_of_its_head_is_refused(lost: str, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    small().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(lost)}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="it is not whole"):
        DETRForSegmentation.from_pretrained(tmp_path)


@pytest.mark.parametrize("options", [{}, {"pre_norm": True}, {"position_embedding": "learned", "dilation": True}])
def test_an_originals_file_gives_the_same_masks(options: dict, tmp_path: Path):
    """The original names the detector `detr.` and packs the attention's projections."""
    model = small(nheads=8, **options).eval()
    original = {
        name if name.startswith(("mask_head.", "bbox_attention.")) else f"detr.{name}": tensor
        for name, tensor in original_state_dict(model).items()
    }
    torch.save({"model": original}, tmp_path / "panoptic.pth")
    fields = {"nheads": 8, "dilation": False, "id2label": model.config.id2label, **options}
    loaded = DETRForSegmentation.from_pretrained(tmp_path / "panoptic.pth", **fields).eval()
    batch = padded_batch()
    torch.testing.assert_close(loaded(*batch).pred_masks, model(*batch).pred_masks)


def test_in_bfloat16_masks_stay_close():
    model, batch = small().eval(), padded_batch()
    with torch.no_grad():
        expected = model(*batch).pred_masks
        seen = model.to(torch.bfloat16)(batch[0].bfloat16(), batch[1]).pred_masks
    assert seen.dtype == torch.bfloat16
    assert (seen.float() - expected).square().mean().sqrt() < 5e-2 * expected.std()


def test_a_threshold_changes_no_mask_that_is_kept():
    model, batch = small().eval(), padded_batch()
    with torch.no_grad():
        every = model(*batch)
        scores = every.logits.softmax(-1)[..., :-1].amax(-1)
        threshold = scores.median().item()
        some = model(*batch, mask_score_threshold=threshold)
        model.config.mask_score_threshold = 1.0
        none = model(*batch)
    kept = scores > threshold
    assert 0 < kept.sum() < kept.numel() and none.pred_masks.eq(-100).all()
    torch.testing.assert_close(some.pred_masks[kept], every.pred_masks[kept], atol=1e-4, rtol=1e-4)
    assert some.pred_masks[~kept].eq(-100).all()


def independent_losses(logits: np.ndarray, wanted: np.ndarray, padded_hw: tuple[int, int]) -> tuple[float, float]:
    """Focal and dice loss of masks (n, h, w), in float64 and with a bilinear sampling of its own."""

    def stretch(line: np.ndarray, axis: int, size: int) -> np.ndarray:
        count = line.shape[axis]
        place = np.clip((np.arange(size) + 0.5) * count / size - 0.5, 0, count - 1)
        low = np.floor(place).astype(int)
        share = (place - low).reshape([-1 if i == axis else 1 for i in range(line.ndim)])
        high = np.minimum(low + 1, count - 1)
        return np.take(line, low, axis) * (1 - share) + np.take(line, high, axis) * share

    x = stretch(stretch(logits.astype(np.float64), 1, padded_hw[0]), 2, padded_hw[1])
    height, width = wanted.shape[1:]
    p, t = 1 / (1 + np.exp(-x[:, :height, :width])), wanted.astype(np.float64)
    right = p * t + (1 - p) * (1 - t)
    focal = np.where(t == 1, 0.25, 0.75) * (1 - right) ** 2 * -np.log(right)
    dice = 1 - (2 * (p * t).sum((1, 2)) + 1) / (p.sum((1, 2)) + t.sum((1, 2)) + 1)
    return focal.mean((1, 2)).sum(), dice.sum()


@pytest.mark.parametrize("on_padding", [False, True])
@pytest.mark.parametrize("counts", [(2, 1), (0, 3), (9, 1), (300, 2)])
def test_losses_equal_an_independent_writing(
    on_padding: bool, counts: tuple[int, int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(PIXELS_AT_ONCE, "cpu", 120 * 90 * 2)  # several groups
    model = small(mask_loss_on_padding=on_padding).eval()
    pixel_values, pixel_mask = padded_batch()
    labels = [*labels_of(counts[0]), *labels_of(counts[1], size_hw=(80, 60))]
    for label in labels:  # an empty mask, and one of a pixel
        label["masks"][:2] = False
        label["masks"][1:2, 5, 7] = True
    outputs = model(pixel_values, pixel_mask, labels)
    focal, dice, objects = 0.0, 0.0, 0
    for image, label in enumerate(labels):
        query, object_ = assignment(model, outputs, label, image)
        wanted = label["masks"][object_].numpy()
        if on_padding:
            wanted = np.pad(wanted, ((0, 0), (0, 120 - wanted.shape[1]), (0, 90 - wanted.shape[2])))
        sums = independent_losses(outputs.pred_masks[image, query].detach().numpy(), wanted, (120, 90))
        focal, dice, objects = focal + sums[0], dice + sums[1], objects + len(label["masks"])
    assert outputs.loss_dict["loss_mask"].item() == pytest.approx(focal / objects, rel=1e-5)
    assert outputs.loss_dict["loss_dice"].item() == pytest.approx(dice / objects, rel=1e-5)
    detector = DETRForObjectDetection.loss_of  # the boxes' part is the detector's own
    assert detector is DETRForSegmentation.loss_of


def assignment(model: DETRForSegmentation, outputs, label: dict[str, Tensor], image: int) -> tuple[Tensor, Tensor]:
    from detr_hf.model import PackedTargets

    targets = PackedTargets.from_list([label], 1, torch.device("cpu"))
    one = slice(image, image + 1)
    matches = model.criterion().matcher(outputs.logits[None, one], outputs.pred_boxes[None, one], targets)
    return matches.query[0], matches.object[0]


def test_the_head_runs_on_matched_queries_and_gives_the_gradient_of_all():
    model, (pixel_values, pixel_mask) = small(dropout=0.0), padded_batch()
    labels = labels_of(2, 1)
    gradients = {}
    for training in (True, False):
        model.train(training)
        model.zero_grad()
        outputs = model(pixel_values, pixel_mask, labels)
        (outputs.loss_dict["loss_mask"] + outputs.loss_dict["loss_dice"]).backward()
        gradients[training] = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        assert outputs.pred_masks.eq(-100).all(-1).all(-1).sum() == (11 if training else 0)
    assert len(gradients[True]) == len(gradients[False]) > 32
    for name, gradient in gradients[True].items():
        torch.testing.assert_close(gradient, gradients[False][name], atol=1e-5, rtol=1e-3)


def test_aids_have_no_masks():
    """Only the first group's queries, which are the model's own, and their matches."""
    aids = {"num_query_groups": 2, "num_denoising": 4, "encoder_aux_head": True}
    model, batch, labels = small(dropout=0.0, **aids), padded_batch(), labels_of(2, 1)
    plain, aided = model(*batch, labels), model.train()(*batch, labels)
    assert "loss_ce_dn" in aided.loss_dict and aided.pred_masks.shape == plain.pred_masks.shape
    for name in ("loss_mask", "loss_dice"):
        assert aided.loss_dict[name].item() == pytest.approx(plain.loss_dict[name].item(), rel=1e-4)


def test_an_object_without_a_mask_adds_its_box_and_no_mask_loss():
    """Whatever stands in its place; the rest is summed and divided by the number of masks that there are."""
    model, batch = small(dropout=0.0), padded_batch()
    labels = labels_of(2, 1)
    whole = model.train()(*batch, labels)
    query, object_ = assignment(model, whole, labels[0], 0)
    labels[0]["has_mask"] = object_.new_tensor([1, 0]).bool()
    expected = 0.0
    for image, label in enumerate(labels):
        query, object_ = assignment(model, whole, label, image)
        kept = label.get("has_mask", torch.ones(1).bool())[object_]
        logits = whole.pred_masks[image, query[kept]].detach().numpy()
        size = (120, 90) if image == 0 else (80, 60)
        expected += np.array(
            independent_losses(logits, label["masks"][object_[kept]].numpy()[:, : size[0], : size[1]], (120, 90))
        )
    for training in (True, False):
        for filler in (False, True):
            labels[0]["masks"][1] = filler
            seen = model.train(training)(*batch, labels).loss_dict
            for name in ("loss_bbox", "loss_giou", "loss_ce"):
                assert torch.equal(seen[name], whole.loss_dict[name]) or not training, name
            for name, value in zip(("loss_mask", "loss_dice"), expected / 2, strict=True):
                assert seen[name].item() == pytest.approx(value, rel=1e-5), (name, training)
    for label in labels:
        label["has_mask"] = torch.zeros(len(label["masks"]), dtype=torch.bool)
    outputs = model.train()(*batch, labels)
    outputs.loss.backward()
    assert outputs.loss_dict["loss_mask"] == 0 and outputs.loss_dict["loss_bbox"] == whole.loss_dict["loss_bbox"]
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert all(not p.grad.any() for name, p in model.named_parameters() if name.startswith("mask_head"))


def test_a_batch_without_objects_gives_every_weight_a_gradient():
    model, (pixel_values, pixel_mask) = small(), padded_batch()
    outputs = model.train()(pixel_values, pixel_mask, labels_of(0, 0))
    outputs.loss.backward()
    assert outputs.loss_dict["loss_mask"] == outputs.loss_dict["loss_dice"] == 0
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert all(not p.grad.any() for name, p in model.named_parameters() if name.startswith("mask_head"))


def test_a_frozen_detector_stays_what_it_is_and_the_head_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, (pixel_values, pixel_mask) = small(freeze_detector=True), padded_batch()
    model.freeze()
    labels = labels_of(2, 1)
    before = model.eval()(pixel_values, pixel_mask)
    learning = [p for p in model.parameters() if p.requires_grad]
    assert len(learning) == 32
    optimizer = torch.optim.AdamW(learning, lr=1e-3)
    first, folded = None, model.backbone[0].inference_body
    model.train()
    monkeypatch.setattr(folded, "_make", Mock(wraps=folded._make))
    for _ in range(20):
        outputs = model.train()(pixel_values, pixel_mask, labels)
        optimizer.zero_grad()
        outputs.loss.backward()
        optimizer.step()
        first = first or outputs.loss.item()
    assert outputs.loss.item() < first and not outputs.logits.requires_grad
    assert folded._made is not None and folded._make.call_count <= 1  # its norms are folded, once for all steps
    assert torch.equal(outputs.loss, outputs.loss_dict["loss_mask"] + outputs.loss_dict["loss_dice"])
    after = model.eval()(pixel_values, pixel_mask)
    assert torch.equal(after.logits, before.logits) and torch.equal(after.pred_boxes, before.pred_boxes)
    model.save_pretrained(tmp_path)
    again = DETRForSegmentation.from_pretrained(tmp_path)
    assert {name for name, p in again.named_parameters() if p.requires_grad} == {
        name for name, p in model.named_parameters() if p.requires_grad
    }
    assert not again.train().transformer.training and again.mask_head.training


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda label: label.pop("masks"), "has no 'masks'"),
        (lambda label: label.update(masks=label["masks"][:1]), r"expected \(2, H, W\)"),
        (lambda label: label.update(masks=torch.zeros(2, 130, 90, dtype=torch.bool)), "no larger than the padded"),
        (lambda label: label.update(masks=torch.zeros(120, 90, dtype=torch.bool)), "has shape"),
        (lambda label: label.update(has_mask=torch.ones(3).bool()), r"'has_mask'\] has shape \(3,\)"),
    ],
)
def test_labels_whose_masks_cannot_be_meant_are_refused(change, words: str):
    labels = labels_of(2, 1)
    change(labels[0])
    with pytest.raises(ValueError, match=words):
        small()(*padded_batch(), labels)


def test_a_detector_is_not_frozen_with_classes_that_it_does_not_know(tmp_path: Path):
    DETRForObjectDetection(small().config).save_pretrained(tmp_path)
    fewer = DETRForSegmentation.from_pretrained(tmp_path, id2label={0: "grass", 1: "Cat"}, freeze_detector=True)
    assert fewer.new_classes == ()  # all have their rows
    other = {"id2label": {0: "cat", 1: "owl", 2: "sky"}}
    with pytest.raises(ValueError, match=r"does not know 2 of its 3 classes \(owl, sky\)"):
        DETRForSegmentation.from_pretrained(tmp_path, freeze_detector=True, **other)
    model = DETRForSegmentation.from_pretrained(tmp_path, **other)
    with pytest.raises(ValueError, match="owl, sky"):
        model.freeze_detector(True)
    model.train()(*padded_batch(), labels_of(2, 1))
    model.freeze_detector(True)  # they have learnt
    assert "new_classes" not in model.config.to_dict()


def test_a_backbone_without_the_four_levels_is_refused():
    with pytest.raises(ValueError, match="needs strides"):
        small(backbone="vit_tiny_patch16_224", backbone_kwargs={"img_size": (64, 64)})


def test_initial_values_are_the_originals():
    model = small(nheads=8)
    for name, module in (*model.mask_head.named_modules(), *model.bbox_attention.named_modules()):
        if isinstance(module, torch.nn.Conv2d):
            fan_in = module.weight[0].numel()
            assert module.weight.abs().max() <= (3 / fan_in) ** 0.5 and not module.bias.any(), name
            assert module.weight.std().item() == pytest.approx((1 / fan_in) ** 0.5, rel=0.2), name
        elif isinstance(module, torch.nn.Linear):
            assert module.weight.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.1) and not module.bias.any()
