"""The loss equals the original's rules and transformers' implementation, in value and gradient, and does not break."""

import logging
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torchvision.ops import box_iou
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss
from transformers.models.detr import DetrConfig

from detr_hf.model.box_ops_detr import box_cxcywh_to_xyxy, generalized_box_iou
from detr_hf.model.loss_detr import KnownObjects, SetCriterion
from detr_hf.model.matcher_detr import HungarianMatcher, PackedTargets
from detr_hf.model.predictions_detr import Predictions

from ..conftest import some_labels, tiny_config, tiny_model

WEIGHTS = {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}


def criterion(iou_label_power: float = 0.0) -> SetCriterion:
    return SetCriterion(HungarianMatcher(), WEIGHTS, eos_coef=0.1, iou_label_power=iou_label_power)


def predictions(layers=3, images=2, queries=8, classes=3, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(layers, images, queries, classes + 1, generator=generator, dtype=torch.float64).to(dtype)
    boxes = torch.rand(layers, images, queries, 4, generator=generator, dtype=torch.float64).to(dtype) * 0.5 + 0.2
    return logits.requires_grad_(), boxes.requires_grad_()


def torchvision_iou(box, wanted) -> torch.Tensor:
    return box_iou(box_cxcywh_to_xyxy(box)[None], box_cxcywh_to_xyxy(wanted)[None])[0, 0]


def loss_by_the_paper(logits, boxes, targets, eos_coef=0.1, iou_label_power=0.0):
    """The rules one layer, one image, one object at a time, as the paper and the original state them.

    And with `iou_label_power` as DETRConfig states it.
    """
    num_boxes = max(sum(len(target["boxes"]) for target in targets), 1)
    total = 0.0
    for layer_logits, layer_boxes in zip(logits, boxes, strict=True):
        entropy_sum = weight_sum = distance = overlap = 0.0
        for image_logits, image_boxes, target in zip(layer_logits, layer_boxes, targets, strict=True):
            wanted = target["boxes"].to(image_boxes)
            cost = torch.empty(len(image_boxes), len(wanted))
            for q, box in enumerate(image_boxes):
                for n, label in enumerate(target["class_labels"]):
                    giou = generalized_box_iou(box_cxcywh_to_xyxy(box), box_cxcywh_to_xyxy(wanted[n]))
                    probability = image_logits[q].softmax(-1)[label]
                    cost[q, n] = 5 * (box - wanted[n]).abs().sum() - probability - 2 * giou
            queries, objects = linear_sum_assignment(cost.detach())
            classes = torch.full((len(image_boxes),), image_logits.shape[-1] - 1)
            classes[queries] = target["class_labels"][objects]
            share = torch.ones(len(image_boxes))
            for q, n in zip(queries, objects, strict=True):
                share[q] = torchvision_iou(image_boxes[q], wanted[n]).detach() ** iou_label_power
            for q, wanted_class in enumerate(classes):
                weight = eos_coef if wanted_class == image_logits.shape[-1] - 1 else 1.0
                logs = image_logits[q].log_softmax(-1)
                entropy_sum = entropy_sum - weight * (share[q] * logs[wanted_class] + (1 - share[q]) * logs[-1])
                weight_sum += weight
            for q, n in zip(queries, objects, strict=True):
                distance = distance + (image_boxes[q] - wanted[n]).abs().sum()
                giou = generalized_box_iou(box_cxcywh_to_xyxy(image_boxes[q]), box_cxcywh_to_xyxy(wanted[n]))
                overlap = overlap + 1 - giou
        total = total + entropy_sum / weight_sum + 5 * distance / num_boxes + 2 * overlap / num_boxes
    return total


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("counts", [(3, 2), (4, 0), (1, 1), (0, 0), (8, 5), (11, 1)])
def test_loss_and_gradients_follow_the_paper(counts, power):
    logits, boxes = predictions()
    targets = some_labels(*counts)
    with torch.no_grad():
        boxes[:, 0, : counts[0]] = targets[0]["boxes"][: boxes.shape[2]] + 0.01  # else few pairs would overlap
    total, _ = criterion(power)(logits, boxes, targets)
    expected = loss_by_the_paper(logits, boxes, targets, iou_label_power=power)
    assert torch.allclose(total, expected, rtol=1e-5)
    grads = torch.autograd.grad(total, (logits, boxes))
    expected_grads = torch.autograd.grad(expected, (logits, boxes), allow_unused=True)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        expected_grad = torch.zeros_like(grad) if expected_grad is None else expected_grad
        assert torch.allclose(grad, expected_grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("counts", [(3, 2), (4, 0), (8, 5), (11, 1)])
def test_loss_and_gradients_equal_those_of_transformers(counts):
    """Each layer on its own, because transformers' auxiliary losses need its (different) auxiliary forward pass."""
    logits, boxes = predictions()
    targets = some_labels(*counts)
    total, parts = criterion()(logits, boxes, targets)
    config = DetrConfig(num_labels=3)
    expected = 0
    for layer, (layer_logits, layer_boxes) in enumerate(zip(logits, boxes, strict=True)):
        loss, their_parts, _ = ForObjectDetectionLoss(layer_logits, targets, torch.device("cpu"), layer_boxes, config)
        expected = expected + loss
        suffix = "" if layer == len(logits) - 1 else f"_{layer}"
        for name in ("loss_ce", "loss_bbox", "loss_giou", "cardinality_error"):
            assert torch.allclose(parts[name + suffix], their_parts[name], rtol=1e-5), name + suffix
    assert torch.allclose(total, expected, rtol=1e-5)
    grads = torch.autograd.grad(total, (logits, boxes))
    for grad, expected_grad in zip(grads, torch.autograd.grad(expected, (logits, boxes)), strict=True):
        assert torch.allclose(grad, expected_grad, rtol=1e-5, atol=1e-7)


def test_known_objects_are_labelled_by_their_iou_as_well():
    logits, boxes = predictions(layers=2, images=2, queries=3)
    classes = torch.tensor([[1, 3, 0], [2, 2, 1]])  # 3 is no-object
    wanted = boxes[0].detach() + 0.05
    valid = torch.tensor([[True, True, True], [True, False, True]])
    answers, known = Predictions(logits, boxes), KnownObjects(classes, wanted, valid)
    total, parts = criterion(0.5).known_assignment(answers, known)
    entropy = weights = 0.0
    for image, query in valid.nonzero().tolist():
        label, log_probs = classes[image, query], logits[-1, image, query].log_softmax(-1)
        iou = torchvision_iou(boxes[-1, image, query], wanted[image, query]).detach()
        share, weight = (1.0, 0.1) if label == 3 else (iou**0.5, 1.0)
        entropy = entropy - weight * (share * log_probs[label] + (1 - share) * log_probs[3])
        weights += weight
    assert torch.allclose(parts["loss_ce"], entropy / weights, rtol=1e-5)
    plain, _ = criterion().known_assignment(answers, known)
    assert not torch.allclose(total, plain)


def test_a_target_never_depends_on_its_batch_mates():
    logits, boxes = predictions(images=2)
    alone = HungarianMatcher()(
        logits[:, :1], boxes[:, :1], PackedTargets.from_list(some_labels(3, 5)[:1], 1, logits.device)
    )
    both = HungarianMatcher()(logits, boxes, PackedTargets.from_list(some_labels(3, 5), 2, logits.device))
    first = both.image == 0
    assert torch.equal(alone.query.flatten(), both.query[first])
    assert torch.equal(alone.object.flatten(), both.object[first])


def test_every_loss_part_is_named_as_in_the_original():
    _, parts = criterion()(*predictions(layers=3), some_labels(2, 1))
    names = {"loss_ce", "loss_bbox", "loss_giou", "cardinality_error"}
    assert set(parts) == {"class_error"} | {name + suffix for name in names for suffix in ("", "_0", "_1")}


def test_class_error_is_the_percentage_of_matched_objects_with_a_wrong_class():
    targets = some_labels(2, 0)
    logits, boxes = predictions(layers=1)
    with torch.no_grad():
        boxes[0, 0, :2] = targets[0]["boxes"]
        logits.zero_()
        logits[0, 0, 0, targets[0]["class_labels"][0]] = 9.0  # right
        logits[0, 0, 1, (targets[0]["class_labels"][1] + 1) % 3] = 9.0  # wrong
    _, parts = criterion()(logits, boxes, targets)
    assert parts["class_error"].item() == 50.0


def test_more_objects_than_queries_are_counted_and_said(caplog):
    logging.getLogger("transformers").propagate = True
    with caplog.at_level("WARNING"):
        total, _ = criterion()(*predictions(queries=4), some_labels(9, 1))
    assert "9 objects and the model 4 queries: 5 objects get no query" in caplog.text
    assert total.isfinite()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_predictions_are_matched_and_scored_in_float32(dtype):
    logits, boxes = predictions(dtype=dtype)
    total, _ = criterion()(logits, boxes, some_labels(3, 2))
    expected, _ = criterion()(logits.float(), boxes.float(), some_labels(3, 2))
    assert total.dtype == torch.float32
    assert torch.equal(total, expected)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("part", [0, 1], ids=["class logits", "boxes"])
def test_predictions_that_are_not_finite_are_refused_with_the_image(part, value):
    answers, targets = predictions(), some_labels(3, 2)
    targets[1]["image_id"] = torch.tensor([139])
    with torch.no_grad():
        answers[part][0, 1, 3, 0] = value  # an earlier layer, and a query that nothing need be matched with
    name = ("class logits", "boxes")[part]
    words = rf"loss is not finite: the {name} that .* image 1 \(image_id 139\) of the batch .* learning rate"
    with pytest.raises(FloatingPointError, match=words) as caught:
        criterion()(*answers, targets)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"class_labels": torch.tensor([0, 3])},
            r"labels of image 1 \(image_id 7\) .* not in 0..2 \(object 1 .* 3\).*no-object",
        ),
        ({"class_labels": torch.tensor([0, -1])}, r"class_labels of image 1 .*object 1"),
        ({"class_labels": torch.tensor([0, 2**40])}, r"class_labels of image 1 .*object 1"),
        ({"class_labels": torch.tensor([0.0, 1.0])}, r"labels\[1\].*must be integers"),
        (
            {"class_labels": torch.tensor([1])},
            r"labels\[1\] has class_labels of shape \(1,\) and boxes of shape \(2, 4\)",
        ),
        (
            {"boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2], [40.0, 30.0, 9.0, 9.0]])},
            r"boxes of image 1 .*not normalised \(object 1 .*\[40.0, .* not in \[0, 1\]",
        ),
        (
            {"boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2], [1.5, 0.5, 0.0, 0.2]])},
            r"boxes of image 1 .*object 1 .* not in \[0, 1\]",
        ),
        (
            {"boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, -0.2, 0.2]])},
            r"boxes of image 1 .*object 1.*is negative",
        ),
        *(
            # inside the tolerance for corners, which is none for sides; the first object's centre makes use of it
            ({"boxes": torch.tensor([[-1e-9, 0.5, 0.2, 0.2], [0.5, 0.5, *sides]])}, r"object 1.*is negative")
            for sides in ((-1e-9, 0.2), (0.2, -1e-9))
        ),
        (
            {"boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2], [torch.nan, 0.5, 0.2, 0.2]])},
            r"boxes of image 1 .*object 1.*is not finite",
        ),
    ],
)
def test_targets_that_cannot_be_meant_are_refused_by_image(change, message):
    targets = some_labels(2, 2)
    targets[1] = {**targets[1], "image_id": 7, **change}
    with pytest.raises(ValueError, match=message):
        criterion()(*predictions(), targets)


def test_of_several_images_with_faults_the_first_is_told_in_full():
    wrong = [{"class_labels": torch.tensor([1, label])} for label in (5, 7)]
    targets = [target | change for target, change in zip(some_labels(2, 2), wrong, strict=True)]
    with pytest.raises(ValueError, match=r"image 0, image 1 .*\(object 1 of the first: 5\)"):
        criterion()(*predictions(), targets)


@pytest.mark.parametrize("costs", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_one_cost_is_enough_for_the_matcher(costs):
    HungarianMatcher(*costs)
    with pytest.raises(ValueError, match="costs of the matcher are 0"):
        HungarianMatcher(0, 0, 0)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([], "labels has 0 entries for a batch of 2"),
        (some_labels(1), "labels has 1 entries for a batch of 2"),
        ([{"boxes": torch.rand(1, 4)}] * 2, r"labels\[0\] has no \['class_labels'\]"),
        ([*some_labels(1), None], r"labels\[1\] is of .*NoneType.* one dictionary an image"),
        ([{"class_labels": [0], "boxes": torch.rand(1, 4)}] * 2, r"labels\[0\]\['class_labels'\] is of .*list"),
    ],
)
def test_labels_that_do_not_fit_the_batch_are_refused(targets, message):
    with pytest.raises(ValueError, match=message):
        criterion()(*predictions(), targets)


def test_zero_sized_boxes_are_legal():
    targets = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.0, 0.0]])}] * 2
    total, _ = criterion()(*predictions(), targets)
    assert total.isfinite()


