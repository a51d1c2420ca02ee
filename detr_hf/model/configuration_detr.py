"""Configuration of DETR in the vocabulary of the original code.

What differs on purpose:

- from the original: the number of classes is never an argument of its own, it is the length of `id2label`;
- from transformers' `DetrConfig`: an unknown argument is an error instead of a silent attribute, loss weights are
  floats, and impossible combinations are refused here rather than deep inside the model. transformers' names
  (`d_model`, `encoder_layers`, `bbox_cost`, ...) are understood as aliases.
"""

import copy
import json
import sys
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import logging

from .arguments_detr import (
    LOADING_ARGUMENTS,
    NOT_PLAIN_DETR,
    TRANSFORMERS_ARGUMENTS,
    check_dtype,
    choice_error,
    refuse_unknown,
    take_foreign,
    without_refusals,
)
from .classes_detr import check_labels, indices_of, normal_class_weights, normal_labels, whole_number
from .presets_detr import PRESETS

logger = logging.get_logger(__name__)

POSITION_EMBEDDINGS = {"sine": "sine", "v2": "sine", "learned": "learned", "v3": "learned"}

_COUNTS = ["hidden_dim", "nheads", "enc_layers", "dec_layers", "dim_feedforward", "num_queries", "num_channels"]
_COUNTS += ["num_query_groups", "num_denoising", "num_feature_levels"]
_CLASSES = ("id2label", "label2id", "num_labels")
_NOT_BY_CALLER = ("dtype", "architectures", "transformers_version")  # transformers' loading has its own use for them


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
        class_weights (`dict`): weights of classes in the cross-entropy, by name or index, or a list of all; 1 where
            none is given. As torch's `cross_entropy(weight=...)`: every query counts with the weight of the class that
            it should give, and the loss is divided by the sum of these weights. Kept by name. None is the original.
        iou_label_power (`float`): the probability that a query matched to an object should give the object's class is
            the IoU of their boxes to this power, the rest being no-object's, so that scores tell how well a box fits
            (as varifocal loss, H. Zhang et al., 2021). 0 is the original's 1.
        reference_points (`bool`): a learned point per query is added to the centre of its box, before the sigmoid.
            Zero is plain DETR. Another implementation cannot run such a checkpoint, and refuses it.
        box_queries (`bool`): queries are boxes, which a head on the encoder's tokens finds in each picture and every
            decoder layer moves (see `box_queries_detr.py`). Another implementation cannot run such a checkpoint, and
            refuses it. The losses of that head are part of the loss.
        num_feature_levels (`int`): maps that the decoder of box queries reads: the encoder's, and finer ones of the
            backbone. 3 of a ResNet have strides 8, 16 and 32. Finer maps find smaller objects.
        focal_gamma (`float`): a query without an object counts in the cross-entropy with `eos_coef` times its
            probability of being one to this power, and the loss is divided by the number of objects (as the negatives
            of varifocal loss). 0 is the original's.
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
    # loss_dict is kept, as with transformers' DETR: whoever reads predictions by position finds logits second
    keys_to_ignore_at_inference = [  # noqa: RUF012 - the type that transformers reads
        "auxiliary_outputs",
        "last_hidden_state",
        "intermediate_hidden_states",
        "decoder_hidden_states",
        "decoder_attentions",
        "cross_attentions",
        "encoder_last_hidden_state",
        "encoder_hidden_states",
        "encoder_attentions",
        "feature_sizes_hw",
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
    class_weights: Any = None
    iou_label_power: float | int = 0.0
    reference_points: bool = False
    box_queries: bool = False
    num_feature_levels: int = 1
    focal_gamma: float | int = 0.0
    encoder_aux_head: bool = False
    encoder_aux_coef: float | int = 3.0
    num_query_groups: int = 1
    num_denoising: int = 0
    label_noise_ratio: float | int = 0.2
    box_noise_scale: float | int = 0.4
    denoising_negatives: bool = False
    is_encoder_decoder: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs = self.take_arguments(kwargs)
        if kwargs.get("num_labels") is not None:
            kwargs["num_labels"] = whole_number("num_labels", kwargs["num_labels"])
        numbers: Any = getattr(self, "label2id", None)
        if getattr(self, "id2label", None) is None and numbers is not None:
            self.id2label = {index: name for name, index in indices_of(numbers).items()}
        if self.id2label is not None:
            self.id2label = normal_labels(self.id2label)
            check_labels(self.id2label, kwargs.get("num_labels"), numbers)
            self.label2id = {name: index for index, name in self.id2label.items()}
        check_dtype(self.dtype, kwargs.get("torch_dtype"))
        super().__post_init__(**kwargs)
        if self.position_embedding not in POSITION_EMBEDDINGS:
            raise ValueError(choice_error("position_embedding", self.position_embedding, POSITION_EMBEDDINGS))
        self.position_embedding = POSITION_EMBEDDINGS[self.position_embedding]
        self.class_weights = normal_class_weights(self.class_weights, self.id2label)
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
    def from_preset(cls, name: str, **fields: Any) -> "DETRConfig":
        """Returns the configuration of one of `PRESETS`, such as "precise", with `fields` in place of its own.

        Raises:
            ValueError: there is no preset of that name.
        """
        if name not in PRESETS:
            raise ValueError(choice_error("preset", name, PRESETS))
        return cls(**PRESETS[name] | fields)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Returns the configuration that a `config.json` holds, with the fields among `kwargs` instead of its own.

        What a file holds besides is kept and said, not refused: somebody wrote it there, and the weights beside it
        must still load.
        """
        config_dict = without_refusals(config_dict)
        changes = {name: kwargs.pop(name) for name in list(kwargs) if cls.has_field(name)}
        config_dict = cls.with_changes(config_dict, changes)
        unknown = {name: value for name, value in config_dict.items() if not cls._knows(name)}
        result = super().from_dict({name: config_dict[name] for name in config_dict if name not in unknown}, **kwargs)
        config = result[0] if isinstance(result, tuple) else result
        for name, value in unknown.items():
            logger.warning(f"The configuration has a field {name!r} that DETR does not know; it is kept and not used.")
            setattr(config, name, value)
        if config is result:  # otherwise who asked for what is unused looks at it
            config.take_arguments({name: kwargs[name] for name in kwargs if name not in LOADING_ARGUMENTS})
        return result

    @classmethod
    def with_changes(cls, fields: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
        """Returns `fields` of a configuration with `changes`, under any of their names.

        Whatever names classes decides them all: the weights of classes that are gone are left out, and that is said.
        """
        changes = {cls.attribute_map.get(name, name): value for name, value in changes.items()}
        changes = {name: value for name, value in changes.items() if value is not None or name not in _CLASSES}
        named = [name for name in _CLASSES if name in changes]
        old = normal_labels(fields.get("id2label") or {})
        if named == ["num_labels"] and changes["num_labels"] == len(old):
            named = []
            del changes["num_labels"]  # it names no other classes
        if named:
            fields = {name: value for name, value in fields.items() if name not in ("id2label", "label2id")}
        changed = fields | changes
        if named and changed.get("class_weights") and "class_weights" not in changes:
            names = set(cls(**{name: changes[name] for name in named}).id2label.values())
            weights = normal_class_weights(changed["class_weights"], old)
            gone = [name for name in weights if name not in names]
            if gone:
                logger.warning(f"The class_weights of {gone[:8]} are left out: these classes are gone.")
            changed["class_weights"] = {name: weight for name, weight in weights.items() if name in names}
        return changed

    @classmethod
    def has_field(cls, name: str) -> bool:
        """Whether a caller may change this by its name when loading."""
        known = (cls.__dataclass_fields__, cls.attribute_map, ("num_labels", "output_attentions"))
        return not name.startswith("_") and name not in _NOT_BY_CALLER and any(name in names for names in known)

    @classmethod
    def _knows(cls, name: str) -> bool:
        fields = (cls.__dataclass_fields__, cls.attribute_map, TRANSFORMERS_ARGUMENTS)
        return name.startswith("_") or any(name in known for known in fields)

    def take_arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Takes over what arguments of transformers' DETR mean here, and returns those that are transformers' own.

        Raises:
            ValueError: for one that cannot be taken, with what to do instead, or is unknown, with the nearest field.
        """
        fields, rest = take_foreign(without_refusals(arguments), self.dropout)
        for name, value in fields.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        known = [field for field in self.__dataclass_fields__ if not field.startswith("_")]
        refuse_unknown((name for name in rest if not self._knows(name)), [*known, *self.attribute_map, "num_labels"])
        return rest

    def class_weight_values(self) -> tuple[float, ...] | None:
        """Returns the weight of every class in the cross-entropy, or None where all are 1 and nothing is weighed."""
        weights = normal_class_weights(self.class_weights, self.id2label)
        return tuple(weights.get(self.id2label[i], 1.0) for i in range(self.num_labels)) if weights else None

    def to_json_file(self, json_file_path: Any, use_diff: bool = True) -> None:
        """Writes config.json, with what stops transformers' own classes from making a random model of it."""
        with open(json_file_path, "w", encoding="utf-8") as file:
            json.dump(json.loads(self.to_json_string(use_diff)) | NOT_PLAIN_DETR, file, indent=2, sort_keys=True)
            file.write("\n")

    def validate_transformer(self) -> None:
        """Refuses widths, layers and probabilities that no transformer can have."""
        for name in _COUNTS:
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
            raise ValueError(choice_error("activation", self.activation, ACT2FN))
        self._validate_box_queries()

    def _validate_box_queries(self) -> None:
        if not self.box_queries and self.num_feature_levels > 1:
            raise ValueError(
                f"num_feature_levels={self.num_feature_levels} needs box_queries=True: plain DETR reads the last map."
            )
        aids = ("encoder_aux_head", "num_query_groups", "reference_points")
        changed = [name for name in aids if getattr(self, name) != getattr(type(self), name)]
        if self.box_queries and changed:
            raise ValueError(
                f"box_queries=True and {', '.join(changed)} exclude each other: box queries begin at boxes, and have "
                "a loss on the encoder of their own. Leave one out."
            )

    def validate_loss(self) -> None:
        """Refuses loss and cost weights that cannot train, and an empty class list."""
        costs = {name: getattr(self, name) for name in ("set_cost_class", "set_cost_bbox", "set_cost_giou")}
        weights = ["bbox_loss_coef", "giou_loss_coef", "mask_loss_coef", "dice_loss_coef", "eos_coef"]
        weights += ["iou_label_power", "focal_gamma", "encoder_aux_coef", "box_noise_scale"]
        for name, value in {**costs, **{name: getattr(self, name) for name in weights}}.items():
            if not 0 <= value <= sys.float_info.max:  # also of an integer that is too large for a float
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

    def validate_backbone(self) -> None:
        """Refuses a backbone that timm does not know, or timm arguments that this configuration owns."""
        import timm  # only here: it takes a second that reading a module need not cost

        if not timm.is_model(self.backbone):
            raise ValueError(
                choice_error("backbone", self.backbone, timm.list_models(), "timm.list_models() lists them")
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
