"""Which model class a checkpoint is of: for commands and `Detector`, whose users name a checkpoint and no class."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import HubError
from ..model.modeling_detr import DETRForObjectDetection, DETRForSegmentation
from .coco_names import id2label_for
from .finding import Hub, find_file, local_path, read_json
from .layouts import has_mask_head_names
from .weight_files import read_pickle, read_tensors
from .wrappers import weights_in, without_wrappers

_CLASS_HEADS = ("class_embed.weight", "class_labels_classifier.weight")  # ours and the original's, transformers'
_HUB_ARGUMENTS = ("subfolder", "revision", "token", "cache_dir", "force_download", "local_files_only")


def load_model(name_or_path: str | Path, **loading: Any) -> DETRForObjectDetection:
    """Returns a checkpoint's model: a `DETRForSegmentation` where it has a mask head, else the detector.

    Arguments and errors are those of `DETRForObjectDetection.from_pretrained`.
    """
    hub = Hub(**{name: loading[name] for name in _HUB_ARGUMENTS if loading.get(name) is not None})
    model_class = DETRForSegmentation if has_mask_head(name_or_path, hub) else DETRForObjectDetection
    return model_class.from_pretrained(name_or_path, **loading)


def has_mask_head(name_or_path: str | Path, hub: Hub | None = None) -> bool:
    """Whether a checkpoint gives masks, by the architecture in its config.json, or by the names in a lone file.

    Says False, and leaves the error to whoever loads it, where nothing can be read.

    Raises:
        HubError: the Hub is not reached.
    """
    try:
        return _has_mask_head(name_or_path, hub or Hub())
    except HubError:
        raise
    except (OSError, ValueError):
        return False


def _has_mask_head(name_or_path: str | Path, hub: Hub) -> bool:
    path = local_path(name_or_path)
    if path is not None and path.is_file():
        return has_mask_head_names(_tensors_of(path))
    adapter = path and path / hub.subfolder / "adapter_config.json"
    if adapter and adapter.is_file():
        base = read_json(adapter).get("base_model_name_or_path")
        return bool(base) and _has_mask_head(base, Hub())
    config = find_file(name_or_path, "config.json", hub)
    architectures = read_json(config).get("architectures") if config else None
    return any(str(name).endswith("ForSegmentation") for name in architectures or ())


def classes_with_masks(checkpoint: Any, hub: Hub | None = None) -> Mapping[int, str]:
    """Returns the class names of a checkpoint, or of a model, that gives masks; none of a detector."""
    if not isinstance(checkpoint, str | Path):
        return checkpoint.config.id2label if getattr(checkpoint, "has_mask_head", False) else {}
    path = local_path(checkpoint)
    if path is not None and path.is_file():
        tensors = _tensors_of(path)
        rows = max((len(tensor) for name, tensor in tensors.items() if name.endswith(_CLASS_HEADS)), default=0)
        return id2label_for(rows - 1) if rows and has_mask_head_names(tensors) else {}
    config = find_file(checkpoint, "config.json", hub or Hub()) if has_mask_head(checkpoint, hub) else None
    names = read_json(config).get("id2label") if config else None
    return {int(label): name for label, name in (names or {}).items()}


def _tensors_of(path: Path) -> dict[str, Tensor]:
    content = read_tensors(path) if path.suffix == ".safetensors" else read_pickle(path)
    tensors, _, _ = weights_in(content, str(path))
    return without_wrappers(tensors, str(path))