def test_the_model_weights_its_losses_as_the_config_says():
    model = tiny_model(bbox_loss_coef=3.0, giou_loss_coef=0.5, eos_coef=0.4)
    outputs = model(torch.randn(1, 3, 64, 64), labels=some_labels(2))
    parts = outputs.loss_dict
    expected = sum(
        parts["loss_ce" + s] + 3 * parts["loss_bbox" + s] + 0.5 * parts["loss_giou" + s] for s in ("", "_0", "_1")
    )
    assert torch.allclose(outputs.loss, expected)
    last = outputs.logits.detach()
    classes = torch.full(last.shape[:2], 3)
    packed = PackedTargets.from_list(some_labels(2), 1, last.device)
    matches = model.loss_function.matcher(last[None], outputs.pred_boxes.detach()[None], packed)
    classes[0, matches.query] = packed.labels[0, matches.object]
    weight = torch.tensor([1.0, 1.0, 1.0, 0.4])
    assert torch.allclose(parts["loss_ce"], F.cross_entropy(last.transpose(1, 2), classes, weight))


def test_the_configs_power_reaches_the_loss_and_no_output():
    plain, soft = tiny_model(), tiny_model(iou_label_power=2.0)
    pixels, labels = torch.randn(1, 3, 64, 64), some_labels(2)
    outputs, softened = plain(pixels, labels=labels), soft(pixels, labels=labels)
    assert torch.equal(outputs.logits, softened.logits) and torch.equal(outputs.pred_boxes, softened.pred_boxes)
    _, parts = criterion(2.0)(outputs.logits[None], outputs.pred_boxes[None], labels)
    assert torch.allclose(softened.loss_dict["loss_ce"], parts["loss_ce"])
    assert not torch.allclose(outputs.loss_dict["loss_ce"], parts["loss_ce"])


