"""What DETR may train with and does not infer with: an encoder loss, query groups, denoising queries.

Each adds losses; none changes what the model computes in evaluation. What the aids need beyond DETR's own weights
lies under `training_aids.`, and `strip_training_aids()` removes it.

- Encoder loss: class head and box head are also applied to the encoder's tokens, and every token inside an object
  must give that object's class and box (one to many). Related to the auxiliary heads of Co-DETR (Zong et al., 2023),
  but without weights of its own: DETR adds position encodings to queries and keys, never to values, so a token that
  must answer with a box in the frame of the picture learns to carry its place, which is what the decoder lacks.
- Query groups (Group DETR, Chen et al., 2023): further object queries go through the same decoder; a group attends to
  itself alone and is matched on its own. Their losses are averaged.
- Denoising (DN-DETR, Li et al., 2022; negatives as in DINO, Zhang et al., 2023): queries made of true labels and boxes
  with noise must give the true ones back, without matching. They and the object queries never see each other.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .box_ops_detr import box_cxcywh_to_xyxy, box_xyxy_to_cxcywh, logit_of_boxes
from .box_queries_detr import without_invalid
from .box_training_detr import proposal_loss
from .configuration_detr import DETRConfig
from .loss_detr import KnownObjects, SetCriterion
from .matcher_detr import PackedTargets
from .outputs_detr import Decoded
from .position_encoding_detr import sine_of_boxes
from .predictions_detr import Predictions
from .queries_detr import DecoderQueries, QuerySet

PREFIX = "training_aids."
MIDDLE_PART = 0.6  # a token belongs to an object when it lies in this middle part of its box, each way
BORDER_PART = 1.1  # between the middle and just outside the box, a token's class is left open
BACKGROUND_WEIGHT = 0.2  # of tokens outside all objects in the encoder's cross-entropy
NOISE_OF_COPIES = 0.1  # standard deviation of the noise on copied queries, relative to that of the queries
# What further groups start as a copy of, in a model whose queries were trained.
COPIED_FROM = {"more_queries": "query_embed", "more_points": "refpoint_embed"}
EDGE = 0.01  # nearest that a reference point comes to the image's border, in parts of its side


@dataclass
class FeatureFrame:
    """Where the S encoder tokens lie: the feature map's size, and its mask (B, h, w), True on the image, or None."""

    height: int
    width: int
    mask: Tensor | None

    def centres(self, device: torch.device) -> Tensor:
        """Returns the tokens' centres (B or 1, S, 2) as x, y in units of the unpadded image."""
        ys = torch.arange(self.height, device=device)[None] + 0.5
        xs = torch.arange(self.width, device=device)[None] + 0.5
        if self.mask is None:
            ys, xs = ys / self.height, xs / self.width
        else:
            ys = ys / self.mask.any(dim=2).sum(dim=1, keepdim=True)
            xs = xs / self.mask.any(dim=1).sum(dim=1, keepdim=True)
        shape = (-1, self.height, self.width)
        return torch.stack([xs[:, None, :].expand(shape), ys[:, :, None].expand(shape)], dim=-1).flatten(1, 2)


