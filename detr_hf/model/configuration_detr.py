"""Configuration of DETR in the vocabulary of the original code.

What differs on purpose:

- from the original: the number of classes is never an argument of its own, it is the length of `id2label`;
- from transformers' `DetrConfig`: an unknown argument is an error instead of a silent attribute, loss weights are
  floats, and impossible combinations are refused here rather than deep inside the model. transformers' names
  (`d_model`, `encoder_layers`, `bbox_cost`, ...) are understood as aliases.
"""

import copy
import difflib
import math
from collections.abc import Mapping, Sequence

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import logging

logger = logging.get_logger(__name__)

POSITION_EMBEDDINGS = {"sine": "sine", "v2": "sine", "learned": "learned", "v3": "learned"}

# Keyword arguments that transformers itself hands to a configuration, beside its dataclass fields.
_TRANSFORMERS_ARGUMENTS = frozenset(
    {
        "num_labels",
        "name_or_path",
        "torch_dtype",
        "dtype",
        "attn_implementation",
        "experts_implementation",
        "output_attentions",
        "per_layer_config",
        "auto_map",
        "custom_pipelines",
        "quantization_config",
        "model_type",
        "transformers_version",
        "tie_word_embeddings",
        "task_specific_params",
        "finetuning_task",
        "use_bfloat16",
        "tokenizer_class",
        "prefix",
        "bos_token_id",
        "pad_token_id",
        "eos_token_id",
        "sep_token_id",
        "decoder_start_token_id",
        "is_decoder",
        "cross_attention_hidden_size",
        "add_cross_attention",
        "use_cache",
        "tie_encoder_decoder",
        "torchscript",
        "pruned_heads",
        "return_unused_kwargs",
    }
)

# A field that a pushed config.json has for transformers' own DETR classes. They would make a random model of the names
# that both configurations share, and only warn; at a text where they expect a number they stop. Here it is dropped.
NOT_PLAIN_DETR = (
    "init_std",
    "not a checkpoint of transformers' DETR, but of detr_hf: pip install detr_hf, or use trust_remote_code=True with "
    "an auto class",
)


