"""What an exported file is called and what it says of itself; nothing here imports torch or a runtime.

An artefact is one `.onnx`, `.pt2` or `.pte` file, or a folder with `openvino_model.xml` and `.bin`. It carries, under
the key `detr_hf` of its format's own metadata, all that turning pictures into detections needs: the constants of the
preprocessing, the labels, the shapes it takes, and which model and versions it came from. An ExecuTorch file has no
place for that, so a `.json` file of the same name stands beside it.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..model.predictions_detr import Predictions

METADATA_KEY = "detr_hf"
SCHEMA_VERSION = 2  # 1 knew no masks
OPENVINO_GRAPH = "openvino_model.xml"
# What `detr-hf export --to` takes -> the ending of its file; an OpenVINO artefact is a folder.
SUFFIX_OF = {"onnx": ".onnx", "openvino": "", "torch-export": ".pt2", "executorch": ".pte"}
# Field of `Predictions` -> the output of that content, by the same name in an artefact and in a model's output class.
OUTPUT_OF = {
    "logits": "logits",
    "boxes_cxcywh_norm": "pred_boxes",
    "masks": "pred_masks",
    "mask_queries": "mask_queries",
}
FORMAT_OF = {".onnx": "onnx", ".xml": "openvino", ".pt2": "torch-export", ".pte": "executorch"}


@dataclass(frozen=True)
class ArtefactInfo:
    """What an artefact says of itself.

    Attributes:
        format: a key of `SUFFIX_OF`.
        model: the name or path of the checkpoint.
        id2label: class names by label; the last logit, no-object, has none.
        num_queries: Q.
        num_channels: C.
        dtype: the precision asked for, "float32", "float16", "bfloat16" or "int8". Inputs and outputs are float32.
        batch: the number of pictures it takes at a time; None for any.
        size_hw: (height, width) of the pixels it takes; None for any.
        masked: whether it takes `pixel_mask` beside `pixel_values`; one that does not serves pictures without padding.
        preprocessing: the constants of the image processor, as in `preprocessor_config.json`.
        versions: of the packages that made it.
        has_masks: whether it gives masks.
        mask_queries: K, where only the K best queries of a picture have one; None where all have.
        label_ids_to_fuse: the classes of which a picture has one panoptic segment at most.
    """

    format: str
    model: str
    id2label: dict[int, str]
    num_queries: int
    num_channels: int
    dtype: str
    batch: int | None
    size_hw: tuple[int, int] | None
    masked: bool
    preprocessing: dict[str, Any]
    versions: dict[str, str] = field(default_factory=dict)
    has_masks: bool = False
    mask_queries: int | None = None
    label_ids_to_fuse: tuple[int, ...] = ()

    def to_json(self) -> str:
        """Returns one line of JSON, for a format's metadata."""
        return json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self)})

    @classmethod
    def from_json(cls, text: str | None, path: str | Path) -> "ArtefactInfo":
        """Returns the information in an artefact's metadata.

        Raises:
            ValueError: `text` is None, damaged, or written by a later version of this package.
        """
        if text is None:
            raise ValueError(
                f"{path} does not say how its pictures are prepared and what its classes are called: it was not made "
                "by `detr-hf export`. Export the model with it."
            )
        try:
            values = json.loads(text)
            version = values.pop("schema_version")
            if version <= SCHEMA_VERSION:
                values["id2label"] = {int(label): name for label, name in values["id2label"].items()}
                values["size_hw"] = None if values["size_hw"] is None else tuple(values["size_hw"])
                values["label_ids_to_fuse"] = tuple(values.get("label_ids_to_fuse", ()))
                return cls(**values)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{path}: what it says of itself is damaged ({type(error).__name__}: {error}). Export the model again."
            ) from error
        raise ValueError(
            f"{path} has metadata of version {version} and this package reads versions up to {SCHEMA_VERSION}: "
            "export the model again, or update detr_hf."
        )

    def input_shape(self) -> tuple[int | str, int, int | str, int | str]:
        """Returns (B, C, H, W) of `pixel_values`, with a letter where any number will do."""
        height, width = self.size_hw or ("H", "W")
        return self.batch or "B", self.num_channels, height, width


def predictions_of(outputs: Mapping[str, Any]) -> Predictions:
    """Returns what an artefact or a model gives, found by its outputs' names; without masks where it has none."""
    return Predictions(**{field: outputs[name] for field, name in OUTPUT_OF.items() if name in outputs})


def each_field(predictions: Predictions, change: Callable[[Any], Any]) -> Predictions:
    """Returns predictions with `change` applied to every field that is there."""
    return Predictions(*(None if values is None else change(values) for values in predictions))


def find_artefact(source: str | Path) -> Path | None:
    """Returns the file to load if `source` is an artefact or a folder that holds just one; None for anything else.

    A folder with a `config.json` is a checkpoint, whatever lies beside it: name the file inside it.

    Raises:
        FileNotFoundError: `source` ends as an artefact does, and there is no such file.
        ValueError: the folder holds several.
    """
    path = Path(source)
    if path.is_dir():
        return None if (path / "config.json").is_file() else _only_artefact_in(path)
    if path.suffix.lower() not in FORMAT_OF:
        return None
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. `detr-hf export` makes one.")
    return path


def _only_artefact_in(folder: Path) -> Path | None:
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in FORMAT_OF and path.is_file())
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"{folder} holds several exported models ({names}): name the one to load.")
    return found[0] if found else None


def megabytes(path: Path) -> float:
    """Returns the size of an artefact in megabytes, with the weights that lie beside an OpenVINO graph."""
    files = {path, path.with_suffix(".bin")}
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6
