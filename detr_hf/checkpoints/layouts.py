"""Names of the same DETR tensors in four layouts, and the way from each to ours.

Our names are the original's (facebookresearch/detr), except that attention holds `q_proj`, `k_proj` and `v_proj` where
the original packs one `in_proj`. The layouts:

- "original": the `.pth` files of facebookresearch/detr; panoptic ones put `detr.` before the detector's names;
- "transformers": `model_type` `detr` and `table-transformer`, as files on the Hub and as 5.x holds them in memory
  (`o_proj`, `mlp.fc1`), with a timm backbone or with transformers' own ResNet;
- "detr_hf": ours.

Everything here is about names and slices of tensors; no file is read and no model is built.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor

# The parts of one transformer layer, ours on the left, those of a Hub file on the right.
_ENCODER_LAYER = {"norm1": "self_attn_layer_norm", "linear1": "fc1", "linear2": "fc2", "norm2": "final_layer_norm"}
_DECODER_LAYER = {
    "norm1": "self_attn_layer_norm",
    "norm2": "encoder_attn_layer_norm",
    "linear1": "fc1",
    "linear2": "fc2",
    "norm3": "final_layer_norm",
}
for _projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
    _ENCODER_LAYER[f"self_attn.{_projection}"] = f"self_attn.{_projection}"
    _DECODER_LAYER[f"self_attn.{_projection}"] = f"self_attn.{_projection}"
    _DECODER_LAYER[f"multihead_attn.{_projection}"] = f"encoder_attn.{_projection}"
_LAYERS = {"encoder": _ENCODER_LAYER, "decoder": _DECODER_LAYER}

_OUTSIDE_LAYERS = {
    "input_proj": "input_projection",
    "query_embed": "query_position_embeddings",
    "transformer.encoder.norm": "encoder.layernorm",
    "transformer.decoder.norm": "decoder.layernorm",
    "backbone.1.row_embed": "position_embedding.row_embeddings",
    "backbone.1.col_embed": "position_embedding.column_embeddings",
}
_HEADS = {"class_embed": "class_labels_classifier"} | {
    f"bbox_embed.layers.{i}": f"bbox_predictor.layers.{i}" for i in range(3)
}

# The panoptic head: the original's names, which Hub files have too, on the left, those of transformers 5.x in memory
# on the right.
_MASK_HEAD = {
    "bbox_attention.q_linear": "bbox_attention.q_proj",
    "bbox_attention.k_linear": "bbox_attention.k_proj",
    "mask_head.lay1": "mask_head.conv1.conv",
    "mask_head.gn1": "mask_head.conv1.norm",
    "mask_head.lay2": "mask_head.conv2.conv",
    "mask_head.gn2": "mask_head.conv2.norm",
    "mask_head.out_lay": "mask_head.output_conv",
}
for _stage in range(3):
    _MASK_HEAD[f"mask_head.adapter{_stage + 1}"] = f"mask_head.fpn_stages.{_stage}.fpn_adapter"
    _MASK_HEAD[f"mask_head.lay{_stage + 3}"] = f"mask_head.fpn_stages.{_stage}.refine.conv"
    _MASK_HEAD[f"mask_head.gn{_stage + 3}"] = f"mask_head.fpn_stages.{_stage}.refine.norm"

_OURS = re.compile(
    r"(?:^|\.)(backbone\.[01]|input_proj|query_embed|transformer\.(encoder|decoder)|class_embed|bbox_embed)\."
)
# No weights: counters of batch norms and averages, and the class weights of the original's criterion.
_HARMLESS = re.compile(r"(^|\.)(num_batches_tracked|n_averaged|empty_weight)$")
_MASK_HEAD_PREFIXES = ("bbox_attention.", "mask_head.")
_TRANSFORMERS_MARK = re.compile(
    r"(query_position_embeddings|input_projection|conv_encoder|self_attn_layer_norm|encoder_attn|class_labels_classifier)\."
)


@dataclass
class Renamed:
    """Tensors sorted by what they are to a DETR.

    Attributes:
        state_dict: the detector, in our names.
        mask_head: `bbox_attention.*` and `mask_head.*` of a panoptic model, in the original's names.
        unknown: names in the file that no DETR has.
    """

    state_dict: dict[str, Tensor] = field(default_factory=dict)
    mask_head: dict[str, Tensor] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


def detect_layout(names: Iterable[str]) -> str | None:
    """Returns "original", "transformers" or "detr_hf" from the names alone, or None where they are of no DETR.

    A prefix before the names does not matter.
    """
    names = list(names)
    if any(_TRANSFORMERS_MARK.search(name) for name in names):
        return "transformers"
    own = [name for name in names if _OURS.search(name)]
    if not own:
        return None
    return "original" if any(".in_proj_" in name for name in own) else "detr_hf"


def has_mask_head_names(names: Iterable[str]) -> bool:
    """Whether tensors of a mask head are among those of a DETR."""
    return any(name.removeprefix("detr.").startswith(_MASK_HEAD_PREFIXES) for name in names)


def rename(tensors: dict[str, Tensor], layout: str) -> Renamed:
    """Returns `tensors` of a layout that `detect_layout` named, sorted and in our names.

    `num_batches_tracked` and the like, which are no weights, are dropped silently.

    Raises:
        ValueError: where two tensors of the file have the same name in ours.
    """
    renamed = Renamed()
    for name, tensor in tensors.items():
        if _HARMLESS.search(name):
            continue
        bare = name.removeprefix("detr.")
        if bare.startswith(_MASK_HEAD_PREFIXES):
            _put(renamed.mask_head, _mask_head_name(bare), tensor)
            continue
        ours = own_from_transformers(bare) if layout == "transformers" else bare
        if ours is None or (layout == "original" and not _OURS.match(ours)):
            renamed.unknown.append(name)
        elif ".in_proj_" in ours:
            for part, rows in _unpack(ours, tensor):
                _put(renamed.state_dict, part, rows)
        else:
            _put(renamed.state_dict, ours, tensor)
    return renamed


def own_from_transformers(name: str) -> str | None:
    """Returns our name of a tensor of transformers' DETR or Table Transformer (disk or memory), or None where there is
    none.

    `name` may carry the `model.` of a model with a head, or not.
    """
    module, _, leaf = name.removeprefix("model.").rpartition(".")
    backbone = re.match(r"backbone\.(?:conv_encoder\.)?model\.(?:_backbone\.)?(.+)", f"{module}.{leaf}")
    if backbone:
        return f"backbone.0.body.{timm_from_transformers_resnet(backbone[1])}"
    layer = re.fullmatch(r"(encoder|decoder)\.layers\.(\d+)\.(.+)", module)
    if layer:
        side, index, part = layer.groups()
        part = part.removeprefix("mlp.").replace(".o_proj", ".out_proj")
        ours = {theirs: ours for ours, theirs in _LAYERS[side].items()}.get(part)
        return ours and f"transformer.{side}.layers.{index}.{ours}.{leaf}"
    module = module.removeprefix("backbone.")  # the position embedding was inside the backbone in transformers 4
    ours = {theirs: ours for ours, theirs in (_OUTSIDE_LAYERS | _HEADS).items()}.get(module)
    return ours and f"{ours}.{leaf}"


def transformers_from_own(name: str, table_transformer: bool) -> str | None:
    """Returns the name that a Hub file of `detr` (or `table-transformer`) gives to our tensor, or None."""
    if name.startswith("backbone.0.body."):
        return name.replace("backbone.0.body.", "model.backbone.conv_encoder.model.", 1)
    module, _, leaf = name.rpartition(".")
    if module in _HEADS:
        return f"{_HEADS[module]}.{leaf}"
    layer = re.fullmatch(r"transformer\.(encoder|decoder)\.layers\.(\d+)\.(.+)", module)
    if layer:
        side, index, part = layer.groups()
        theirs = _LAYERS[side].get(part)
        return theirs and f"model.{side}.layers.{index}.{theirs}.{leaf}"
    theirs = _OUTSIDE_LAYERS.get(module)
    if theirs is None or (module == "transformer.encoder.norm" and not table_transformer):
        return None
    inside = "backbone." if table_transformer and module.startswith("backbone.1.") else ""
    return f"model.{inside}{theirs}.{leaf}"


def timm_from_transformers_resnet(name: str) -> str:
    """Returns timm's name of a tensor of transformers' ResNet; any other name is returned unchanged."""
    stem = re.fullmatch(r"embedder\.embedder\.(convolution|normalization)\.(\w+)", name)
    if stem:
        return f"{'conv1' if stem[1] == 'convolution' else 'bn1'}.{stem[2]}"
    block = re.fullmatch(
        r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(?:(shortcut)|layer\.(\d+))\.(convolution|normalization)\.(\w+)", name
    )
    if block is None:
        return name
    stage, index, shortcut, position, kind, leaf = block.groups()
    if shortcut:
        part = f"downsample.{0 if kind == 'convolution' else 1}"
    else:
        part = f"{'conv' if kind == 'convolution' else 'bn'}{int(position) + 1}"
    return f"layer{int(stage) + 1}.{index}.{part}.{leaf}"


def _mask_head_name(name: str) -> str:
    module, _, leaf = name.rpartition(".")
    return f"{ {theirs: ours for ours, theirs in _MASK_HEAD.items()}.get(module, module) }.{leaf}"


def _unpack(name: str, packed: Tensor) -> list[tuple[str, Tensor]]:
    """Returns query, key and value, by name, of `in_proj_weight` (3D, D) or `in_proj_bias` (3D,)."""
    module, _, leaf = name.rpartition(".in_proj_")
    parts = packed.chunk(3, dim=0)
    return [(f"{module}.{part}_proj.{leaf}", rows.clone()) for part, rows in zip("qkv", parts, strict=True)]


def _put(tensors: dict[str, Tensor], name: str, tensor: Tensor) -> None:
    if name in tensors:
        raise ValueError(f"Two tensors of the checkpoint are both {name!r}: it mixes the layouts of several models.")
    tensors[name] = tensor
