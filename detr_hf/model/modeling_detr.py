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

import itertools
import math
import os
import re
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.configuration_utils import PreTrainedConfig
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import ModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple

from .backbone_detr import (
    Backbone,
    FrozenBatchNorm2d,
    Joiner,
    PositionEmbeddingLearned,
    build_position_encoding,
)
from .compiling_detr import optimize_for_inference
from .configuration_detr import DETRConfig
from .loss_detr import HungarianMatcher, PackedTargets, SetCriterion
from .training_aids_detr import COPIED_FROM, PREFIX, FeatureFrame, TrainingAids, assign_tokens, encoder_loss
from .transformer_detr import (
    DecoderQueries,
    MultiheadAttention,
    Transformer,
    TransformerDecoderLayer,
    TransformerEncoderLayer,
)

logger = logging.get_logger(__name__)

# What a repository that carries this code tells transformers' auto classes.
AUTO_MAP = {
    "AutoConfig": "configuration_detr.DETRConfig",
    "AutoModel": "modeling_detr.DETRModel",
    "AutoModelForObjectDetection": "modeling_detr.DETRForObjectDetection",
}

LEAST_LOADED = 0.9  # a checkpoint that fills less of the model than this is not its checkpoint


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
        cross_attentions: L tensors (B, M, Q, S), over the cells of the feature map, row by row.
        encoder_last_hidden_state: (B, S, D), the memory.
        encoder_hidden_states: input and output of every encoder layer, (B, S, D).
        encoder_attentions: tensors (B, M, S, S).
    """

    last_hidden_state: Tensor | None = None
    intermediate_hidden_states: Tensor | None = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    encoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor, ...] | None = None


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


class MLP(nn.Module):
    """A stack of linear layers with ReLU between them (the box head has three)."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int):
        super().__init__()
        widths = [input_dim] + [hidden_dim] * (num_layers - 1) + [output_dim]
        self.layers = nn.ModuleList(nn.Linear(n, k) for n, k in itertools.pairwise(widths))

    def forward(self, states: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            states = F.relu(layer(states))
        return self.layers[-1](states)


class DETRPreTrainedModel(PreTrainedModel):
    """Initialisation, loading and freezing for every DETR model."""

    config: DETRConfig
    # What only the package can do: foreign checkpoints, verified files, cards, conversion. It hands itself in when it
    # is imported; code that travelled with a checkpoint has None, whatever is installed beside it.
    workshop: ClassVar[Any] = None
    base_model_prefix = ""  # the heads sit beside the base model's parts, as in the original
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["Backbone", "TransformerEncoderLayer", "TransformerDecoderLayer"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keys_to_ignore_on_load_unexpected = {r"\.num_batches_tracked$", rf"^{re.escape(PREFIX)}"}  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draws the original's initial values; a parent is visited after its children and overrules them."""
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))  # torch's default
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        elif isinstance(module, MultiheadAttention):
            _init_attention(module)
        elif isinstance(module, (TransformerEncoderLayer, TransformerDecoderLayer)):
            init.xavier_uniform_(module.linear1.weight)
            init.xavier_uniform_(module.linear2.weight)
        elif isinstance(module, PositionEmbeddingLearned):
            init.uniform_(module.row_embed.weight)
            init.uniform_(module.col_embed.weight)
        elif isinstance(module, FrozenBatchNorm2d):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
        elif isinstance(module, Backbone):
            _init_backbone(module)
        elif hasattr(module, "init_non_persistent_buffers"):  # timm's tables that no checkpoint holds
            module.init_non_persistent_buffers()
        else:
            super()._init_weights(module)

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # For classes outside transformers the base class passes over every module without parameters of its own, such
        # as attention: a guard against initialisers that overwrite what is loaded, which ours do not.
        super()._initialize_weights(module, is_custom_code=False)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """Returns the model with the weights of any DETR checkpoint.

        Args:
            pretrained_model_name_or_path: a folder or Hub id of this package, of transformers' `detr` or of
                `table-transformer`, or an original `.pth` file.
            config: overrides the checkpoint's configuration.
            **kwargs: as in transformers. `verify=True` first compares all files with the SHA-256 manifest.
                Configuration fields may be given too. With another `id2label` the class head is made anew, keeping the
                no-object row and the rows of classes of the same name; with another `num_queries` the first queries
                are kept or all are tiled; either is said in the log.

        Raises:
            ValueError: when the checkpoint is not a DETR, or fills less than 90 % of the model's tensors.
        """
        output_loading_info = kwargs.pop("output_loading_info", False)
        state_dict = kwargs.pop("state_dict", None)
        name = pretrained_model_name_or_path
        if kwargs.pop("verify", False):
            kwargs = cls._verify(name, kwargs)
        if state_dict is None and name is not None:
            name, config, state_dict = cls._translate(name, config, kwargs)
        model, info = super().from_pretrained(
            name, *model_args, config=config, state_dict=state_dict, output_loading_info=True, **kwargs
        )
        if pretrained_model_name_or_path is not None:
            model.name_or_path = model.config.name_or_path = str(pretrained_model_name_or_path)
            new = model._fill_new_parts(set(info["missing_keys"]))
            model._refuse_foreign_weights(set(info["missing_keys"]) - new, pretrained_model_name_or_path)
        model.freeze()  # loading has rebuilt every parameter with requires_grad
        return (model, info) if output_loading_info else model

    @classmethod
    def _verify(cls, name, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Returns the arguments that load what was verified."""
        if cls.workshop is None:
            raise ImportError(
                "verify=True needs the package detr_hf (pip install detr_hf, then import detr_hf); without it, "
                "`sha256sum --check SHA256SUMS` in the checkpoint's folder does the same."
            )
        return cls.workshop.verified_arguments(name, kwargs)

    @classmethod
    def _translate(cls, name, config: PreTrainedConfig | None, kwargs: dict[str, Any]):
        """Returns name, config and state dict to load: as given for an own checkpoint that fits, else translated."""
        if cls.workshop is None:  # this file travelled alone with a checkpoint: it reads its own layout only
            return name, config, None
        return cls.workshop.prepare_loading(name, config, kwargs)

    def _fill_new_parts(self, missing: set[str]) -> set[str]:
        """Gives options that the checkpoint was not trained with their first values; returns those tensors' names."""
        if "refpoint_embed.weight" in missing:
            nn.init.zeros_(self.refpoint_embed.weight)  # plain DETR
        new_groups = [new for new in COPIED_FROM if f"{PREFIX}{new}.weight" in missing]
        trained = [new for new in new_groups if f"{COPIED_FROM[new]}.weight" not in missing]
        if trained:
            self.training_aids.copy_queries(self, trained)
        return {name for name in missing if name.startswith(PREFIX) or name == "refpoint_embed.weight"}

    def _refuse_foreign_weights(self, missing: set[str], source) -> None:
        """Raises ValueError when `source` did not fill this model, or filled it with NaN or infinity."""
        expected = self.state_dict().keys()
        loaded = len(expected) - len(set(missing) & expected)
        if loaded < LEAST_LOADED * len(expected):
            raise ValueError(
                f"{source} fills only {loaded} of the {len(expected)} tensors of {type(self).__name__}; missing are, "
                f"for example, {sorted(missing)[:3]}. It is not a checkpoint of this model: check the path and the "
                "configuration."
            )
        broken = [name for name, tensor in self.state_dict().items() if _is_broken(tensor)]
        if broken:
            raise ValueError(
                f"{source} holds values that are not finite in {len(broken)} tensors, for example {broken[:3]}. The "
                "file is damaged, or the training that wrote it had diverged; take an earlier checkpoint."
            )

    def save_pretrained(self, save_directory, **kwargs) -> None:
        """Writes weights and configuration, and the code as well after `register_for_auto_class`.

        Raises:
            NotADirectoryError: when `save_directory` is a file.
        """
        if os.path.isfile(save_directory):
            raise NotADirectoryError(f"{save_directory} is a file; save_pretrained needs a folder to write into.")
        # transformers enters the saved class alone, and keeps a loaded repository's entries where no code is written
        self.config.__dict__.pop("auto_map", None)
        if self._auto_class is not None:
            self.config.auto_map = dict(AUTO_MAP)
        super().save_pretrained(save_directory, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs):
        """Publishes the model with processor, card, code and digests in one commit, and returns its `CommitInfo`.

        Args:
            repo_id: "name" or "owner/name".
            **kwargs: those of `detr_hf.hub.push`, such as `processor`, `evaluation`, `data`, `format` and `private`.
        """
        if self.workshop is None:  # this file travelled alone with a checkpoint
            logger.warning("Without the package detr_hf, weights, configuration and code are pushed, and no card.")
            return super().push_to_hub(repo_id, **kwargs)
        return self.workshop.push(self, repo_id, **kwargs)

    def get_input_embeddings(self) -> None:
        """Returns None: pictures are not looked up in a table. FSDP asks, to shard such a table by itself."""

    def freeze(self) -> None:
        """Sets `requires_grad` in the backbone as the configuration says."""
        for module in self.modules():
            if isinstance(module, Backbone):
                module.freeze()


def _is_broken(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and not tensor.is_meta and not bool(tensor.isfinite().all())


def _init_attention(attention: MultiheadAttention) -> None:
    width = attention.q_proj.in_features
    bound = math.sqrt(6 / (width + 3 * width))  # Xavier of the packed (3 D, D) matrix that the original draws
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        init.uniform_(projection.weight, -bound, bound)
        init.zeros_(projection.bias)
    init.xavier_uniform_(attention.out_proj.weight)
    init.zeros_(attention.out_proj.bias)


def _init_backbone(backbone: Backbone) -> None:
    """Draws what a ResNet is drawn from, for weights that neither timm nor a checkpoint provided."""
    for module in backbone.body.modules():
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                init.zeros_(module.bias)


class DETRModel(DETRPreTrainedModel):
    """Backbone, transformer and object queries, without heads."""

    # a detection or panoptic checkpoint has these besides; they belong to other classes
    _keys_to_ignore_on_load_unexpected = {  # noqa: RUF012
        *DETRPreTrainedModel._keys_to_ignore_on_load_unexpected,
        r"^(class_embed|bbox_embed|refpoint_embed|bbox_attention|mask_head)\.",
    }

    def __init__(self, config: DETRConfig):
        super().__init__(config)
        backbone = Backbone(config)
        self.transformer = Transformer(config)
        self._make_heads(config)
        self.query_embed = nn.Embedding(config.num_queries, config.hidden_dim)
        self.input_proj = nn.Conv2d(backbone.num_channels[-1], config.hidden_dim, kernel_size=1)
        self.backbone = Joiner(backbone, build_position_encoding(config))
        self.post_init()

    def _make_heads(self, config: DETRConfig) -> None:
        """Adds what stands on the transformer's output; the base model has nothing there."""

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
            output_attentions, output_hidden_states: also return those of every layer.
            **kwargs: for transformers' sake; unused.
        """
        every_layer = self.training and self.config.aux_loss
        return self._encode(pixel_values, pixel_mask, output_attentions, output_hidden_states, every_layer)[0]

    def _encode(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None,
        output_attentions: bool | None,
        output_hidden_states: bool | None,
        output_intermediate: bool,
        queries: DecoderQueries | None = None,
    ) -> tuple[DETRModelOutput, FeatureFrame]:
        """Returns the output, and where the encoder's tokens lie."""
        self._check_inputs(pixel_values, pixel_mask)
        attentions = self.config.output_attentions if output_attentions is None else output_attentions
        hidden_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states

        features, pos = self.backbone(pixel_values, pixel_mask)
        feature_map, mask = features[-1]
        src = self.input_proj(feature_map).flatten(2).transpose(1, 2)  # (B, S, D)
        pos = pos.flatten(2).transpose(1, 2)  # (B or 1, S, D)
        queries = queries or self._object_queries(src.device)
        src_mask, memory_mask = self._attention_masks(mask, src, queries.query_pos, attentions)
        encoded, decoded = self.transformer(src, pos, queries, src_mask, memory_mask, attentions)
        output = self._collect(encoded, decoded, attentions, hidden_states, output_intermediate)
        return output, FeatureFrame(*feature_map.shape[-2:], mask)

    def _object_queries(self, device: torch.device) -> DecoderQueries:
        # called as a module, not read as a parameter, so that device_map can keep it anywhere
        return DecoderQueries(self.query_embed(torch.arange(self.config.num_queries, device=device))[None])

    def _attention_masks(self, mask: Tensor | None, src: Tensor, query_pos: Tensor, output_attentions: bool):
        """Returns what the attention implementation needs to ignore padded cells, for encoder and cross-attention."""
        if mask is None:
            return None, None
        valid = mask.flatten(1)  # (B, S)
        if output_attentions or self.config._attn_implementation in (None, "eager", "sdpa"):
            broadcast = valid[:, None, None, :]  # without the host syncs of transformers' helper
            return broadcast, broadcast
        queries = query_pos.expand(len(valid), -1, -1)
        src_mask = create_bidirectional_mask(config=self.config, inputs_embeds=src, attention_mask=valid)
        memory_mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=queries, attention_mask=valid, encoder_hidden_states=src
        )
        return src_mask, memory_mask

    def _collect(self, encoded, decoded, attentions: bool, hidden_states: bool, intermediate: bool) -> DETRModelOutput:
        memory, encoder_states, encoder_attentions = encoded
        decoder_states, decoder_attentions, cross_attentions = decoded
        norm = self.transformer.decoder.norm
        stacked = norm(torch.stack(decoder_states[1:])) if intermediate else None  # (L, B, Q, D)
        last = stacked[-1] if intermediate else norm(decoder_states[-1])
        return DETRModelOutput(
            last_hidden_state=last,
            intermediate_hidden_states=stacked,
            decoder_hidden_states=(*decoder_states[:-1], last) if hidden_states else None,
            decoder_attentions=tuple(decoder_attentions) if attentions else None,
            cross_attentions=tuple(cross_attentions) if attentions else None,
            encoder_last_hidden_state=memory,
            encoder_hidden_states=tuple(encoder_states) if hidden_states else None,
            encoder_attentions=tuple(encoder_attentions) if attentions else None,
        )

    def _check_inputs(self, pixel_values: Tensor, pixel_mask: Tensor | None) -> None:
        shape = tuple(pixel_values.shape)
        if len(shape) != 4 or shape[1] != self.config.num_channels:
            raise ValueError(
                f"pixel_values has shape {shape}; expected (B, {self.config.num_channels}, H, W), as the image "
                "processor makes it."
            )
        if shape[0] == 0:
            raise ValueError("pixel_values has no image: the batch size is 0.")
        if not pixel_values.is_floating_point():
            raise ValueError(
                f"pixel_values is {pixel_values.dtype}; expected floating point, normalised by the image processor."
            )
        if pixel_mask is not None and tuple(pixel_mask.shape) != (shape[0], *shape[2:]):
            raise ValueError(
                f"pixel_mask has shape {tuple(pixel_mask.shape)}, but pixel_values {shape}; expected "
                f"{(shape[0], *shape[2:])}."
            )


class DETRForObjectDetection(DETRModel):
    """DETR with its class head and box head."""

    _keys_to_ignore_on_load_unexpected = {  # noqa: RUF012
        *DETRPreTrainedModel._keys_to_ignore_on_load_unexpected,
        r"^(bbox_attention|mask_head)\.",
    }

    def _make_heads(self, config: DETRConfig) -> None:
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
        return self._criterion()

    def _criterion(self) -> SetCriterion:
        config = self.config
        matcher = HungarianMatcher(config.set_cost_class, config.set_cost_bbox, config.set_cost_giou)
        weights = {"loss_ce": 1.0, "loss_bbox": config.bbox_loss_coef, "loss_giou": config.giou_loss_coef}
        return SetCriterion(matcher, weights, config.eos_coef, config.iou_label_power)

    @loss_function.setter
    def loss_function(self, value) -> None:
        self._loss_function = value

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
            output_attentions, output_hidden_states: also return those of every layer.
            **kwargs: for transformers' sake; unused.
        """
        every_layer = self.config.aux_loss and (self.training or labels is not None)
        queries, targets, known = self._object_queries(pixel_values.device), None, None
        if self.training and labels is not None and self.config.has_training_aids:
            targets = PackedTargets.from_list(labels, len(pixel_values), pixel_values.device)
            queries, known = self.training_aids.extend(queries, targets)
        encoded, frame = self._encode(
            pixel_values, pixel_mask, output_attentions, output_hidden_states, every_layer, queries
        )
        states = encoded.intermediate_hidden_states if every_layer else encoded.last_hidden_state[None]
        logits, pred_boxes = self._predict(states, queries.reference)  # (L or 1, B, Q, K + 1) and (L or 1, B, Q, 4)

        loss = loss_dict = None
        if targets is not None:
            loss, loss_dict = self._loss_with_aids(logits, pred_boxes, labels, targets, known)
            if self.config.encoder_aux_head:
                loss = loss + self._encoder_loss(encoded.encoder_last_hidden_state, frame, targets, loss_dict)
            # what further queries say is of no use to a caller
            logits, pred_boxes = (values[:, :, : self.config.num_queries] for values in (logits, pred_boxes))
        elif labels is not None:
            loss, loss_dict = self.loss_function(logits, pred_boxes, labels)
        return DETRObjectDetectionOutput(
            loss=loss,
            loss_dict=loss_dict,
            logits=logits[-1],
            pred_boxes=pred_boxes[-1],
            auxiliary_outputs=_by_layer(logits, pred_boxes) if every_layer else None,
            **encoded,
        )

    def _object_queries(self, device: torch.device) -> DecoderQueries:
        queries = super()._object_queries(device)
        if self.config.reference_points:
            queries.reference = self.refpoint_embed(torch.arange(self.config.num_queries, device=device))[None]
        return queries

    def _predict(self, states: Tensor, reference: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns class logits (..., K + 1) and boxes (..., 4) of `states` (..., D)."""
        raw = self.bbox_embed(states)
        if reference is not None:
            raw = torch.cat([raw[..., :2] + reference, raw[..., 2:]], dim=-1)
        return self.class_embed(states), raw.sigmoid()

    def _loss_with_aids(self, logits, pred_boxes, labels, targets, known) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns loss and parts of object queries in groups, each matched as a picture of its own, and of denoising.

        `logits` (L, B, G * Q + M, K + 1) and `pred_boxes` are those of the G groups and then of the M denoising
        queries.
        """
        groups, length = self.config.num_query_groups, self.config.num_query_groups * self.config.num_queries
        by_group = [values[:, :, :length].unflatten(2, (groups, -1)).flatten(1, 2) for values in (logits, pred_boxes)]
        loss, parts = self.loss_function(*by_group, [target for target in labels for _ in range(groups)])
        if known is not None:
            denoising, its_parts = self._criterion().known_assignment(
                logits[:, :, length:], pred_boxes[:, :, length:], known.classes, known.boxes_cxcywh_norm, known.valid
            )
            loss = loss + denoising
            parts |= {f"{name}_dn": value for name, value in its_parts.items()}
        return loss, parts

    def _encoder_loss(self, memory: Tensor, frame: FeatureFrame, targets: PackedTargets, parts: dict) -> Tensor:
        """Returns the weighted loss of the heads on the encoder's tokens, and adds it by part to `parts`."""
        # whole boxes, also where queries have reference points: that the tokens carry their place is what is wanted
        logits, pred_boxes = self._predict(memory, None)
        loss, its_parts = encoder_loss(logits, pred_boxes, assign_tokens(frame, targets), self._criterion().weights)
        parts |= {f"{name}_enc": value for name, value in its_parts.items()}
        return self.config.encoder_aux_coef * loss

    def add_training_aids(self, **options) -> "DETRForObjectDetection":
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

    def strip_training_aids(self) -> "DETRForObjectDetection":
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


def _by_layer(logits: Tensor, pred_boxes: Tensor) -> list[dict[str, Tensor]]:
    pairs = zip(logits[:-1].unbind(0), pred_boxes[:-1].unbind(0), strict=True)
    return [{"logits": layer_logits, "pred_boxes": layer_boxes} for layer_logits, layer_boxes in pairs]


__all__ = [
    "MLP",
    "DETRForObjectDetection",
    "DETRModel",
    "DETRModelOutput",
    "DETRObjectDetectionOutput",
    "DETRPreTrainedModel",
]
