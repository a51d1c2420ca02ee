"""The model classes that a checkpoint can be loaded as: one row each, read by whatever must know them all.

A class for another task is one more row here; the map that travels in `config.json`, transformers' tables and the
model card follow from it.
"""

from typing import NamedTuple


class Head(NamedTuple):
    """A model class, and how others find it.

    Attributes:
        model: the class's name, in `modeling_detr.py`.
        auto_class: transformers' class that loads it.
        names: transformers' table of class names by model type, in `modeling_auto`, which that class reads.
        task: what the Hub calls its task, which is the name of its pipeline too; None for one that has none.
    """

    model: str
    auto_class: str
    names: str
    task: str | None = None


HEADS = (
    Head("DETRModel", "AutoModel", "MODEL_MAPPING_NAMES"),
    Head(
        "DETRForObjectDetection",
        "AutoModelForObjectDetection",
        "MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES",
        "object-detection",
    ),
)
DETECTION = HEADS[1]  # what a model is taken for whose class is not in the table


def head_of(model: str) -> Head:
    """Returns the row of the class of that name; that of detection for a class of somebody else's."""
    return next((head for head in HEADS if head.model == model), DETECTION)


# What a repository that carries this code tells transformers' auto classes.
AUTO_MAP = {
    "AutoConfig": "configuration_detr.DETRConfig",
    **{head.auto_class: f"modeling_detr.{head.model}" for head in HEADS},
}

__all__ = ["AUTO_MAP", "DETECTION", "HEADS", "Head", "head_of"]
