"""Transformers' stronger detectors as arms of the convergence benchmark: Conditional DETR, Deformable DETR with one
level and with four, RT-DETR and D-FINE, each as shipped and mended (`convergence_mends`).

All take this package's backbone with its frozen norms: transformers' own drops the activations that some of timm's
norms carry. Size, queries, data, optimiser and evaluation are those of every arm; dropout is none in RT-DETR and
D-FINE, and their encoders are as narrow and short as the smallest that were published.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from . import convergence_mends
from .convergence_features import MAPS, ONE_MAP, FixedFeatures, LastMaps, backbone_for
from .convergence_mends import Mend
from .convergence_tasks import Settings, Task

STAND_IN = "test_resnet"  # a backbone that is replaced
THREE_MAPS = (8, 16, 32)
MENDED_CLASS_LOSS = 2.0  # of Conditional and Deformable DETR; their ports say so in the configuration and take 1
CLASS_LOSS_WORDS = "the class loss weighs 2: the port does not read cls_loss_coefficient, and takes 1"
SLOW_WORDS = "sampling offsets and reference points learn at a tenth of the rate"
SLOW = ("sampling_offsets", "reference_points")
BEST = 100  # detections of a picture


@dataclass(frozen=True)
class Kind:
    """One of transformers' detectors: its maps, how it is built, and what mends it.

    `mended` are fields of its configuration; of `mends` those that have a `do` follow, in this order.
    """

    maps: Sequence[int]
    build: Callable[..., nn.Module]
    mended: dict[str, Any]
    mends: tuple[Mend, ...]
    class_loss: float = 1.0
    slow: tuple[str, ...] = ()
    reads_mask: bool = True
    more: tuple[str, ...] = field(default=())  # sentences of what the adapter mends

    def sentences(self) -> list[str]:
        """Returns what a mended arm differs in from the one as shipped."""
        return [*(mend.what for mend in self.mends), *self.more]


class Peer(nn.Module):
    """A detector of transformers with the benchmark's interface.

    Where it does not read the mask, its boxes are fractions of the padded image; in and out they are turned into
    fractions of the image without padding, as everybody else's.
    """

    def __init__(self, model: nn.Module, kind: Kind, is_mended: bool):
        super().__init__()
        self.model, self.reads_mask = model, kind.reads_mask
        self.class_loss = kind.class_loss if is_mended else 1.0
        self.slow = kind.slow if is_mended else ()

    def set_attn_implementation(self, name: str) -> None:
        self.model.set_attn_implementation(name)

    def group_of(self, name: str) -> str:
        """Returns which rate a parameter learns at: backbone, slow or rest."""
        if ".backbone." in name:
            return "backbone"
        return "slow" if any(part in name for part in self.slow) else "rest"

    def forward(self, pixels: Tensor, mask: Tensor | None, labels: list[dict[str, Tensor]] | None = None) -> Any:
        if not self.reads_mask and mask is not None:
            used = torch.stack([mask[:, 0].float().mean(1), mask[:, :, 0].float().mean(1)] * 2, 1)  # (B, 4)
            if labels is not None:
                labels = [{**one, "boxes": one["boxes"] * part} for one, part in zip(labels, used, strict=True)]
            out = self.model(pixels, labels=labels)
            out.pred_boxes = out.pred_boxes / used[:, None]
            return out
        out = self.model(pixels, mask, labels=labels)
        if labels is not None and self.class_loss != 1.0:
            terms = [value for name, value in out.loss_dict.items() if name.startswith("loss_ce")]
            out.loss = out.loss + (self.class_loss - 1) * sum(terms)
        return out

    @torch.no_grad()
    def detections(self, outputs: Any, sizes_hw: Tensor) -> list[dict[str, Tensor]]:
        """Returns scores, labels and boxes (xyxy in pixels, clipped) of the best pairs of query and class."""
        probabilities = outputs.logits.float().sigmoid()
        scores, places = probabilities.flatten(1).topk(min(BEST, probabilities[0].numel()), dim=1)
        queries, labels = places // probabilities.shape[-1], places % probabilities.shape[-1]
        boxes = outputs.pred_boxes.float().gather(1, queries[..., None].expand(-1, -1, 4))
        corners = torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1)
        scale = sizes_hw.to(corners).flip(-1).repeat(1, 2)[:, None]
        corners = torch.minimum((corners * scale).clamp(min=0), scale)
        parts = zip(scores, labels, corners, strict=True)
        return [{"scores": s, "labels": c, "boxes": b} for s, c, b in parts]


def _stand_in(maps: Sequence[int]) -> dict[str, Any]:
    indices = [4] if tuple(maps) == ONE_MAP else [2, 3, 4]
    return {
        "model_type": "timm_backbone",
        "backbone": STAND_IN,
        "use_pretrained_backbone": False,
        "out_indices": indices,
    }


def _shared(settings: Settings, task: Task, maps: Sequence[int]) -> dict[str, Any]:
    """Returns the fields that all their configurations have."""
    labels = {label: str(name) for label, name in task.id2label.items()}
    return {
        "backbone_config": _stand_in(maps),
        "d_model": settings.hidden_dim,
        "encoder_layers": settings.layers,
        "decoder_layers": settings.layers,
        "encoder_attention_heads": settings.nheads,
        "decoder_attention_heads": settings.nheads,
        "encoder_ffn_dim": 4 * settings.hidden_dim,
        "decoder_ffn_dim": 4 * settings.hidden_dim,
        "dropout": settings.dropout,
        "num_queries": settings.num_queries,
        "id2label": labels,
        "label2id": {name: label for label, name in labels.items()},
    }


def _conditional(fields: dict[str, Any], channels: Sequence[int]) -> nn.Module:
    from transformers import ConditionalDetrConfig, ConditionalDetrForObjectDetection

    model = ConditionalDetrForObjectDetection(ConditionalDetrConfig(**fields))
    model.model.input_projection = _fitted(model, model.model.input_projection, channels[-1])
    return model


def _deformable(fields: dict[str, Any], channels: Sequence[int]) -> nn.Module:
    from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection

    levels = 1 if len(channels) == 1 else len(channels) + 1
    config = DeformableDetrConfig(num_feature_levels=levels, disable_custom_kernels=True, **fields)
    model = DeformableDetrForObjectDetection(config)
    for projection, entering in zip(model.model.input_proj, [*channels, channels[-1]], strict=False):
        projection[0] = _fitted(model, projection[0], entering)
    return model


def _rtdetr(fields: dict[str, Any], channels: Sequence[int]) -> nn.Module:
    from transformers import RTDetrConfig, RTDetrForObjectDetection

    return _hybrid(RTDetrForObjectDetection(RTDetrConfig(**_narrow(fields, channels))), channels)


def _dfine(fields: dict[str, Any], channels: Sequence[int]) -> nn.Module:
    from transformers import DFineConfig, DFineForObjectDetection

    return _hybrid(DFineForObjectDetection(DFineConfig(depth_mult=0.34, **_narrow(fields, channels))), channels)


def _narrow(fields: dict[str, Any], channels: Sequence[int]) -> dict[str, Any]:
    width = fields["d_model"]
    own = {"encoder_hidden_dim": width, "decoder_in_channels": [width] * 3, "encoder_in_channels": list(channels)}
    return {**fields, **own, "hidden_expansion": 0.5, "dropout": 0.0, "encoder_layers": 1}


def _hybrid(model: nn.Module, channels: Sequence[int]) -> nn.Module:
    for projection, entering in zip(model.model.encoder_input_proj, channels, strict=True):
        projection[0] = _fitted(model, projection[0], entering)
    return model


def _fitted(model: nn.Module, conv: nn.Conv2d, channels: int) -> nn.Conv2d:
    """Returns a convolution for maps of so many channels, drawn as `model` draws its own."""
    made = nn.Conv2d(
        channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, bias=conv.bias is not None
    )
    model._init_weights(made)
    return made


_REFINED = {"auxiliary_loss": True, "with_box_refine": True, "class_cost": 2}
_OF_DEFORMABLE: dict[str, Any] = {
    "build": _deformable,
    "mended": _REFINED,
    "mends": convergence_mends.DEFORMABLE,
    "class_loss": MENDED_CLASS_LOSS,
    "slow": SLOW,
    "more": (CLASS_LOSS_WORDS, SLOW_WORDS),
}
KINDS = {
    "conditional": Kind(
        ONE_MAP,
        _conditional,
        {"auxiliary_loss": True},
        convergence_mends.CONDITIONAL,
        class_loss=MENDED_CLASS_LOSS,
        more=(CLASS_LOSS_WORDS,),
    ),
    "deformable-1": Kind(ONE_MAP, **_OF_DEFORMABLE),
    "deformable-4": Kind(THREE_MAPS, **_OF_DEFORMABLE),
    "rtdetr": Kind(THREE_MAPS, _rtdetr, {}, convergence_mends.RTDETR, reads_mask=False),
    "dfine": Kind(THREE_MAPS, _dfine, {}, convergence_mends.DFINE, reads_mask=False),
}
MENDED_DECAY = 0.999  # of the average of weights that is measured beside a mended peer's own


def peer_arms() -> dict[str, dict[str, Any]]:
    """Returns the arms of transformers' detectors by name, as shipped and `-mended`."""
    arms: dict[str, dict[str, Any]] = {}
    for name, kind in KINDS.items():
        arms[name] = {"peer": name, "maps": list(kind.maps)}
        arms[f"{name}-mended"] = {**arms[name], "mended": kind.sentences(), "averaged_beside": MENDED_DECAY}
    return arms


