"""The convolutional half of DETR: a timm backbone with frozen batch norm, position encodings, and their `Joiner`.

What differs on purpose:

- from the original: any timm model that supports `features_only` will do, a mask that holds no padding is dropped, and
  weights come from timm or a file, only when asked for;
- from both: in `eval()` without gradients the norms are folded into the convolutions (see `InferenceBody`), features
  are channels-last, and sine encodings are kept by size;
- from transformers: the stem and the stride-4 stage really are frozen, a batch norm that carries an activation keeps
  it (and its eps), sine encodings are computed in float32 whatever the model's dtype, and learned tables read beyond
  their end are interpolated.
"""

import functools
import math
import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_utils import load_state_dict as read_state_dict

from .configuration_detr import DETRConfig
from .fast_backbone_detr import InferenceBody


class FrozenBatchNorm2d(nn.Module):
    """Batch norm with constant statistics and affine parameters, and the activation of the layer that it replaces.

    Args:
        num_features: channels C of the input (B, C, h, w).
        eps: added to the variance, 1e-5 in the original.
        act: module applied after the normalisation; timm fuses some activations into their norm layer.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, act: nn.Module | None = None):
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.act = None if isinstance(act, nn.Identity) else act

    @classmethod
    def from_batch_norm(cls, norm: nn.Module, keep_values: bool) -> "FrozenBatchNorm2d":
        """Freezes a `BatchNorm2d` or one of timm's norm-activation layers.

        `keep_values=False` starts as the identity.
        """
        frozen = cls(norm.num_features, norm.eps, getattr(norm, "act", None))
        if keep_values:
            for name, buffer in frozen.named_buffers(recurse=False):
                value = getattr(norm, name, None)  # weight and bias are None in a norm without affine parameters
                if value is not None:
                    buffer.copy_(value.detach())
        return frozen

    def forward(self, features: Tensor) -> Tensor:
        if features.requires_grad and features.dtype == self.weight.dtype == torch.float32:
            # the same numbers, and unlike batch norm autograd need not keep the input for them
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            bias = self.bias - self.running_mean * scale
            normed = torch.addcmul(bias[:, None, None], features, scale[:, None, None])
        else:
            normed = F.batch_norm(
                features, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        return normed if self.act is None else self.act(normed)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"


def freeze_batch_norms(module: nn.Module, keep_values: bool) -> None:
    """Replaces every 2-D batch norm inside `module`, at any depth, by a `FrozenBatchNorm2d`."""
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(module, name, FrozenBatchNorm2d.from_batch_norm(child, keep_values))
        else:
            freeze_batch_norms(child, keep_values)


class Backbone(nn.Module):
    """A timm feature extractor with frozen batch norm.

    Args:
        config: reads `backbone`, `backbone_kwargs`, `backbone_weights`, `num_channels`, `dilation` and
            `train_backbone`.
        return_interm_layers: return the feature maps of the last four stages (for masks), not the last one alone.
    """

    def __init__(self, config: DETRConfig, return_interm_layers: bool = False):
        super().__init__()
        on_meta = torch.empty(0).is_meta  # from_pretrained builds here, and then loads every weight
        load_weights = config.backbone_weights is not None and not on_meta
        self.body = _create_timm_body(config, (-4, -3, -2, -1) if return_interm_layers else (-1,), load_weights)
        freeze_batch_norms(self.body, keep_values=load_weights)
        self.train_backbone = config.train_backbone
        self.num_channels: list[int] = self.body.feature_info.channels()
        self.channels_come_last = getattr(self.body, "output_fmt", None) == "NHWC"  # Swin and its kin
        if not on_meta:  # timm has initialised or loaded these: transformers must not draw them again
            for tensor in (*self.body.parameters(), *self.body.buffers()):
                tensor._is_hf_initialized = True
            for module in self.body.modules():
                module._is_hf_initialized = True
        self.inference_body = InferenceBody(FrozenBatchNorm2d)
        self.freeze()

    def train(self, mode: bool = True) -> "Backbone":
        self.inference_body.forget()  # no counter sees edits through `.data`: look again after a change of mode
        return super().train(mode)

    def _apply(self, fn, recurse: bool = True):
        self.inference_body.forget()
        return super()._apply(fn, recurse)

    def freeze(self) -> None:
        """Stops gradients of the stem and the stride-4 stage (a ResNet's `layer1`), of all if not `train_backbone`."""
        frozen = self._early_children() if self.train_backbone else list(self.body.children())
        for module in (self.body, *frozen):
            recurse = module is not self.body
            for parameter in module.parameters(recurse=recurse):
                parameter.requires_grad_(False)

    def _early_children(self) -> list[nn.Module]:
        info = self.body.feature_info.info
        early = [stage["module"] for stage in info if stage["reduction"] <= 4]
        if not early:
            return []
        last = early[-1].replace(".", "_")  # timm flattens nested stages: `stages.0` becomes the child `stages_0`
        names = [name for name, _ in self.body.named_children()]
        if last not in names:
            return []
        return list(self.body.children())[: names.index(last) + 1]

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
        """Returns (feature map (B, C', h, w), mask (B, h, w) bool, True on the image) for each stage.

        The mask is None without one.
        """
        body = None
        if not self.training and self.inference_body.usable_for(pixel_values):
            body = self.inference_body.of(self.body, pixel_values)
        features = (self.body if body is None else body)(pixel_values.contiguous(memory_format=torch.channels_last))
        if self.channels_come_last:
            features = [feature.permute(0, 3, 1, 2) for feature in features]
        return [(feature, _resize_mask(pixel_mask, feature.shape[-2:])) for feature in features]


def _resize_mask(pixel_mask: Tensor | None, size_hw: torch.Size) -> Tensor | None:
    if pixel_mask is None:
        return None
    return F.interpolate(pixel_mask[None].float(), size=tuple(size_hw))[0].to(torch.bool)


def _create_timm_body(config: DETRConfig, out_indices: tuple[int, ...], load_weights: bool) -> nn.Module:
    import timm  # only where a model is built: it takes longer to import than the rest of this package

    arguments = dict(config.backbone_kwargs or {}, in_chans=config.num_channels)
    if config.dilation:
        arguments["output_stride"] = 16
    name, pretrained = config.backbone, {}
    if load_weights and config.backbone_weights == "imagenet":
        # torchvision's weights are what the original started from; timm's default tag is another recipe
        original = f"{name}.tv_in1k"
        name = original if timm.is_model_pretrained(original) else name
        pretrained = {"pretrained": True}
    elif load_weights:
        state_dict = _read_backbone_weights(config, name, arguments)
        pretrained = {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": state_dict, "num_classes": 0}}
    try:
        return timm.create_model(name, features_only=True, out_indices=out_indices, **arguments, **pretrained)
    except (TypeError, NotImplementedError, AttributeError, AssertionError) as error:
        hint = " and output_stride (dilation=False helps)" if config.dilation else ""
        raise ValueError(
            f"timm could not build backbone={name!r} as a feature extractor with {arguments}: {error}. Choose a model "
            f"that supports features_only{hint}, and check backbone_kwargs."
        ) from error
    except (OSError, RuntimeError) as error:
        if not load_weights:
            raise
        raise OSError(
            f"timm's ImageNet weights of {name} could not be had: {error} Connect to the Hub once, so that they are "
            "in the cache, or give backbone_weights a local file."
        ) from error


def _read_backbone_weights(config: DETRConfig, name: str, arguments: dict) -> dict[str, Tensor]:
    """Reads a local file and checks that it holds the whole backbone; a classifier's head may be there or not."""
    import timm

    path = config.backbone_weights
    if not os.path.isfile(path):
        raise FileNotFoundError(f"backbone_weights={path!r} is neither 'imagenet' nor a file.")
    state_dict = read_state_dict(path, weights_only=True)
    with torch.device("meta"):
        classifier = timm.create_model(name, num_classes=0, **arguments)
    expected = {key: tensor.shape for key, tensor in classifier.state_dict().items() if "num_batches" not in key}
    missing = [key for key in expected if key not in state_dict]
    if missing:
        raise ValueError(
            f"{path} does not hold the weights of timm's {name}: {len(missing)} of {len(expected)} tensors are "
            f"missing, for example {missing[:3]}. Save the state dict of timm.create_model({name!r}, ...) there, or "
            "change backbone."
        )
    wrong = [key for key, shape in expected.items() if state_dict[key].shape != shape]
    if wrong:
        raise ValueError(
            f"{path} holds tensors of other shapes than timm's {name} with {arguments}: {wrong[0]} is "
            f"{tuple(state_dict[wrong[0]].shape)}, expected {tuple(expected[wrong[0]])}. Check backbone_kwargs and "
            "num_channels."
        )
    return {key: tensor for key, tensor in state_dict.items() if key in classifier.state_dict()}


class PositionEmbeddingSine(nn.Module):
    """Sine and cosine of the position in the unpadded feature map, scaled to [0, 2 pi] (paper, appendix A.4).

    Args:
        num_pos_feats: channels for each of y and x, half of `hidden_dim`.
        temperature: base of the geometric progression of wavelengths.
    """

    def __init__(self, num_pos_feats: int = 64, temperature: int = 10000):
        super().__init__()
        self.num_pos_feats = num_pos_feats
        self.temperature = temperature

    def forward(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """Returns encodings (B, D, h, w) in the dtype of `features`: y in the first half of the channels, then x.

        `mask` (B, h, w) is True on the image; None means no padding, and then B is 1.
        """
        if mask is not None:
            return self._encodings(mask).to(features.dtype)
        height, width = features.shape[-2:]
        if type(features) is not Tensor or torch.compiler.is_compiling() or torch.jit.is_tracing():
            mask = torch.ones(1, height, width, dtype=torch.bool, device=features.device)
            return self._encodings(mask).to(features.dtype)
        size = (self.num_pos_feats, self.temperature, height, width, features.dtype, features.device)
        if _unpadded_encodings(*size)._version:  # somebody has written into what was returned earlier
            _unpadded_encodings.cache_clear()
        return _unpadded_encodings(*size)

    def _encodings(self, mask: Tensor) -> Tensor:
        rows = mask.cumsum(1, dtype=torch.float32)  # float32 throughout: bfloat16 would be wrong by 0.03
        columns = mask.cumsum(2, dtype=torch.float32)
        rows = rows / (rows[:, -1:, :] + 1e-6) * (2 * math.pi)
        columns = columns / (columns[:, :, -1:] + 1e-6) * (2 * math.pi)
        encodings = torch.cat([self._encode(rows), self._encode(columns)], dim=-1)  # (B, h, w, D)
        return encodings.permute(0, 3, 1, 2)

    def _encode(self, positions: Tensor) -> Tensor:
        channels = torch.arange(self.num_pos_feats, dtype=torch.float32, device=positions.device)
        wavelengths = self.temperature ** (2 * torch.div(channels, 2, rounding_mode="floor") / self.num_pos_feats)
        angles = positions[..., None] / wavelengths
        return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1).flatten(-2)


@functools.lru_cache(maxsize=16)
def _unpadded_encodings(
    num_pos_feats: int, temperature: int, height: int, width: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Returns the sine encodings (1, D, h, w) of a feature map without padding; the last few sizes are kept."""
    with torch.inference_mode(False), torch.no_grad():  # a tensor made in inference mode could not be used in training
        mask = torch.ones(1, height, width, dtype=torch.bool, device=device)
        return PositionEmbeddingSine(num_pos_feats, temperature)._encodings(mask).to(dtype)


class PositionEmbeddingLearned(nn.Module):
    """Learned row and column encodings, 50 of each in the original; they do not look at the mask.

    A feature map with more rows or columns than a table has reads that table linearly interpolated, where the original
    fails.
    """

    def __init__(self, num_pos_feats: int = 256, num_embeddings: int = 50):
        super().__init__()
        self.row_embed = nn.Embedding(num_embeddings, num_pos_feats)
        self.col_embed = nn.Embedding(num_embeddings, num_pos_feats)

    def forward(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """Returns encodings (1, D, h, w) in the dtype of `features`: x in the first half of the channels, then y."""
        height, width = features.shape[-2:]
        rows = _read_table(self.row_embed, height)[:, None, :].expand(-1, width, -1)
        columns = _read_table(self.col_embed, width)[None, :, :].expand(height, -1, -1)
        return torch.cat([columns, rows], dim=-1).permute(2, 0, 1)[None].to(features.dtype)


def _read_table(embedding: nn.Embedding, length: int) -> Tensor:
    size = embedding.num_embeddings
    table = embedding(torch.arange(min(length, size), device=embedding.weight.device))  # (min(length, size), D/2)
    if length > size:
        table = F.interpolate(table.float().T[None], size=length, mode="linear", align_corners=True)[0].T.to(
            table.dtype
        )
    return table


def build_position_encoding(config: DETRConfig) -> nn.Module:
    """Returns the position encoding that `config.position_embedding` names."""
    if config.position_embedding == "sine":
        return PositionEmbeddingSine(config.hidden_dim // 2)
    return PositionEmbeddingLearned(config.hidden_dim // 2, config.num_position_embeddings)


class Joiner(nn.Sequential):
    """Backbone and position encoding in one, as in the original: `[0]` is the backbone, `[1]` the encoding."""

    def __init__(self, backbone: Backbone, position_embedding: nn.Module):
        super().__init__(backbone, position_embedding)
        self.num_channels = backbone.num_channels

    def forward(
        self, pixel_values: Tensor, pixel_mask: Tensor | None
    ) -> tuple[list[tuple[Tensor, Tensor | None]], Tensor]:
        """Returns the backbone's (feature map, mask) pairs, and the encodings (B or 1, D, h, w) of the last map."""
        features = self[0](pixel_values, pixel_mask)
        last, mask = features[-1]
        if mask is not None:
            mask = drop_full_mask(mask)
            features[-1] = (last, mask)
        return features, self[1](last, mask)


def drop_full_mask(mask: Tensor) -> Tensor | None:
    """Returns `mask` (B, h, w), or None where it is True everywhere, at the price of one host sync.

    Raises:
        ValueError: for an image that is all padding.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or mask.is_meta:
        return mask  # a traced graph must serve padded batches as well
    whole, empty = torch.stack([mask.all(), (~mask.flatten(1).any(dim=1)).any()]).tolist()
    if empty:
        images = (~mask.flatten(1).any(dim=1)).nonzero().flatten().tolist()
        raise ValueError(
            f"pixel_mask is 0 everywhere for image {images} of the batch: 1 marks the image, 0 the padding."
        )
    return None if whole else mask


__all__ = [
    "Backbone",
    "FrozenBatchNorm2d",
    "Joiner",
    "PositionEmbeddingLearned",
    "PositionEmbeddingSine",
    "build_position_encoding",
]
