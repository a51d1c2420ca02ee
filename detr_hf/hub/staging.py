"""Lays out, in a folder, the repository that a push commits.

In our own format: weights, config, image processor, and the code of both, so that it loads without the package too
(`trust_remote_code=True`). In the format "transformers": a plain `DetrForObjectDetection`, `DetrForSegmentation` or
Table Transformer with its own processor and no code, which stock transformers loads, and this package as well. Both
formats in one repository would need two sets of weights under names that loaders do not look for, so it is one or the
other.

A model that learnt with training-only aids is laid out without them: they are no part of what it predicts.
"""

import copy
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from ..checkpoints.conversion import FORMATS, processor_for_transformers
from ..model.heads_detr import AUTO_MAP
from ..processing.image_processing_base_detr import CLASS_OF_BACKEND
from .card import render_card
from .manifest import write_manifest

CARD, FACTS, LABELS = "README.md", "facts.json", "id2label.json"
EXAMPLES, CURVES = "examples.png", "training_curves.png"

# What a push owns in a repository: of these, those that it does not write anew are deleted in the same commit.
OWNED = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "model*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*",
    "*_detr.py",
    FACTS,
    LABELS,
    EXAMPLES,
    CURVES,
    "SHA256SUMS",
)


def stage(
    folder: Path,
    model: Any,
    processor: Any,
    facts: dict[str, Any],
    *,
    format: str = "detr_hf",
    max_shard_size: int | str = "50GB",
    pictures: dict[str, Any] | None = None,
) -> None:
    """Writes the whole repository into an empty folder; the digests last.

    `facts` are what the card says, see `facts.py`; its pictures and file sizes are filled in here. `pictures` are PIL
    images by file name.

    Raises:
        ValueError: an unknown format, or a model that transformers cannot hold.
    """
    if format not in FORMATS:
        raise ValueError(f"format={format!r} is not known; the choices are {' and '.join(map(repr, FORMATS))}.")
    aided = getattr(model.config, "has_training_aids", False)
    if format == "transformers":
        plain = copy.deepcopy(model).strip_training_aids() if aided else model
        theirs = plain.to_transformers()
        theirs.save_pretrained(folder, max_shard_size=max_shard_size)
        facts = {**facts, "model": {**facts["model"], "class": type(theirs).__name__}}
        processor_for_transformers(processor).save_pretrained(folder)
    else:
        model.save_pretrained(folder, max_shard_size=max_shard_size, **({"inference_only": True} if aided else {}))
        processor.save_pretrained(folder)
        add_code(folder)
    for name, picture in (pictures or {}).items():
        picture.save(folder / name, optimize=True)
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    facts = {**facts, "format": format, "megabytes": round(weights / 1e6, 1), "pictures": sorted(pictures or {})}
    write_json(folder / LABELS, {str(label): name for label, name in model.config.id2label.items()})
    write_json(folder / FACTS, facts)
    (folder / CARD).write_text(render_card(facts), encoding="utf-8")
    write_manifest(folder)


def add_code(folder: Path) -> None:
    """Copies the code of model and processor into a saved checkpoint, and enters its classes in both config files.

    transformers' `register_for_auto_class` gives the same files, but changes the classes for the rest of the process.
    """
    from transformers.dynamic_module_utils import get_relative_import_files

    from ..model.modeling_detr import DETRModel
    from ..processing.image_processing_detr import DETRImageProcessor

    for cls in (DETRModel, DETRImageProcessor):
        own = sys.modules[cls.__module__].__file__
        for file in (own, *get_relative_import_files(own)):
            shutil.copyfile(file, folder / Path(file).name)
    _enter(folder / "config.json", auto_map=dict(AUTO_MAP))
    _enter(folder / "preprocessor_config.json", auto_map={"AutoImageProcessor": dict(CLASS_OF_BACKEND)})


def _enter(path: Path, **fields: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {**content, **fields})


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes JSON as transformers does: indented, in Unicode, with a newline at the end."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