@strict
class DETRConfig(PreTrainedConfig):
    r"""Holds the architecture and the loss of a DETR (Carion et al., 2020).

    Args:
        hidden_dim (`int`): width of the transformer, D.
        nheads (`int`): attention heads, M; must divide `hidden_dim`.
        enc_layers (`int`), dec_layers (`int`): transformer layers; L decoder layers.
        dim_feedforward (`int`): width of the feed-forward networks.
        dropout (`float`): probability in [0, 1), used on attention weights, after the activation and on every residual
            branch.
        activation (`str`): feed-forward activation, any name of transformers' `ACT2FN`.
        pre_norm (`bool`): normalise before each block, not after (the original's `--pre_norm`; Table Transformer).
        num_queries (`int`): object queries Q, the most objects that one image can return.
        position_embedding (`str`): `"sine"` (`"v2"`) or `"learned"` (`"v3"`).
        num_position_embeddings (`int`): rows and columns of the learned tables (50 in the original). Larger feature
            maps read the tables linearly interpolated.
        backbone (`str`): name of any timm model that supports `features_only`.
        backbone_kwargs (`dict`): further arguments of `timm.create_model`.
        backbone_weights (`str`): `"imagenet"` (timm's weights, from the Hub) or a local file. Read when a model is
            built from this configuration, never when a checkpoint is loaded.
        train_backbone (`bool`): train everything after the stride-4 stage (`layer2` to `layer4` of a ResNet); `False`
            freezes all.
        dilation (`bool`): stride 1 and dilation 2 in the last stage (DC5), which halves the output stride.
        num_channels (`int`): channels of `pixel_values`.
        aux_loss (`bool`): add the loss of every earlier decoder layer. Changes no prediction.
        set_cost_class, set_cost_bbox, set_cost_giou (`float`): weights of the matching cost (paper, eq. 1 and 4).
            Read in training only; the recipe `fast` sets the first to 4.
        bbox_loss_coef, giou_loss_coef, mask_loss_coef, dice_loss_coef (`float`): weights of the losses; that of
            the classification is 1.
        mask_loss_on_padding (`bool`): count pixels of padding in the losses of masks, as the original does. Without,
            the loss of an image does not depend on its batch mates.
        mask_score_threshold (`float`): masks only of queries whose score is above it; `None` for all.
        freeze_detector (`bool`): train the mask head alone (the original's recipe for masks).
        eos_coef (`float`): weight of the no-object class in the cross-entropy.
        iou_label_power (`float`): the probability that a query matched to an object should give the object's class is
            the IoU of their boxes to this power, the rest being no-object's, so that scores tell how well a box fits
            (as varifocal loss, H. Zhang et al., 2021). 0 is the original's 1.
        reference_points (`bool`): a learned point per query is added to the centre of its box, before the sigmoid.
            Zero is plain DETR. Another implementation cannot run such a checkpoint, and refuses it.
        encoder_aux_head (`bool`): training only. Class head and box head are also asked about every encoder token
            inside an object.
        encoder_aux_coef (`float`): weight of that loss.
        num_query_groups (`int`): training only. Groups of object queries, each matched on its own; 1 is plain DETR.
        num_denoising (`int`): training only. About as many queries start from labels and boxes with noise; 0 is none.
        label_noise_ratio (`float`): part of the denoising queries that get another label, in [0, 1].
        box_noise_scale (`float`): how far their boxes are moved: 1 moves a centre to the border of the box at most.
        denoising_negatives (`bool`): with every denoising query comes one moved farther, which should find nothing.

    The options that say "training only" add weights under `training_aids.` and change no output in evaluation;
    `strip_training_aids()` removes them.

    Raises:
        ValueError: for an unknown argument (the nearest field is named) or an impossible combination.
    """

    model_type = "detr_hf"
    keys_to_ignore_at_inference = [  # noqa: RUF012 - the type that transformers reads
        "loss_dict",
        "auxiliary_outputs",
        "last_hidden_state",
        "intermediate_hidden_states",
        "decoder_hidden_states",
        "decoder_attentions",
        "cross_attentions",
        "encoder_last_hidden_state",
        "encoder_hidden_states",
        "encoder_attentions",
    ]
    attribute_map = {  # noqa: RUF012
        "hidden_size": "hidden_dim",
        "d_model": "hidden_dim",
        "num_attention_heads": "nheads",
        "encoder_attention_heads": "nheads",
        "decoder_attention_heads": "nheads",
        "num_hidden_layers": "enc_layers",
        "encoder_layers": "enc_layers",
        "decoder_layers": "dec_layers",
        "encoder_ffn_dim": "dim_feedforward",
        "decoder_ffn_dim": "dim_feedforward",
        "activation_function": "activation",
        "position_embedding_type": "position_embedding",
        "auxiliary_loss": "aux_loss",
        "class_cost": "set_cost_class",
        "bbox_cost": "set_cost_bbox",
        "giou_cost": "set_cost_giou",
        "bbox_loss_coefficient": "bbox_loss_coef",
        "giou_loss_coefficient": "giou_loss_coef",
        "mask_loss_coefficient": "mask_loss_coef",
        "dice_loss_coefficient": "dice_loss_coef",
        "eos_coefficient": "eos_coef",
    }

    hidden_dim: int = 256
    nheads: int = 8
    enc_layers: int = 6
    dec_layers: int = 6
    dim_feedforward: int = 2048
    dropout: float | int = 0.1
    activation: str = "relu"
    pre_norm: bool = False
    num_queries: int = 100
    position_embedding: str = "sine"
    num_position_embeddings: int = 50
    backbone: str = "resnet50"
    backbone_kwargs: dict | None = None
    backbone_weights: str | None = None
    train_backbone: bool = True
    dilation: bool = False
    num_channels: int = 3
    aux_loss: bool = True
    set_cost_class: float | int = 1.0
    set_cost_bbox: float | int = 5.0
    set_cost_giou: float | int = 2.0
    bbox_loss_coef: float | int = 5.0
    giou_loss_coef: float | int = 2.0
    mask_loss_coef: float | int = 1.0
    dice_loss_coef: float | int = 1.0
    mask_loss_on_padding: bool = False
    mask_score_threshold: float | None = None
    freeze_detector: bool = False
    eos_coef: float | int = 0.1
    iou_label_power: float | int = 0.0
    reference_points: bool = False
    encoder_aux_head: bool = False
    encoder_aux_coef: float | int = 3.0
    num_query_groups: int = 1
    num_denoising: int = 0
    label_noise_ratio: float | int = 0.2
    box_noise_scale: float | int = 0.4
    denoising_negatives: bool = False
    is_encoder_decoder: bool = True

    def __post_init__(self, **kwargs):
        self._refuse_unknown(kwargs)
        if self.id2label is not None:
            self.id2label = normal_labels(self.id2label)
            self._check_labels(kwargs.get("num_labels"))
        super().__post_init__(**kwargs)
        if self.position_embedding not in POSITION_EMBEDDINGS:
            raise ValueError(_choice_error("position_embedding", self.position_embedding, POSITION_EMBEDDINGS))
        self.position_embedding = POSITION_EMBEDDINGS[self.position_embedding]
        if self.label2id is None and self.id2label is not None:
            self.label2id = {name: index for index, name in self.id2label.items()}
        # `strict` runs these as well, here and before saving, but wraps what they raise in an error of its own
        self.validate_transformer()
        self.validate_loss()
        self.validate_backbone()

    @property
    def has_training_aids(self) -> bool:
        """Whether any option is on that only training uses."""
        return self.encoder_aux_head or self.num_query_groups > 1 or self.num_denoising > 0

    def without_training_aids(self) -> "DETRConfig":
        """Returns a copy in which these options are off."""
        plain = copy.deepcopy(self)
        plain.switch_off_training_aids()
        return plain

    def switch_off_training_aids(self) -> None:
        """Makes this the configuration of a model that only infers."""
        self.encoder_aux_head, self.num_query_groups, self.num_denoising = False, 1, 0

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """Returns the configuration that a `config.json` holds.

        What a file holds besides is kept and said, not refused: somebody wrote it there, and the weights beside it
        must still load.
        """
        config_dict = {name: value for name, value in config_dict.items() if (name, value) != NOT_PLAIN_DETR}
        unknown = {name: value for name, value in config_dict.items() if not cls._knows(name)}
        result = super().from_dict({name: config_dict[name] for name in config_dict if name not in unknown}, **kwargs)
        config = result[0] if isinstance(result, tuple) else result
        for name, value in unknown.items():
            logger.warning(f"The configuration has a field {name!r} that DETR does not know; it is kept and not used.")
            setattr(config, name, value)
        return result

    @classmethod
    def _knows(cls, name: str) -> bool:
        fields = (cls.__dataclass_fields__, cls.attribute_map, _TRANSFORMERS_ARGUMENTS)
        return name.startswith("_") or any(name in known for known in fields)

    def _refuse_unknown(self, arguments: dict) -> None:
        for name in arguments:
            if self._knows(name):
                continue
            known = [field for field in self.__dataclass_fields__ if not field.startswith("_")]
            known += [*self.attribute_map, "num_labels"]
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise ValueError(f"DETRConfig has no argument {name!r}. The nearest one is {nearest!r}.")

    def _check_labels(self, num_labels: int | None) -> None:
        ids = sorted(self.id2label)
        if ids != list(range(len(ids))):
            missing = sorted(set(range(max(ids, default=0) + 1)) - set(ids))[:5]
            raise ValueError(
                f"id2label must map 0..K-1 without gaps to names; it has {len(ids)} ids from {ids[0]} to {ids[-1]} "
                f"and lacks {missing}. Remap the ids to 0..{len(ids) - 1}, or name the unused ones (the COCO "
                "checkpoints use 'N/A')."
            )
        if num_labels is not None and num_labels != len(ids):
            raise ValueError(
                f"num_labels={num_labels} disagrees with id2label, which names {len(ids)} classes. Give id2label "
                "alone."
            )

    def validate_transformer(self):
        """Refuses widths, layers and probabilities that no transformer can have."""
        for name in (
            "hidden_dim",
            "nheads",
            "enc_layers",
            "dec_layers",
            "dim_feedforward",
            "num_queries",
            "num_channels",
            "num_query_groups",
            "num_denoising",
        ):
            least = 0 if name in ("enc_layers", "num_denoising") else 1
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, but is {getattr(self, name)}.")
        if self.hidden_dim % self.nheads:
            divisors = [heads for heads in range(1, self.hidden_dim + 1) if self.hidden_dim % heads == 0]
            nearest = min(divisors, key=lambda heads: abs(heads - self.nheads))
            raise ValueError(
                f"hidden_dim={self.hidden_dim} is not divisible by nheads={self.nheads}. The nearest valid nheads "
                f"is {nearest}."
            )
        multiple = 4 if self.position_embedding == "sine" else 2
        if self.hidden_dim % multiple:
            lower = max(multiple, self.hidden_dim // multiple * multiple)
            raise ValueError(
                f"hidden_dim={self.hidden_dim} must be divisible by {multiple} for {self.position_embedding} "
                "position embeddings (half of the channels encode y, half "
                f"x{', in sine-cosine pairs' if multiple == 4 else ''}). The nearest valid values are {lower} and "
                f"{lower + multiple}."
            )
        if self.num_position_embeddings < 1:
            raise ValueError(f"num_position_embeddings must be at least 1, but is {self.num_position_embeddings}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), but is {self.dropout}.")
        if self.activation not in ACT2FN:
            raise ValueError(_choice_error("activation", self.activation, ACT2FN))

    def validate_loss(self):
        """Refuses loss and cost weights that cannot train, and an empty class list."""
        costs = {name: getattr(self, name) for name in ("set_cost_class", "set_cost_bbox", "set_cost_giou")}
        weights = ("bbox_loss_coef", "giou_loss_coef", "mask_loss_coef", "dice_loss_coef", "eos_coef")
        weights += ("iou_label_power", "encoder_aux_coef", "box_noise_scale")
        for name, value in {**costs, **{name: getattr(self, name) for name in weights}}.items():
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a finite number that is not negative, but is {value}.")
        if not 0 <= self.label_noise_ratio <= 1:
            raise ValueError(f"label_noise_ratio must be in [0, 1], but is {self.label_noise_ratio}.")
        if not any(costs.values()):
            raise ValueError(
                "All matching costs are 0 (set_cost_class, set_cost_bbox, set_cost_giou), so that queries could not "
                "be matched to objects. The original's values are 1, 5 and 2."
            )
        if self.num_labels is not None and self.num_labels < 1:
            raise ValueError("id2label is empty: name at least one class, for example id2label={0: 'object'}.")

    def validate_backbone(self):
        """Refuses a backbone that timm does not know, or timm arguments that this configuration owns."""
        import timm  # only here: it takes a second that reading a module need not cost

        if not timm.is_model(self.backbone):
            raise ValueError(
                _choice_error("backbone", self.backbone, timm.list_models(), "timm.list_models() lists them")
            )
        owned = {"features_only", "pretrained", "in_chans", "output_stride", "out_indices"} & set(
            self.backbone_kwargs or ()
        )
        if owned:
            raise ValueError(
                f"backbone_kwargs must not contain {sorted(owned)}: use num_channels for the input channels, "
                "dilation for the output stride and backbone_weights for pretrained weights; DETR reads the last "
                "feature map."
            )


def normal_labels(labels: Mapping | Sequence) -> dict[int, str]:
    """Returns class names by index, from a mapping whose keys are numbers or their text (as in JSON), or from a list.

    Raises:
        TypeError: for anything else.
        ValueError: for a key that is no whole number, and for a class without a name.
    """
    if isinstance(labels, Sequence) and not isinstance(labels, str):
        labels = dict(enumerate(labels))
    if not isinstance(labels, Mapping):
        raise TypeError(f"id2label is {labels!r}; expected a mapping of index to name, or a list of names.")
    try:
        named = {int(index): name for index, name in labels.items()}
    except (TypeError, ValueError):
        raise ValueError(
            f"id2label maps {list(labels)[:3]}; its keys are the indices 0..K-1. Name to index is label2id."
        ) from None
    nameless = [index for index, name in named.items() if name is None or not str(name).strip()]
    if nameless:
        raise ValueError(f"id2label gives no name to class {nameless[:5]}; unused ids of COCO are called 'N/A'.")
    return {index: str(name) for index, name in named.items()}


def _choice_error(name: str, value: str, choices, listing: str = "") -> str:
    nearest = difflib.get_close_matches(str(value), list(choices), n=1, cutoff=0.0)[0]
    listing = listing or f"the choices are {', '.join(sorted(choices))}"
    return f"{name}={value!r} is not known; {listing}. Did you mean {nearest!r}?"
