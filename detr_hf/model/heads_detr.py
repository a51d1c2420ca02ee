"""The model classes of this package, a row each: what a new head has to say of itself is said here."""

from typing import NamedTuple


class ModelClass(NamedTuple):
    """How transformers and the Hub find a model class.

    Attributes:
        name: of the class, in `modeling_detr.py`.
        auto_class: transformers' auto class that gives it.
        names: the table in transformers' `modeling_auto` in which the pipelines look for it.
        task: of its pipeline, and the Hub's tag; None without.
    """

    name: str
    auto_class: str
    names: str
    task: str | None = None


MODEL_CLASSES = (
    ModelClass("DETRModel", "AutoModel", "MODEL_MAPPING_NAMES"),
    ModelClass(
        "DETRForObjectDetection",
        "AutoModelForObjectDetection",
        "MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES",
        "object-detection",
    ),
    *(
        ModelClass(
            "DETRForSegmentation",
            f"AutoModelFor{kind}Segmentation",
            f"MODEL_FOR_{kind.upper()}_SEGMENTATION_MAPPING_NAMES",
            task,
        )
        for kind, task in (("Image", "image-segmentation"), ("Instance", None), ("Universal", None))
    ),
)

# What a repository that carries this code tells transformers' auto classes.
AUTO_MAP = {
    "AutoConfig": "configuration_detr.DETRConfig",
    **{model.auto_class: f"modeling_detr.{model.name}" for model in MODEL_CLASSES},
}
