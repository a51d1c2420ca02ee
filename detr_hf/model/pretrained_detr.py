"""The life of a DETR model: first values, loading, refusing what does not fit, freezing, saving, publishing.

What differs on purpose from transformers: initialisation is the original's, frozen layers stay frozen after
`from_pretrained`, and a checkpoint that does not fit is refused.
"""

import math
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import initialization as init
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

from .attention_detr import MultiheadAttention
from .backbone_detr import Backbone, FrozenBatchNorm2d
from .box_attention_detr import BoxAttention, RelatedAttention, start_cross_attention
from .box_borders_detr import BoxBorders
from .box_queries_detr import BoxQueries, start_box_heads
from .configuration_detr import DETRConfig
from .heads_detr import AUTO_MAP
from .position_encoding_detr import PositionEmbeddingLearned
from .segmentation_detr import MaskHeadSmallConv, MHAttentionMap
from .training_aids_detr import COPIED_FROM, PREFIX
from .transformer_detr import TransformerDecoderLayer, TransformerEncoderLayer

logger = logging.get_logger(__name__)

HEADS = ("class_embed.", "bbox_embed.")
MASK_PARTS = ("bbox_attention.", "mask_head.")
BOX_PARTS = re.compile(
    r"^box_queries\.|\.multihead_attn\.(prior|where)\.|\.self_attn\.relation\.|\.decoder\.(box_embed|borders)\."
)
# What a save replaces together: with one shard of an older model beside it a new one would not be what was saved.
WEIGHT_FILES = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
# A new mask head on a trained detector reads attention so many times as strongly as the original's. Attention sums to
# 1 over all heads and cells, a hundredth of what other channels are: the masks of all queries are alike until these
# weights have grown. On digit scenes, 200 steps of the head alone give mask AP 0.53 in place of 0.02.
ATTENTION_GAIN = 100.0