class DenoisingQueries(nn.Module):
    """Makes object queries from labels and boxes with noise: the label is the content, the box the position."""

    def __init__(self, config: DETRConfig):
        super().__init__()
        self.config = config
        width = config.hidden_dim
        self.label_embed = nn.Embedding(config.num_labels, width)
        if not config.box_queries:
            self.box_embed = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, targets: PackedTargets) -> tuple[DecoderQueries, KnownObjects]:
        """Returns about `num_denoising` queries for every image, in groups of all its objects, and their objects.

        A batch without any object gets a group that counts for nothing, so that every process of a distributed run
        has a gradient for every weight.
        """
        known, negative = self._repeat(targets)
        labels, boxes = self._add_noise(known, negative)
        group_size = negative.shape[-1]
        seen = known.valid[:, None, None, :group_size] | torch.eye(group_size, dtype=torch.bool, device=labels.device)
        groups = labels.shape[1] // group_size
        states, query_sets = self.label_embed(labels), [QuerySet(groups, group_size, seen)]
        if self.config.box_queries:  # the decoder knows what a box is
            queries = DecoderQueries(states, states, query_sets, logit_of_boxes(boxes))
        else:
            box_code = self.box_embed(sine_of_boxes(boxes, self.config.hidden_dim).to(states.dtype))
            reference = torch.logit(boxes[..., :2].clamp(EDGE, 1 - EDGE)) if self.config.reference_points else None
            queries = DecoderQueries(box_code, states, query_sets, reference)
        known.classes = torch.where(negative.repeat(groups), self.config.num_labels, known.classes)
        return queries, known

    def _repeat(self, targets: PackedTargets) -> tuple[KnownObjects, Tensor]:
        """Returns the objects once for every denoising query, and which queries of a group (M/P,) are negative."""
        most = max(1, *targets.counts)
        missing = most - targets.labels.shape[1]
        labels = F.pad(targets.labels, (0, missing)).clamp(0, self.config.num_labels - 1)  # the criterion reports
        boxes = F.pad(targets.boxes_cxcywh_norm, (0, 0, 0, missing), value=0.5)
        device = labels.device
        counts = torch.tensor(targets.counts).to(device, non_blocking=True)
        valid = torch.arange(most, device=device) < counts[:, None]  # (B, N)
        copies = 2 if self.config.denoising_negatives else 1
        negative = torch.arange(copies * most, device=device) >= most
        times = copies * max(1, self.config.num_denoising // (copies * most))
        return KnownObjects(labels.repeat(1, times), boxes.repeat(1, times, 1), valid.repeat(1, times)), negative

    def _add_noise(self, known: KnownObjects, negative: Tensor) -> tuple[Tensor, Tensor]:
        """Returns labels of which some are exchanged, and boxes (B, M, 4), cxcywh, whose corners are moved.

        A corner moves by up to `box_noise_scale` half sides, that of a negative by once to twice as much.
        """
        shape, device = known.classes.shape, known.classes.device
        exchanged = torch.rand(shape, device=device) < self.config.label_noise_ratio
        labels = torch.where(exchanged, torch.randint_like(known.classes, self.config.num_labels), known.classes)
        distance = torch.rand(*shape, 4, device=device)
        distance = distance + negative.repeat(shape[1] // len(negative))[:, None]
        sign = torch.randint(0, 2, (*shape, 4), device=device) * 2 - 1
        half_sides = known.boxes_cxcywh_norm[..., 2:].repeat(1, 1, 2) / 2
        corners = box_cxcywh_to_xyxy(known.boxes_cxcywh_norm)
        corners = (corners + sign * distance * self.config.box_noise_scale * half_sides).clamp(0, 1)
        boxes = box_xyxy_to_cxcywh(corners)
        return labels, torch.cat([boxes[..., :2], boxes[..., 2:].abs().clamp(min=1e-3)], dim=-1)


class TrainingAids(nn.Module):
    """The weights that aids have besides DETR's own, and the queries made of them."""

    def __init__(self, config: DETRConfig):
        super().__init__()
        self.groups = config.num_query_groups
        more = (config.num_query_groups - 1) * config.num_queries
        if more:
            self.more_queries = nn.Embedding(more, config.hidden_dim)
            if config.reference_points:
                self.more_points = nn.Embedding(more, 2)
        if config.num_denoising:
            self.denoising = DenoisingQueries(config)

    def extend(self, queries: DecoderQueries, targets: PackedTargets) -> tuple[DecoderQueries, KnownObjects | None]:
        """Returns the object queries with further groups and with denoising queries behind them.

        Args:
            queries: DETR's own, (1, Q, D).
            targets: the objects of the B images.
        """
        query_pos, reference = queries.query_pos, queries.reference
        size = query_pos.shape[1]
        if self.groups > 1:
            query_pos = torch.cat([query_pos, self.more_queries.weight[None]], dim=1)
            if reference is not None:
                reference = torch.cat([reference, self.more_points.weight[None]], dim=1)
        extended = DecoderQueries(query_pos, None, [QuerySet(self.groups, size)], reference)
        if not hasattr(self, "denoising"):
            return extended, None
        noisy, known = self.denoising(targets)
        return extended.joined(noisy), known

    @torch.no_grad()
    def copy_queries(self, model: nn.Module, names: Iterable[str] = tuple(COPIED_FROM)) -> None:
        """Fills the further groups, where there are any, with copies of the model's own, with a little noise."""
        for name in names:
            if hasattr(self, name):
                more, queries = getattr(self, name).weight, getattr(model, COPIED_FROM[name]).weight
                copies = queries.repeat(len(more) // len(queries), 1)
                more.copy_(copies + torch.randn_like(copies) * queries.std() * NOISE_OF_COPIES)


class HasTrainingAids:
    """What a detector does with its aids: switches them on, takes them off, and saves without them."""

    def add_training_aids(self, **options) -> "HasTrainingAids":
        """Returns this model with options of its configuration on that help training, such as `num_denoising=20`.

        Further query groups start as noisy copies of the queries. `reference_points`, which is part of inference too,
        starts at zero, which is plain DETR, in a model whose weights were loaded, and at random in another.
        """
        for name, value in options.items():
            if not hasattr(self.config, name):
                raise ValueError(f"add_training_aids has no option {name!r}; it takes fields of DETRConfig.")
            setattr(self.config, name, value)
        self.config.validate_transformer()
        self.config.validate_loss()
        place = {"device": self.device, "dtype": self.dtype}
        if self.config.reference_points and not hasattr(self, "refpoint_embed"):
            self.refpoint_embed = nn.Embedding(self.config.num_queries, 2, **place)
            if self.config.name_or_path:
                nn.init.zeros_(self.refpoint_embed.weight)
        if self.config.has_training_aids:
            self.training_aids = TrainingAids(self.config).to(**place)
            self.training_aids.copy_queries(self)
        return self

    def strip_training_aids(self) -> "HasTrainingAids":
        """Returns this model without what only training needs: weights and configuration of a plain DETR."""
        if self.config.has_training_aids:
            del self.training_aids
            self.config.switch_off_training_aids()  # in place: every layer reads this object
        return self

    def save_pretrained(self, save_directory, inference_only: bool = False, **kwargs) -> None:
        """Writes weights and configuration.

        Args:
            save_directory: a folder, made if it is not there.
            inference_only: leave out what only training needs, as `strip_training_aids` does; this model keeps it.
            **kwargs: as in transformers.
        """
        config = self.config
        if not (inference_only and config.has_training_aids):
            super().save_pretrained(save_directory, **kwargs)
            return
        state_dict = kwargs.pop("state_dict", None) or self.state_dict()
        kwargs["state_dict"] = {name: value for name, value in state_dict.items() if not name.startswith(PREFIX)}
        self.config = config.without_training_aids()
        try:
            super().save_pretrained(save_directory, **kwargs)
        finally:
            self.config = config


@torch.no_grad()
def assign_tokens(frame: FeatureFrame, targets: PackedTargets, num_classes: int) -> KnownObjects:
    """Returns the object of each of the S encoder tokens: the one whose middle it lies in; no-object for the rest.

    An object has the nearest token in any case. Of several objects a token belongs to the one in whose box it lies
    deepest. The class of tokens near a border is not counted, nor is padding.
    """
    labels, boxes = targets.labels, targets.boxes_cxcywh_norm
    device = labels.device
    valid = frame.mask
    valid = torch.ones(1, 1, dtype=torch.bool, device=device) if valid is None else valid.flatten(1)  # (B, S)
    if not labels.shape[1]:
        labels, boxes = F.pad(labels, (0, 1)), F.pad(boxes, (0, 0, 0, 1), value=0.5)
    counts = torch.tensor(targets.counts).to(device, non_blocking=True)
    real = torch.arange(labels.shape[1], device=device) < counts[:, None]  # (B, N)

    offset = (frame.centres(device)[:, :, None] - boxes[:, None, :, :2]).abs()
    depth = (offset / (boxes[:, None, :, 2:] / 2).clamp(min=1e-6)).amax(dim=-1)  # (B, S, N); 1 at the border
    depth = depth.masked_fill(~(real[:, None] & valid[..., None]), math.inf)
    nearest, owner = depth.min(dim=-1)
    numbers = torch.arange(labels.shape[1], device=device).expand_as(real)
    claimed = torch.full_like(owner, -1).scatter_reduce(1, depth.argmin(1), numbers.where(real, -1), "amax")
    owner = torch.where(claimed >= 0, claimed, owner)
    positive = (nearest < MIDDLE_PART) | (claimed >= 0)
    classes = labels.clamp(0, num_classes - 1).gather(1, owner)  # one out of range is reported by the matcher
    return KnownObjects(
        classes=torch.where(positive, classes, num_classes),
        boxes_cxcywh_norm=boxes.gather(1, owner[..., None].expand(-1, -1, 4)),
        valid=(positive | (nearest >= BORDER_PART)) & valid,
    )


def forward_with_aids(
    model: nn.Module,
    pixel_values: Tensor,
    pixel_mask: Tensor | None,
    labels: list[dict[str, Tensor]],
    *options: Any,
) -> tuple[Decoded, Predictions, Tensor, dict[str, Tensor]]:
    """Returns what `model` decoded, the predictions of its own queries, the loss and its parts, for a training step.

    The same images and `options` as in `DETRModel.decode`; more queries go through the decoder, and more is asked of
    the heads. Groups of object queries are matched each as a picture of its own; denoising queries and encoder tokens
    know their objects.
    """
    config = model.config
    targets = PackedTargets.from_list(labels, len(pixel_values), pixel_values.device)
    queries, known = model.training_aids.extend(model.object_queries(pixel_values.device), targets)
    decoded = model.decode(pixel_values, pixel_mask, queries, *options)
    answers = model.predict(decoded.states, queries.reference)  # of all groups, then of the denoising queries
    found = decoded.found
    if found is not None and found.valid is not None:
        others = answers.logits.shape[2] - found.valid.shape[1]
        answers = without_invalid(answers, F.pad(found.valid, (0, others), value=True))
    groups, length = config.num_query_groups, config.num_query_groups * config.num_queries
    by_group = Predictions(*(values[:, :, :length].unflatten(2, (groups, -1)).flatten(1, 2) for values in answers[:2]))
    if known is not None:
        noisy = Predictions(*(values[:, :, length:] for values in answers[:2]))
        # 0, or NaN for an image with an answer that is not finite: the matcher's one look at all of them finds it
        sums = sum(values.detach().float().sum(dim=(0, 2, 3)) for values in noisy[:2]) * 0  # (B,)
        sums = sums.repeat_interleave(groups)[:, None, None].to(by_group.logits.dtype)
        by_group = by_group._replace(logits=by_group.logits + sums)
    placed = [{**target, "place_in_batch": place} for place, target in enumerate(labels)]
    loss, parts = model.loss_of(by_group, [target for target in placed for _ in range(groups)])
    if known is not None:
        its_loss, its_parts = model.criterion().known_assignment(noisy, known)
        loss = loss + its_loss
        parts |= {f"{name}_dn": value for name, value in its_parts.items()}
    if found is not None:
        its_loss, its_parts = proposal_loss(model.box_queries, model.criterion(), found, labels)
        loss, parts = loss + its_loss, parts | its_parts
    if config.encoder_aux_head:
        tokens = model.predict(decoded.output.encoder_last_hidden_state[None])
        frame = FeatureFrame(*decoded.projected.shape[-2:], decoded.mask)
        its_loss, its_parts = encoder_loss(model.criterion(), tokens, assign_tokens(frame, targets, config.num_labels))
        loss = loss + config.encoder_aux_coef * its_loss
        parts |= {f"{name}_enc": value for name, value in its_parts.items()}
    own = Predictions(*(values[:, :, : config.num_queries] for values in answers[:2]))
    return decoded, own, loss, parts


def encoder_loss(
    criterion: SetCriterion, predictions: Predictions, objects: KnownObjects
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the weighted total and its parts, for the heads' answers (1, B, S, ...) to every encoder token.

    Whole boxes are asked for, also where queries have reference points: that the tokens carry their place is what is
    wanted.
    """
    plain = replace(criterion, eos_coef=BACKGROUND_WEIGHT, iou_label_power=0.0)
    return plain.known_assignment(predictions, objects)