def build_peer(arm: dict[str, Any], settings: Settings, task: Task) -> Peer:
    """Returns the peer of an arm, with this package's backbone or, on features, with none.

    Raises:
        RuntimeError: a mend did not take: transformers has changed.
    """
    kind, is_mended = KINDS[arm["peer"]], "mended" in arm
    if task.are_features:
        shapes = task.shapes or [task.train.pixels.shape[1:]]
        body, channels = FixedFeatures(shapes), [shape[0] for shape in shapes]
    else:
        ours, count = backbone_for(kind.maps, task.backbone), MAPS[tuple(kind.maps)]
        body, channels = LastMaps(ours.body, count), list(ours.num_channels)[-count:]
    if len(channels) != MAPS[tuple(kind.maps)]:
        raise ValueError(f"{arm['peer']} takes maps at strides {list(kind.maps)}; the data has {len(channels)} maps.")
    fields = _shared(settings, task, kind.maps) | (kind.mended if is_mended else {})
    model = kind.build(fields, channels)
    model.model.backbone.model = body
    for mend in kind.mends if is_mended else ():
        mend.do(model)
    lost = [mend.what for mend in kind.mends if is_mended and not mend.holds(model)]
    if lost:
        raise RuntimeError(f"transformers' {arm['peer']} could not be mended, it has changed: {'; '.join(lost)}")
    return Peer(model, kind, is_mended)


__all__ = ["KINDS", "Peer", "build_peer", "peer_arms"]