def test_without_auxiliary_losses_only_the_last_layer_counts():
    model = tiny_model(aux_loss=False)
    outputs = model(torch.randn(1, 3, 64, 64), labels=some_labels(2))
    assert not any(name.endswith("_0") for name in outputs.loss_dict)
    assert tiny_config().aux_loss


def weighed(logits, boxes, targets, weights, eos_coef=0.1):
    """torch's cross_entropy with `weight`, layer by layer, after matching without any weights."""
    packed = PackedTargets.from_list(targets, logits.shape[1], logits.device)
    matches = HungarianMatcher()(logits, boxes, packed)
    total = 0.0
    for layer, layer_logits in enumerate(logits):
        classes = torch.full(layer_logits.shape[:2], layer_logits.shape[-1] - 1)
        classes[matches.image[layer], matches.query[layer]] = packed.labels[matches.image, matches.object][layer]
        total = total + F.cross_entropy(
            layer_logits.flatten(0, 1), classes.flatten(), weight=torch.tensor([*weights, eos_coef])
        )
    return total


@pytest.mark.parametrize("counts", [(3, 2), (0, 4), (0, 0), (12, 1)])  # of 8 queries
@pytest.mark.parametrize("weights", [(1.0, 5.0, 0.25), (0.0, 1.0, 2.0), (1.0, 1.0, 1.0)])
def test_class_weights_are_those_of_torchs_cross_entropy(counts, weights):
    logits, boxes = predictions()
    targets = some_labels(*counts)
    alone = SetCriterion(HungarianMatcher(), {**WEIGHTS, "loss_bbox": 0, "loss_giou": 0}, class_weights=weights)
    seen, expected = alone(logits, boxes, targets)[0], weighed(logits, boxes, targets, weights)
    torch.testing.assert_close(seen, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits, retain_graph=True) for loss in (seen, expected)))


