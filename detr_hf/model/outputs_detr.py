"""What the models return, and what they hand to their heads: every field with shape, order and frame."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import ModelOutput

from .predictions_detr import Predictions
from .queries_detr import DecoderQueries, FoundQueries


@dataclass
class DETRModelOutput(ModelOutput):
    """Output of `DETRModel`.

    Attributes:
        last_hidden_state: (B, Q, D), normed output of the last decoder layer.
        intermediate_hidden_states: (L, B, Q, D), normed output of every decoder layer; while training with `aux_loss`,
            or with labels.
        decoder_hidden_states: L + 1 tensors (B, Q, D): the zero targets, then every layer's un-normed output, the last
            one normed.
        decoder_attentions: L tensors (B, M, Q, Q).
        cross_attentions: L tensors (B, M, Q, S), over the cells of the feature map, row by row; of box queries over
            the cells of every level, finest first.
        encoder_last_hidden_state: (B, S, D), the memory.
        encoder_hidden_states: input and output of every encoder layer, (B, S, D).
        encoder_attentions: tensors (B, M, S, S).
        feature_sizes_hw: (B, levels, 2) int64, height and width of the map whose cells the cross-attention reads, the
            same in every row; one level, of box queries all of them, finest first. The encoder reads the last.
    """

    last_hidden_state: Tensor | None = None
    intermediate_hidden_states: Tensor | None = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    encoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor, ...] | None = None
    feature_sizes_hw: Tensor | None = None

    @classmethod
    def of(
        cls,
        encoded: tuple,
        decoded: tuple,
        norm: nn.Module,
        sizes_hw: Tensor,
        attentions: bool,
        hidden_states: bool,
        intermediate: bool,
    ) -> "DETRModelOutput":
        """Returns what encoder and decoder returned, as far as it is wanted.

        `norm` is the decoder's, `sizes_hw` the maps', `intermediate` asks for the states of every decoder layer.
        """
        memory, encoder_states, encoder_attentions = encoded
        decoder_states, decoder_attentions, cross_attentions = decoded
        stacked = norm(torch.stack(decoder_states[1:])) if intermediate else None  # (L, B, Q, D)
        last = stacked[-1] if intermediate else norm(decoder_states[-1])
        return cls(
            last_hidden_state=last,
            intermediate_hidden_states=stacked,
            decoder_hidden_states=(*decoder_states[:-1], last) if hidden_states else None,
            decoder_attentions=tuple(decoder_attentions) if attentions else None,
            cross_attentions=tuple(cross_attentions) if attentions else None,
            encoder_last_hidden_state=memory,
            encoder_hidden_states=tuple(encoder_states) if hidden_states else None,
            encoder_attentions=tuple(encoder_attentions) if attentions else None,
            feature_sizes_hw=sizes_hw,
        )


def sizes_of_maps(features: list[tuple[Tensor, Tensor | None]]) -> Tensor:
    """Returns height and width (B, levels, 2) int64 of feature maps (B, C', ., .), which come with their masks."""
    # filled on the device: a copy from the host would wait for it, and CUDA graphs hold none
    first, sides = features[0][0], [side for feature_map, _ in features for side in feature_map.shape[-2:]]
    columns = [first.new_full((first.shape[0], 1), side, dtype=torch.int64) for side in sides]
    return torch.cat(columns, dim=1).unflatten(1, (-1, 2))


@dataclass
class DETRObjectDetectionOutput(ModelOutput):
    """Output of `DETRForObjectDetection`.

    Attributes:
        loss: scalar, with labels: cross-entropy + bbox_loss_coef * L1 + giou_loss_coef * (1 - GIoU), summed over
            decoder layers.
        loss_dict: the unweighted parts by name (see `SetCriterion`).
        logits: (B, Q, K + 1), unnormalised; the last class is no-object.
        pred_boxes: (B, Q, 4), cxcywh in [0, 1], relative to the unpadded image.
        auxiliary_outputs: `{"logits", "pred_boxes"}` of every earlier decoder layer; while training with `aux_loss`,
            or with labels.

    The other attributes are those of `DETRModelOutput`.
    """

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    pred_boxes: Tensor | None = None
    auxiliary_outputs: list[dict[str, Tensor]] | None = None
    last_hidden_state: Tensor | None = None
    intermediate_hidden_states: Tensor | None = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    encoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor, ...] | None = None
    feature_sizes_hw: Tensor | None = None

    @classmethod
    def of(
        cls,
        predictions: Predictions,
        output: DETRModelOutput,
        loss: Tensor | None,
        parts: dict[str, Tensor] | None,
        **fields: Any,
    ) -> "DETRObjectDetectionOutput":
        """Returns the last layer's predictions, with the earlier layers' beside them where there are any."""
        layers: list[dict[str, Any]] = [
            {"logits": logits, "pred_boxes": pred_boxes}
            for logits, pred_boxes in zip(predictions.logits, predictions.boxes_cxcywh_norm, strict=True)
        ]
        every_layer = output.intermediate_hidden_states is not None
        auxiliary = layers[:-1] if every_layer else None
        return cls(loss=loss, loss_dict=parts, **layers[-1], auxiliary_outputs=auxiliary, **output, **fields)


@dataclass
class DETRSegmentationOutput(DETRObjectDetectionOutput):
    """Output of `DETRForSegmentation`.

    Attributes:
        pred_masks: (B, Q, h4, w4), mask logits at a quarter of the padded input's size, in its frame; -100 for a query
            whose mask was not asked for: one below `mask_score_threshold`, and in training one without an object.
        image_sizes_hw: (B, 2) int64, of each image inside the padded input.
        padded_sizes_hw: (B, 2) int64, of the padded input, in every row: pipelines take outputs apart by image.

    The other attributes are those of `DETRObjectDetectionOutput`.
    """

    pred_masks: Tensor | None = None
    image_sizes_hw: Tensor | None = None
    padded_sizes_hw: Tensor | None = None


@dataclass
class Decoded:
    """What the network makes of a batch, for the heads.

    Attributes:
        output: of the transformer, as `DETRModel` returns it.
        states: (L or 1, B, Q, D), normed, of every decoder layer or of the last one.
        features: (feature map (B, C', h, w), mask (B, h, w) or None) of every stage that the backbone gives, finest
            first; a mask is True on the image.
        projected: (B, D, h, w), the last map as it goes into the transformer.
        queries: what went into the decoder.
        found: what the encoder's tokens said, and where they lie; of box queries alone.
    """

    output: DETRModelOutput
    states: Tensor
    features: list[tuple[Tensor, Tensor | None]]
    projected: Tensor
    queries: DecoderQueries
    found: FoundQueries | None = None

    @property
    def mask(self) -> Tensor | None:
        """The mask of the last feature map, True on the image; None without padding."""
        return self.features[-1][1]
