"""DETR (Carion et al., 2020, "End-to-End Object Detection with Transformers") as transformers models.

The parameters have the names of the original code, in memory and on disk; attention alone has separate `q_proj`,
`k_proj` and `v_proj` where the original packs `in_proj`. The detection model therefore is the base model with two
heads more, not a wrapper around it. What differs on purpose:

- from the original: boxes, logits and losses are the same numbers, but padding is only masked where there is some,
  losses of all layers are computed at once, and `labels` go into `forward`, as Trainer expects;
- from transformers: `aux_loss` changes no prediction, boxes are relative to the unpadded image, frozen layers stay
  frozen after `from_pretrained`, initialisation is the original's, and a checkpoint that does not fit is refused.

Dimension letters, everywhere in this package: B batch, Q queries, C channels, D hidden_dim, H W input pixels, h w
feature cells, S = h * w, L decoder layers, K classes, N objects of one image, M heads.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .attention_detr import padding_mask
from .backbone_detr import Backbone, Joiner, check_inputs
from .box_queries_detr import BoxDecoder, BoxQueries, without_invalid
from .box_training_detr import proposal_loss
from .compiling_detr import optimize_for_inference
from .configuration_detr import DETRConfig
from .loss_detr import SetCriterion
from .mask_training_detr import FreezesDetector, train_masks
from .matcher_detr import HungarianMatcher
from .mlp_detr import MLP
from .outputs_detr import (
    Decoded,
    DETRModelOutput,
    DETRObjectDetectionOutput,
    DETRSegmentationOutput,
    sizes_of_maps,
)
from .position_encoding_detr import build_position_encoding
from .predictions_detr import Predictions
from .pretrained_detr import DETRPreTrainedModel
from .queries_detr import DecoderQueries
from .segmentation_detr import MaskHeadSmallConv, MHAttentionMap, image_sizes_hw, predict_masks
from .training_aids_detr import HasTrainingAids, TrainingAids, forward_with_aids
from .transformer_detr import Transformer


class DETRModel(DETRPreTrainedModel):
    """Backbone, transformer and object queries, without heads.

    >>> import torch
    >>> from detr_hf.model import DETRConfig, DETRModel
    >>> model = DETRModel(DETRConfig(backbone="resnet18", num_queries=100)).eval()
    >>> model(torch.randn(2, 3, 256, 320)).last_hidden_state.shape
    torch.Size([2, 100, 256])
    """

    # a detection or panoptic checkpoint has these besides; they belong to other classes
    _keys_to_ignore_on_load_unexpected = {  # noqa: RUF012
        *DETRPreTrainedModel._keys_to_ignore_on_load_unexpected,
        r"^(class_embed|bbox_embed|refpoint_embed|bbox_attention|mask_head)\.",
    }

    def __init__(self, config: DETRConfig, **arguments: Any):
        left_over = config.take_arguments(arguments)
        if left_over:
            raise ValueError(f"A model is made of a configuration alone: give DETRConfig {', '.join(left_over)}.")
        super().__init__(config)
        backbone = Backbone(config, return_interm_layers=self.has_mask_head)
        self.transformer = Transformer(config, BoxDecoder(config) if config.box_queries else None)
        self.make_heads(config, backbone)
        if config.box_queries:
            self.box_queries = BoxQueries(config, backbone)
        self.query_embed = nn.Embedding(config.num_queries, config.hidden_dim)
        self.input_proj = nn.Conv2d(backbone.num_channels[-1], config.hidden_dim, kernel_size=1)
        self.backbone = Joiner(backbone, build_position_encoding(config))
        self.post_init()

    def make_heads(self, config: DETRConfig, backbone: Backbone) -> None:
        """Adds what stands on the transformer's output and on the backbone; the base model has nothing there.

        But box queries need a box head, to know where they go.
        """
        if config.box_queries:
            self.bbox_embed = MLP(config.hidden_dim, config.hidden_dim, 4, 3)

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """Returns the transformer's encoder, for transformers' own helpers."""
        return self.transformer.encoder

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> DETRModelOutput:
        """Returns the decoder's states for every image.

        Args:
            pixel_values: (B, C, H, W), floating point, normalised; smaller images padded at the right and the bottom.
            pixel_mask: (B, H, W), 1 on the image and 0 on padding; None means no padding.
            output_attentions: also return those of every layer.
            output_hidden_states: also return those of every layer.
            **kwargs: for transformers' sake; unused.
        """
        every_layer = self.training and self.config.aux_loss
        queries = self.object_queries(pixel_values.device)
        return self.decode(
            pixel_values, pixel_mask, queries, every_layer, output_attentions, output_hidden_states
        ).output

    def decode(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None,
        queries: DecoderQueries,
        every_layer: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> Decoded:
        """Returns what backbone and transformer make of the images, for the heads to read.

        `queries` go into the decoder; with `every_layer` the states of all its layers come back. The other arguments
        are those of `forward`.
        """
        self._check_inputs(pixel_values, pixel_mask)
        attentions = self.config.output_attentions if output_attentions is None else output_attentions
        hidden_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states

        features, pos = self.backbone(pixel_values, pixel_mask)
        feature_map, mask = features[-1]
        sizes_hw = sizes_of_maps(features[-self.config.num_feature_levels :])
        projected = self.input_proj(feature_map)  # (B, D, h, w)
        src = projected.flatten(2).transpose(1, 2)  # (B, S, D)
        pos = pos.flatten(2).transpose(1, 2)  # (B or 1, S, D)
        valid = None if mask is None else mask.flatten(1)  # (B, S)
        src_mask = padding_mask(self.config, src, valid, attentions)
        found = None
        if self.config.box_queries:
            encoded = self.transformer.encoder(src, pos, src_mask, attentions)
            found = self.box_queries.find(
                self.backbone[1], encoded[0], features, image_sizes_hw(pixel_values, pixel_mask)
            )
            features = features if self.has_mask_head else features[-1:]  # the finer ones have been read
            decoded, references = self.transformer.decoder(queries, found, self.bbox_embed, attentions)
            queries.reference = references if every_layer else references[-1:]
        else:
            query_pos = queries.query_pos.expand(src.shape[0], -1, -1)
            memory_mask = padding_mask(self.config, query_pos, valid, attentions, memory=src)
            encoded, decoded = self.transformer(src, pos, queries, src_mask, memory_mask, attentions)
        norm = self.transformer.decoder.norm
        output = DETRModelOutput.of(encoded, decoded, norm, sizes_hw, attentions, hidden_states, every_layer)
        states = output.intermediate_hidden_states if every_layer else output.last_hidden_state[None]
        return Decoded(output, states, features, projected, queries, found)

    def object_queries(self, device: torch.device) -> DecoderQueries:
        """Returns the learned queries (1, Q, D) on `device`."""
        # called as a module, not read as a parameter, so that device_map can keep it anywhere
        return DecoderQueries(self.query_embed(torch.arange(self.config.num_queries, device=device))[None])

    def _check_inputs(self, pixel_values: Tensor, pixel_mask: Tensor | None) -> None:
        # nothing to look at for a compiler, which makes other code of another dtype
        weights = pixel_values.dtype if torch.compiler.is_compiling() else next(self.backbone.parameters()).dtype
        check_inputs(pixel_values, pixel_mask, self.config.num_channels, weights)


class DETRForObjectDetection(HasTrainingAids, DETRModel):
    """DETR with its class head and box head.

    >>> import torch
    >>> from detr_hf.model import DETRConfig, DETRForObjectDetection
    >>> model = DETRForObjectDetection(DETRConfig(backbone="resnet18", id2label={0: "cat", 1: "dog"})).eval()
    >>> outputs = model(torch.randn(2, 3, 256, 320))
    >>> outputs.logits.shape, outputs.pred_boxes.shape  # two classes and no-object; cxcywh in [0, 1]
    (torch.Size([2, 100, 3]), torch.Size([2, 100, 4]))
    """

    _keys_to_ignore_on_load_unexpected = {  # noqa: RUF012
        *DETRPreTrainedModel._keys_to_ignore_on_load_unexpected,
        r"^(bbox_attention|mask_head)\.",
    }

    def make_heads(self, config: DETRConfig, backbone: Backbone) -> None:
        """Adds the class head and the box head, and what options of the configuration ask for besides."""
        self.class_embed = nn.Linear(config.hidden_dim, config.num_labels + 1)  # the last class is no-object
        self.bbox_embed = MLP(config.hidden_dim, config.hidden_dim, 4, 3)
        if config.reference_points:
            self.refpoint_embed = nn.Embedding(config.num_queries, 2)  # logits of x, y in [0, 1] of the image
        if config.has_training_aids:
            self.training_aids = TrainingAids(config)

    @property
    def loss_function(self) -> SetCriterion:
        """The criterion that `config` describes, or the callable that was set in its place.

        Such a callable takes (logits, pred_boxes, labels) as `SetCriterion.forward` does, and returns the loss and its
        parts.
        """
        if getattr(self, "_loss_function", None) is not None:
            return self._loss_function
        return self.criterion()

    @loss_function.setter
    def loss_function(self, value: Any) -> None:
        self._loss_function = value

    def criterion(self) -> SetCriterion:
        """Returns the criterion that the configuration describes."""
        config = self.config
        matcher = HungarianMatcher(config.set_cost_class, config.set_cost_bbox, config.set_cost_giou)
        weights = {"loss_ce": 1.0, "loss_bbox": config.bbox_loss_coef, "loss_giou": config.giou_loss_coef}
        rules = (config.eos_coef, config.iou_label_power, config.class_weight_values(), config.focal_gamma)
        return SetCriterion(matcher, weights, *rules)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        labels: list[dict[str, Tensor]] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> DETRObjectDetectionOutput:
        """Returns class logits and boxes of every query, and the loss when labels are given.

        Args:
            pixel_values: (B, C, H, W), floating point, normalised; smaller images padded at the right and the bottom.
            pixel_mask: (B, H, W), 1 on the image and 0 on padding; None means no padding.
            labels: for each image `class_labels` (N,) int64 in [0, K) and `boxes` (N, 4), cxcywh in [0, 1] of the
                unpadded image.
            output_attentions: also return those of every layer.
            output_hidden_states: also return those of every layer.
            **kwargs: for transformers' sake; unused.
        """
        asked = (output_attentions, output_hidden_states)
        decoded, predictions, loss, parts = self.detect(pixel_values, pixel_mask, labels, *asked)
        return DETRObjectDetectionOutput.of(predictions, decoded.output, loss, parts)

    def detect(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None,
        labels: list[dict[str, Tensor]] | None,
        output_attentions: bool | None,
        output_hidden_states: bool | None,
    ) -> tuple[Decoded, Predictions, Tensor | None, dict[str, Tensor] | None]:
        """Returns what was decoded, the predictions of every layer, the loss and its parts; arguments as `forward`."""
        every_layer = self.config.aux_loss and (self.training or labels is not None)
        options = (every_layer, output_attentions, output_hidden_states)
        is_frozen = self.has_mask_head and self.config.freeze_detector  # aids would help nobody to learn
        if self.training and labels is not None and self.config.has_training_aids and not is_frozen:
            return forward_with_aids(self, pixel_values, pixel_mask, labels, *options)
        queries = self.object_queries(pixel_values.device)
        decoded = self.decode(pixel_values, pixel_mask, queries, *options)
        predictions = self.predict(decoded.states, decoded.queries.reference)
        if decoded.found is not None:
            predictions = without_invalid(predictions, decoded.found.valid)
        loss, parts = self.loss_of(predictions, labels)
        if labels is not None and decoded.found is not None:
            its_loss, its_parts = proposal_loss(self.box_queries, self.criterion(), decoded.found, labels)
            loss, parts = loss + its_loss, parts | its_parts
        return decoded, predictions, loss, parts

    def object_queries(self, device: torch.device) -> DecoderQueries:
        """Returns the learned queries (1, Q, D) on `device`, with their reference points if there are any."""
        queries = super().object_queries(device)
        if self.config.reference_points:
            queries.reference = self.refpoint_embed(torch.arange(self.config.num_queries, device=device))[None]
        return queries

    def predict(self, states: Tensor, reference: Tensor | None = None) -> Predictions:
        """Returns class logits (..., K + 1) and boxes (..., 4) of `states` (..., D).

        `reference`, logits (..., 2) of centres or (..., 4) of boxes, is added to those of the boxes.
        """
        raw = self.bbox_embed(states)
        if reference is not None:
            known = reference.shape[-1]
            raw = torch.cat([raw[..., :known] + reference.to(raw.dtype), raw[..., known:]], dim=-1)
        return Predictions(self.class_embed(states), raw.sigmoid())

    def loss_of(
        self, predictions: Predictions, labels: list[dict[str, Tensor]] | None
    ) -> tuple[Tensor | None, dict[str, Tensor] | None]:
        """Returns the loss and its parts, or None and None without labels."""
        if labels is None:
            return None, None
        return self.loss_function(predictions.logits, predictions.boxes_cxcywh_norm, labels)

    def optimize_for_inference(
        self, dtype: torch.dtype | str | None = None, compile: bool | str = False
    ) -> "DETRForObjectDetection":
        """Returns this model in eval mode, in `dtype`, compiled: what is faster and needs consent.

        Args:
            dtype: of weights and pixels, as "bfloat16"; None keeps it.
            compile: True, or a mode of torch.compile such as "reduce-overhead" (CUDA graphs). The model then runs
                without gradients, and on the CPU with the weights of its first call. False undoes it.
        """
        return optimize_for_inference(self, dtype, compile)

    def to_transformers(self) -> PreTrainedModel:
        """Returns transformers' own model with the same weights and outputs.

        That is `DetrForObjectDetection`, or `TableTransformerForObjectDetection` under `pre_norm`.

        Raises:
            ValueError: when transformers' model cannot compute the same, with the reason.
            ImportError: when only the model's own files are at hand, not the package.
        """
        if self.workshop is None:
            raise ImportError("to_transformers() needs the package detr_hf: pip install detr_hf, then import detr_hf.")
        return self.workshop.to_transformers(self)


class DETRForSegmentation(FreezesDetector, DETRForObjectDetection):
    """The detector, and a mask for each of its queries: instances, and with stuff classes panoptic segments.

    >>> import torch
    >>> from detr_hf.model import DETRConfig, DETRForSegmentation
    >>> model = DETRForSegmentation(DETRConfig(backbone="resnet18", id2label={0: "cat", 1: "grass"})).eval()
    >>> outputs = model(torch.randn(2, 3, 256, 320))
    >>> outputs.pred_masks.shape, outputs.image_sizes_hw.tolist()  # logits at a quarter of the input's size
    (torch.Size([2, 100, 64, 80]), [[256, 320], [256, 320]])
    """

    has_mask_head = True
    _keys_to_ignore_on_load_unexpected = DETRPreTrainedModel._keys_to_ignore_on_load_unexpected

    def make_heads(self, config: DETRConfig, backbone: Backbone) -> None:
        """Adds the detector's heads, the attention map and the mask head."""
        super().make_heads(config, backbone)
        strides = backbone.body.feature_info.reduction()
        if strides != [4, 8, 16, 16 if config.dilation else 32]:
            raise ValueError(
                f"The backbone {config.backbone} has maps at the strides {strides}; a mask head needs strides "
                "4, 8, 16 and 32, as ResNets, EfficientNets and ConvNeXts have them."
            )
        self.bbox_attention = MHAttentionMap(config.hidden_dim, config.nheads)
        finest, finer, fine = backbone.num_channels[:3]
        self.mask_head = MaskHeadSmallConv(config.hidden_dim, config.nheads, (finest, finer, fine), config.activation)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        labels: list[dict[str, Tensor]] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        mask_score_threshold: float | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> DETRSegmentationOutput:
        """Returns class logits, boxes and mask logits of every query, and the loss when labels are given.

        Args:
            pixel_values: (B, C, H, W), floating point, normalised; smaller images padded at the right and the bottom.
            pixel_mask: (B, H, W), 1 on the image and 0 on padding; None means no padding.
            labels: as for detection, and `masks` (N, H', W') bool, in the frame of the padded input or of the image
                inside it; `has_mask` (N,) bool where an object has none, of which the box alone is learnt.
            output_attentions: also return those of every layer.
            output_hidden_states: also return those of every layer.
            mask_score_threshold: masks only of queries whose score, that of the best class but no-object, is above it;
                None takes the configuration's. With labels, those with an object have one too, in training no others.
            **kwargs: for transformers' sake; unused.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_detector):
            asked = (output_attentions, output_hidden_states)
            decoded, predictions, loss, parts = self.detect(pixel_values, pixel_mask, labels, *asked)
        sizes_hw = image_sizes_hw(pixel_values, pixel_mask)
        padded_hw = (pixel_values.shape[-2], pixel_values.shape[-1])
        threshold = self.config.mask_score_threshold if mask_score_threshold is None else mask_score_threshold
        if labels is None:
            masks = predict_masks(self, decoded, predictions, threshold)
        else:
            masks, its_loss, its_parts = train_masks(
                self, decoded, predictions, labels, padded_hw, sizes_hw, threshold
            )
            loss, parts = loss + its_loss, parts | its_parts
        fields = {"pred_masks": masks, "image_sizes_hw": sizes_hw}
        fields["padded_sizes_hw"] = sizes_hw.new_tensor(padded_hw).expand_as(sizes_hw)
        return DETRSegmentationOutput.of(predictions, decoded.output, loss, parts, **fields)

    def criterion(self) -> SetCriterion:
        """Returns the detector's criterion, with the losses of masks; those of a frozen detector weigh nothing."""
        config, criterion = self.config, super().criterion()
        weights = dict.fromkeys(criterion.weights, 0.0) if config.freeze_detector else criterion.weights
        weights |= {"loss_mask": config.mask_loss_coef, "loss_dice": config.dice_loss_coef}
        return replace(criterion, weights=weights, mask_loss_on_padding=config.mask_loss_on_padding)