def test_class_weights_hold_for_known_objects_and_softened_labels():
    logits, boxes = predictions(layers=1)
    weights = torch.tensor([1.0, 5.0, 0.25, 0.1])
    classes = torch.randint(0, 4, (2, 8), generator=torch.Generator().manual_seed(1))
    known = KnownObjects(classes, boxes[0].detach() + 0.01, torch.rand(2, 8) > 0.2)
    for power in (0.0, 1.0):
        criterion_ = replace(criterion(power), class_weights=(1.0, 5.0, 0.25))
        _, parts = criterion_.known_assignment(Predictions(logits, boxes), known)
        plain = replace(criterion_, class_weights=(1.0, 1.0, 1.0), eos_coef=1.0)
        sums = 0.0
        for image, query in known.valid.nonzero().tolist():  # one alone, unweighed, then weighed by hand
            one = torch.zeros_like(known.valid).index_put_(
                (torch.tensor(image), torch.tensor(query)), torch.tensor(True)
            )
            _, its = plain.known_assignment(Predictions(logits, boxes), replace(known, valid=one))
            sums = sums + its["loss_ce"] * weights[classes[image, query]]
        torch.testing.assert_close(parts["loss_ce"], sums / weights[classes][known.valid].sum())


def test_the_configs_class_weights_reach_every_loss_and_no_output():
    aids = {"encoder_aux_head": True, "num_denoising": 4, "num_query_groups": 2}
    pixel_values, labels = torch.randn(2, 3, 160, 160), some_labels(3, 2)
    labels[0]["class_labels"][:2] = torch.tensor([0, 1])  # a cat and a dog
    seen = []
    for weights in (None, {"dog": 4.0}, [1, 4, 1]):
        model = tiny_model(class_weights=weights, **aids)
        with torch.no_grad():
            logits = model(pixel_values).logits
        model.train()
        torch.manual_seed(0)
        seen.append((logits, model(pixel_values, labels=labels).loss_dict))
    assert torch.equal(seen[0][0], seen[1][0])
    for name in ("loss_ce", "loss_ce_0", "loss_ce_dn", "loss_ce_enc"):
        assert not torch.isclose(seen[0][1][name], seen[1][1][name]) and torch.equal(
            seen[1][1][name], seen[2][1][name]
        )
