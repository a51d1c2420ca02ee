"""What a model card says, as plain data: the card is rendered from it, and it travels beside the card as `facts.json`.

The keys, all of which may be missing or None but `name` and `model`:

- `name`, `repo_id`, `summary` (Markdown), `license` (an identifier of the Hub), `base_model`, `tags`, `task`;
- `use`: code that loads the model, where it is in no repository;
- `model`: class, auto class, backbone, layers, widths, queries, class names, number of parameters;
- `processor`: the sizes that pictures are scaled to, and the names of the classes that it fuses, `stuff`;
- `data`: `name`, `type`, `splits` (pictures by split name), `text` (Markdown);
- `evaluation`: COCO's numbers as `CocoMetrics.to_dict` gives them, with `dataset`, `type`, `text`, `note` (that their
  pictures chose something before, say); and where they were measured `masks`, the same of masks, `panoptic`, as
  `PanopticMetrics.to_dict` gives it, and `thresholds`, as `Thresholds.to_dict` does;
- `published`: numbers that somebody else measured: `rows` of `[metric, value, type]` in percent, `source`, `url`;
- `training`: `text` (Markdown), `rows` of `[what, value]`, `hardware`, `minutes`;
- `speed`: `milliseconds` a picture, `hardware`, `text`;
- `limits`, `licence_text`: Markdown; `versions`: of the libraries.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..inference.timing import processor_name
from ..model.heads_detr import AUTO_MAP
from ..version import version_of

LIBRARIES = ("torch", "timm", "transformers")
_FIELDS = (
    "backbone",
    "dilation",
    "hidden_dim",
    "nheads",
    "enc_layers",
    "dec_layers",
    "dim_feedforward",
    "pre_norm",
    "position_embedding",
    "num_queries",
)


def facts_of(
    model: Any,
    name: str,
    processor: Any = None,
    evaluation: Any = None,
    data: Any = None,
    *,
    license: str | None = None,
    tags: list[str] | None = None,
) -> dict[str, Any]:
    """Returns what can be known of a model without being told.

    `name` is without its owner, `evaluation` what `evaluate` returns or its `CocoMetrics`, `data` what the model was
    trained on, and `license` an identifier of the Hub.
    """
    source = str(getattr(model.config, "name_or_path", "") or "")
    data_facts = data_facts_of(data) if data is not None else None
    return {
        "name": name,
        "license": license,
        "base_model": source if _is_hub_id(source) else None,
        "tags": list(tags or []),
        "model": model_facts(model),
        "processor": _processor_facts(processor, model.config.id2label) if processor is not None else None,
        "data": data_facts,
        "evaluation": _evaluation_facts(evaluation, data_facts) if evaluation is not None else None,
        "versions": library_versions(),
    }


def model_facts(model: Any) -> dict[str, Any]:
    """Returns architecture, classes and size."""
    config = model.config
    kind = type(model).__name__
    auto = next((auto for auto, path in AUTO_MAP.items() if path.endswith(f".{kind}")), "AutoModelForObjectDetection")
    aids = model.training_aids.parameters() if hasattr(model, "training_aids") else ()
    return {
        "class": kind,
        "auto_class": auto,
        **{name: getattr(config, name) for name in _FIELDS},
        "labels": [config.id2label[label] for label in sorted(config.id2label)],
        "parameters": sum(tensor.numel() for tensor in model.parameters()) - sum(tensor.numel() for tensor in aids),
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def data_facts_of(data: Any) -> dict[str, Any]:
    """Returns name and splits of what `load_detection_dataset` returned; of a local path the last part alone."""
    source = str(getattr(data, "source", "") or "")
    local = Path(source).exists() or source.startswith("/")
    splits = {name: len(rows) if hasattr(rows, "__len__") else None for name, rows in data.items()}
    return {
        "name": (Path(source).name if local else source) or "a data set of its own",
        "hub_id": source if _is_hub_id(source) else None,
        "splits": splits,
    }


def _processor_facts(processor: Any, id2label: Mapping[int, str]) -> dict[str, Any]:
    stuff = [id2label[label] for label in processor.label_ids_to_fuse if label in id2label]
    return {"size": dict(processor.size)} | ({"stuff": stuff} if stuff else {})


def _evaluation_facts(evaluation: Any, data: Mapping[str, Any] | None) -> dict[str, Any]:
    name = data["name"] if data else "validation pictures"
    kind = (data or {}).get("hub_id") or name
    return {"dataset": name, "type": str(kind), **evaluation_numbers(evaluation)}


def evaluation_numbers(evaluation: Any) -> dict[str, Any]:
    """Returns, of what `evaluate` returns, the numbers of boxes, and beside them those of masks and segments and the
    thresholds with the best F1."""
    of_boxes = getattr(evaluation, "coco", evaluation)
    numbers = dict(of_boxes) if isinstance(of_boxes, Mapping) else of_boxes.to_dict()
    for name in ("masks", "panoptic", "thresholds"):
        measured = getattr(evaluation, name, None)
        if measured is not None:
            numbers[name] = measured.to_dict()
    return numbers


def library_versions() -> dict[str, str]:
    """Returns the versions of the libraries that decide the numbers."""
    return {name: found for name in LIBRARIES if (found := version_of(name)) is not None}


def hardware_name() -> str:
    """Returns the GPU's name, or else the CPU's, as far as the system tells it."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return processor_name()


def _is_hub_id(source: str) -> bool:
    """Whether this is `owner/name` of a repository rather than a path here."""
    return source.count("/") == 1 and not source.startswith((".", "/", "~")) and not Path(source).exists()
