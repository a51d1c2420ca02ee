"""The convolutional half of DETR: a timm backbone with frozen batch norm, and its `Joiner` with a position encoding.

What differs on purpose:

- from the original: a mask that holds no padding is dropped;
- from transformers: the stem and the stride-4 stage really are frozen, and a batch norm that carries an activation
  keeps it (and its eps);
- from both: in `eval()` without gradients a second form of the network runs, with the norms folded into the
  convolutions (`FoldsForInference`).
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import logging

from .configuration_detr import DETRConfig
from .fast_backbone_detr import FoldsForInference
from .position_encoding_detr import build_position_encoding
from .timm_body_detr import create_timm_body

logger = logging.get_logger(__name__)


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
        trained = type(features) is Tensor and features.requires_grad and not torch.jit.is_tracing()
        if trained and features.dtype == self.weight.dtype == torch.float32:
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


class Backbone(FoldsForInference, nn.Module):
    """A timm feature extractor with frozen batch norm.

    Args:
        config: reads `backbone`, `backbone_kwargs`, `backbone_weights`, `num_channels`, `dilation` and
            `train_backbone`.
        return_interm_layers: return the feature maps of the last four stages (for masks), not those alone that the
            decoder reads: the last, or of box queries `num_feature_levels`.

    >>> import torch
    >>> from detr_hf.model import Backbone, DETRConfig
    >>> backbone = Backbone(DETRConfig(backbone="resnet18"), return_interm_layers=True).eval()
    >>> features = backbone(torch.randn(1, 3, 256, 320), pixel_mask=None)
    >>> [tuple(feature_map.shape) for feature_map, mask in features]  # strides 4 to 32
    [(1, 64, 64, 80), (1, 128, 32, 40), (1, 256, 16, 20), (1, 512, 8, 10)]
    """

    norm_class: ClassVar = FrozenBatchNorm2d  # what can be folded

    def __init__(self, config: DETRConfig, return_interm_layers: bool = False):
        super().__init__()
        on_meta = torch.empty(0).is_meta  # from_pretrained builds here, and then loads every weight
        load_weights = config.backbone_weights is not None and not on_meta
        count = 4 if return_interm_layers else config.num_feature_levels
        self.body = create_timm_body(config, tuple(range(-count, 0)), load_weights)
        freeze_batch_norms(self.body, keep_values=load_weights)
        self.train_backbone = config.train_backbone
        self.num_channels: list[int] = self.body.feature_info.channels()
        self.channels_come_last = getattr(self.body, "output_fmt", None) == "NHWC"  # Swin and its kin
        if not on_meta:  # timm has initialised or loaded these: transformers must not draw them again
            for tensor in (*self.body.parameters(), *self.body.buffers()):
                tensor._is_hf_initialized = True
            for module in self.body.modules():
                module._is_hf_initialized = True
        self.freeze()

    def freeze(self) -> None:
        """Stops gradients of the stem and the stride-4 stage (a ResNet's `layer1`), of all if not `train_backbone`."""
        frozen = self._early_modules() if self.train_backbone else list(self.body.children())
        for parameter in self.body.parameters(recurse=False):
            parameter.requires_grad_(False)
        for module in frozen:
            module.requires_grad_(False)

    def _early_modules(self) -> list[nn.Module]:
        """Returns the modules that see the pixels up to stride 4, in order; says so where timm's names hide them."""
        early = [stage["module"] for stage in self.body.feature_info.info if stage["reduction"] <= 4]
        if not early:
            return []
        # timm flattens some nested stages, `stages.0` to the child `stages_0`, and wraps others, into `model.stages.0`
        wanted = early[-1].replace(".", "_")
        names = [name for name, _ in self.body.named_modules()]
        paths = [name for name in names if name.replace(".", "_") in (wanted, f"model_{wanted}")]
        if not paths:
            logger.warning_once(
                f"The whole backbone learns: what timm calls {early[-1]!r}, the end of its first stage, is not among "
                f"its modules, so that stem and first stage cannot be told from the rest."
            )
            return []
        found, parent = [], self.body
        for name in paths[0].split("."):
            children = dict(parent.named_children())
            found += list(children.values())[: list(children).index(name)]
            parent = children[name]
        return [*found, parent]

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
        """Returns (feature map (B, C', h, w), mask (B, h, w) bool, True on the image) for each stage.

        The mask is None without one.
        """
        form = self.form_for(pixel_values)
        if not torch._C._are_functorch_transforms_active():  # vmap knows no such order
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        features = form(pixel_values)
        if self.channels_come_last:
            features = [feature.permute(0, 3, 1, 2) for feature in features]
        return [(feature, resize_mask(pixel_mask, feature)) for feature in features]


def check_inputs(pixel_values: Tensor, pixel_mask: Tensor | None, num_channels: int, weights: torch.dtype) -> None:
    """Raises ValueError where a model's inputs are not what the image processor makes, or wider than its `weights`.

    Narrower ones pass: what shards a model may cast its inputs before its weights.
    """
    shape = tuple(pixel_values.shape)
    if len(shape) != 4 or shape[1] != num_channels:
        raise ValueError(
            f"pixel_values has shape {shape}; expected (B, {num_channels}, H, W), as the image processor makes it."
        )
    if shape[0] == 0:
        raise ValueError("pixel_values has no image: the batch size is 0.")
    if not pixel_values.is_floating_point():
        raise ValueError(
            f"pixel_values is {pixel_values.dtype}; expected floating point, normalised by the image processor."
        )
    is_wider = weights.is_floating_point and pixel_values.dtype.itemsize > weights.itemsize
    # autocast makes the weights' type of what is not double
    if is_wider and (pixel_values.dtype == torch.float64 or not torch.is_autocast_enabled(pixel_values.device.type)):
        raise ValueError(
            f"pixel_values is {pixel_values.dtype} and the model's weights are {weights}; give "
            f"pixel_values.to({weights})."
        )
    if pixel_mask is not None and tuple(pixel_mask.shape) != (shape[0], *shape[2:]):
        raise ValueError(
            f"pixel_mask has shape {tuple(pixel_mask.shape)}, but pixel_values {shape}; expected "
            f"{(shape[0], *shape[2:])}."
        )


def resize_mask(pixel_mask: Tensor | None, features: Tensor) -> Tensor | None:
    """Returns the mask (B, h, w) bool of a feature map (B, C, h, w), from (B, H, W) of the pixels; None for None."""
    if pixel_mask is None:
        return None
    return F.interpolate(pixel_mask[None].float(), size=tuple(features.shape[-2:]))[0].to(torch.bool)


class Joiner(nn.Sequential):
    """Backbone and position encoding in one, as in the original: `[0]` is the backbone, `[1]` the encoding.

    >>> import torch
    >>> from detr_hf.model import Backbone, DETRConfig, Joiner, PositionEmbeddingSine
    >>> joiner = Joiner(Backbone(DETRConfig(backbone="resnet18")), PositionEmbeddingSine(128)).eval()
    >>> features, pos = joiner(torch.randn(2, 3, 256, 320), torch.ones(2, 256, 320))
    >>> feature_map, mask = features[-1]
    >>> feature_map.shape, mask, pos.shape  # a mask without padding is dropped
    (torch.Size([2, 512, 8, 10]), None, torch.Size([1, 256, 8, 10]))
    """

    def __init__(self, backbone: Backbone, position_embedding: nn.Module):
        super().__init__(backbone, position_embedding)
        self.num_channels = backbone.num_channels

    def forward(  # type: ignore[override]
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
    if torch._C._are_functorch_transforms_active():
        return mask  # vmap cannot ask for values
    whole, empty = torch.stack([mask.all(), (~mask.flatten(1).any(dim=1)).any()]).tolist()
    if empty:
        images = (~mask.flatten(1).any(dim=1)).nonzero().flatten().tolist()
        raise ValueError(
            f"pixel_mask is 0 everywhere for image {images} of the batch: 1 marks the image, 0 the padding."
        )
    return None if whole else mask


def build_backbone(config: DETRConfig, return_interm_layers: bool = False) -> Joiner:
    """Returns the backbone with its position encoding, as `config` describes them.

    >>> from detr_hf.model import DETRConfig, build_backbone
    >>> build_backbone(DETRConfig(backbone="resnet50")).num_channels
    [2048]
    """
    return Joiner(Backbone(config, return_interm_layers), build_position_encoding(config))