class DETRPreTrainedModel(PreTrainedModel):
    """Initialisation, loading and freezing for every DETR model."""

    config: DETRConfig
    # What only the package can do: foreign checkpoints, verified files, cards, conversion. It hands itself in when it
    # is imported; code that travelled with a checkpoint has None, whatever is installed beside it.
    workshop: ClassVar[Any] = None
    # A class with a mask head reads every stage of the backbone, and the mask head of a panoptic checkpoint.
    has_mask_head: ClassVar[bool] = False
    # Whether the mask head has never been trained; roads that would show its masks refuse it.
    mask_head_is_new: bool = False
    # Classes whose rows of the class head were never trained, of a checkpoint that was loaded for other classes.
    new_classes: tuple[str, ...] = ()
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
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))  # torch's default
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        elif isinstance(module, nn.LayerNorm):  # transformers knows them by their class's name
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, MultiheadAttention):
            _init_attention(module)
            if isinstance(module, BoxAttention):
                start_cross_attention(module)
            if isinstance(module, RelatedAttention):
                _init_to_nothing(module.relation[-1])
        elif isinstance(module, BoxBorders):
            _init_to_nothing(module.move)
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
        elif isinstance(module, (MHAttentionMap, MaskHeadSmallConv)):
            _init_mask_parts(module)
        elif isinstance(module, BoxQueries) or (module is self and self.config.box_queries):
            start_box_heads(module)
        elif hasattr(module, "init_non_persistent_buffers"):  # timm's tables that no checkpoint holds
            module.init_non_persistent_buffers()
        else:
            super()._init_weights(module)

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # For classes outside transformers the base class passes over every module without parameters of its own, such
        # as attention: a guard against initialisers that overwrite what is loaded, which ours do not.
        super()._initialize_weights(module, is_custom_code=False)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *model_args: Any,
        config: Any = None,
        **kwargs: Any,
    ) -> Self:
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
            ValueError: when the checkpoint is not a DETR, lacks a tensor that is not new by design (heads on a base
                model, options that it was not trained with), or holds one that no part of the model takes.
        """
        output_loading_info = kwargs.pop("output_loading_info", False)
        state_dict = kwargs.pop("state_dict", None)
        name = pretrained_model_name_or_path
        if kwargs.pop("verify", False):
            kwargs = cls._verify(name, kwargs)
        source = "The state dict" if name is None else name
        if state_dict is None and name is not None:
            name, config, state_dict = cls._translate(name, config, kwargs)
        elif state_dict and cls.workshop is not None:
            state_dict = cls.workshop.own_state_dict(state_dict)
        kwargs.update(config=config, state_dict=state_dict, output_loading_info=True)
        try:
            model, info = super().from_pretrained(name, *model_args, **kwargs)
        except RuntimeError as error:
            if "ignore_mismatched_sizes" not in str(error):
                raise
            unlike = super().from_pretrained(name, *model_args, **kwargs, ignore_mismatched_sizes=True)[1]
            raise ValueError(_does_not_fit(source, unlike["mismatched_keys"])) from error
        if pretrained_model_name_or_path is not None:
            model.name_or_path = model.config.name_or_path = str(pretrained_model_name_or_path)
        model.new_classes = tuple(model.config.__dict__.pop("new_classes", ()))  # noted by whoever fitted the weights
        if pretrained_model_name_or_path is not None or state_dict:
            new = model._fill_new_parts(set(info["missing_keys"]))
            missing, left_over = set(info["missing_keys"]) - new, set(info["unexpected_keys"])
            model._refuse_foreign_weights(missing, left_over, source)
        model.freeze()  # loading has rebuilt every parameter with requires_grad
        loaded: Any = (model, info) if output_loading_info else model
        return loaded

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads a state dict as torch does, also one in the names of the original, of transformers or of a wrapper.

        Raises:
            RuntimeError: as in torch; and where not one name is this model's, also if not `strict`.
        """
        own = self.state_dict().keys()
        if self.workshop is not None and not state_dict.keys() <= own:
            state_dict = self.workshop.own_state_dict(state_dict)
        if state_dict and not own & state_dict.keys():
            raise RuntimeError(
                f"None of {len(state_dict)} names ({', '.join(map(str, list(state_dict)[:3]))}, ...) is one of this "
                f"{type(self).__name__}: nothing would be loaded. Give the state dict itself, as "
                "torch.load(file)['model'] of an original file, or the file to from_pretrained."
            )
        missing, left_over = own - state_dict.keys(), state_dict.keys() - own
        if not strict and (missing or left_over):
            logger.warning(
                f"load_state_dict(strict=False): {len(own) - len(missing)} of {len(own)} tensors are loaded, "
                f"{len(missing)} stay as they were ({', '.join(sorted(missing)[:3])}, ...), {len(left_over)} of the "
                f"state dict have no place ({', '.join(sorted(left_over)[:3])}, ...)."
            )
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            raise RuntimeError(
                f"{error}\n\tfrom_pretrained(file) reads the original's and transformers' files as well, makes the "
                "configuration that fits, and the class head anew for other classes."
            ) from error

    @classmethod
    def _verify(cls, name: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Returns the arguments that load what was verified."""
        if cls.workshop is None:
            raise ImportError(
                "verify=True needs the package detr_hf (pip install detr_hf, then import detr_hf); without it, "
                "`sha256sum --check SHA256SUMS` in the checkpoint's folder does the same."
            )
        return cls.workshop.verified_arguments(name, kwargs)

    @classmethod
    def _translate(cls, name: Any, config: PreTrainedConfig | None, kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Returns name, config and state dict to load: as given for an own checkpoint that fits, else translated."""
        if cls.workshop is None:  # this file travelled alone with a checkpoint: it reads its own layout only
            return name, config, None
        return cls.workshop.prepare_loading(name, config, kwargs, cls.has_mask_head, cls.config_class)

    def _fill_new_parts(self, missing: set[str]) -> set[str]:
        """Gives what is new by design its first values, says what it is, and returns those tensors' names.

        That is options that the checkpoint was not trained with, and the heads on a base model.
        """
        if "refpoint_embed.weight" in missing:
            nn.init.zeros_(self.refpoint_embed.weight)  # plain DETR
        new_groups = [new for new in COPIED_FROM if f"{PREFIX}{new}.weight" in missing]
        trained = [new for new in new_groups if f"{COPIED_FROM[new]}.weight" not in missing]
        if trained:
            self.training_aids.copy_queries(self, trained)
        new = {name for name in missing if name.startswith(PREFIX) or name == "refpoint_embed.weight"}
        saved = (self.config.architectures or [""])[0]
        if saved.endswith("Model"):  # a base model has no heads
            new |= {name for name in missing if name.startswith(HEADS)}
            self.new_classes = tuple(self.config.id2label.values())
        masks = {name for name in self.state_dict() if name.startswith(MASK_PARTS)}
        if masks and masks <= missing and not saved.endswith("ForSegmentation"):  # of a detector
            new |= masks
            self.mask_head_is_new = True
            with torch.no_grad():
                self.mask_head.lay1.weight[:, self.config.hidden_dim :] *= ATTENTION_GAIN
        of_boxes = {name for name in self.state_dict() if BOX_PARTS.search(name)}
        if of_boxes and of_boxes <= missing:  # of plain DETR, whose box head says where, and not how far from there
            new |= of_boxes
            last = self.bbox_embed.layers[-1]
            nn.init.zeros_(last.weight), nn.init.zeros_(last.bias)
        if new:
            parts = sorted({name.removeprefix(PREFIX).partition(".")[0] for name in new})
            logger.warning(f"New, and to be trained: {', '.join(parts)}. The checkpoint has none.")
        return new

    def _refuse_foreign_weights(self, missing: set[str], left_over: set[str], source: Any) -> None:
        """Raises ValueError when `source` and this model are not of the same parts, or a value is not finite."""
        expected = self.state_dict().keys()
        for names, words in ((missing & expected, "lacks"), (left_over, "holds, beyond what the model has,")):
            if names:
                shown = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
                raise ValueError(
                    f"{source} {words} {len(names)} tensors ({shown}) of {len(expected)}: it is not whole, or no "
                    f"checkpoint of this {type(self).__name__}: check path and configuration, or copy it again."
                )
        broken = [name for name, tensor in self.state_dict().items() if _is_broken(tensor)]
        if broken:
            raise ValueError(
                f"{source} holds values that are not finite in {len(broken)} tensors, for example {broken[:3]}. The "
                "file is damaged, or the training that wrote it had diverged; take an earlier checkpoint."
            )

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Writes weights and configuration, and the code as well after `register_for_auto_class`.

        With the package they are moved into the folder when all are written, the configuration last: a process that is
        killed leaves the model that was there, or none.

        Raises:
            NotADirectoryError: when `save_directory` is a file.
        """
        if os.path.isfile(save_directory):
            raise NotADirectoryError(f"{save_directory} is a file; save_pretrained needs a folder to write into.")
        if self.mask_head_is_new:
            logger.warning("This model's mask head was never trained: whoever loads it from here gets random masks.")
        # transformers enters the saved class alone, and keeps a loaded repository's entries where no code is written
        self.config.__dict__.pop("auto_map", None)
        if self._auto_class is not None:
            self.config.auto_map = dict(AUTO_MAP)
        if self.workshop is None or kwargs.get("distributed_checkpoint"):  # to which every process writes its part
            super().save_pretrained(save_directory, **kwargs)
            _open_as_config(save_directory)
            return
        if kwargs.get("push_to_hub"):
            kwargs.setdefault("repo_id", os.path.basename(os.path.abspath(save_directory)))
        with self.workshop.whole_folder(save_directory, WEIGHT_FILES) as folder:
            super().save_pretrained(folder, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:
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


def _open_as_config(folder: str | os.PathLike) -> None:
    """Lets read the weights who may read the configuration: safetensors makes its files for their owner alone."""
    config = os.path.join(folder, "config.json")
    if os.path.isfile(config):  # one of several processes writes it
        for name in os.listdir(folder):
            if name.endswith(".safetensors"):
                os.chmod(os.path.join(folder, name), os.stat(config).st_mode & 0o777)


def _is_broken(tensor: Tensor) -> bool:
    """Whether a value is not finite; of a quantised or sharded tensor the parts that it is made of are looked at."""
    if is_traceable_wrapper_subclass(tensor):
        return any(_is_broken(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return tensor.is_floating_point() and not tensor.is_meta and not bool(tensor.isfinite().all())


def _does_not_fit(source: Any, unlike: Iterable[tuple[str, Any, Any]]) -> str:
    """Returns the error of weights that are not those of the configuration, with the tensors that tell."""
    seen = [f"{name} has {tuple(there)} there and {tuple(here)} here" for name, there, here in sorted(unlike)]
    return (
        f"{source} holds weights of another model than its configuration describes: {'; '.join(seen[:3])}"
        f"{', ...' if seen[3:] else ''} ({len(seen)} tensors). Give it the config.json that it was saved with, or "
        "ignore_mismatched_sizes=True to have these drawn anew."
    )


def _init_attention(attention: MultiheadAttention) -> None:
    width = attention.q_proj.in_features
    bound = math.sqrt(6 / (width + 3 * width))  # Xavier of the packed (3 D, D) matrix that the original draws
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        init.uniform_(projection.weight, -bound, bound)
        init.zeros_(projection.bias)
    init.xavier_uniform_(attention.out_proj.weight)
    init.zeros_(attention.out_proj.bias)


def _init_to_nothing(layer: nn.Linear) -> None:
    """Makes a layer add nothing at first."""
    init.zeros_(layer.weight)
    init.zeros_(layer.bias)


def _init_backbone(backbone: Backbone) -> None:
    """Draws what a ResNet is drawn from, for weights that neither timm nor a checkpoint provided."""
    for module in backbone.body.modules():
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                init.zeros_(module.bias)


def _init_mask_parts(part: nn.Module) -> None:
    """Draws attention projections from Xavier's distribution and convolutions from Kaiming's; biases are 0."""
    for module in part.modules():
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Conv2d):
            init.kaiming_uniform_(module.weight, a=1)
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            init.zeros_(module.bias)
