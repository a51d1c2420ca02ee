"""Every exception of the package that is not one of Python's own, and the error of a package that is not installed.

`model/` and `processing/` travel with checkpoints to places where this file is absent: they raise `ValueError`,
`TypeError` and `OSError` alone, and so does everything that has no better name below. Each class here is one of
Python's own too, so that `except ValueError` goes on to catch what it caught.
"""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


class DataError(ValueError):
    """Something is wrong with a data set; the message names the file, the image or the annotation."""


class LayoutError(DataError):
    """The folder, file or id is not a data set that is known, or could be read in two ways."""


class AnnotationError(DataError):
    """An annotation cannot be used."""


class PictureError(DataError):
    """A picture is missing, cannot be decoded, or has another size than its annotations say."""


class HubError(OSError):
    """The Hub, or the way to it, did not do what was asked; the message says what to do."""


class IntegrityError(ValueError):
    """A file is not what its manifest says, or there is no manifest to say it."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or none can be resumed from."""


class NonFiniteLossError(FloatingPointError):
    """The loss or its gradient is NaN or infinite; the message names the pictures of the batch."""


def did_you_mean(given: Any, known: Iterable[str]) -> str:
    """Returns the end of an error that names the nearest of what there is, or "" where none is near."""
    near = difflib.get_close_matches(str(given), list(known), n=1)
    return f" Did you mean {near[0]}?" if near else ""


# What is imported -> the extra that brings it; the rest of what lacks comes with the package itself.
EXTRA_OF = {
    "accelerate": "train,eval",
    "datasets": "train,eval",
    "pyarrow": "train,eval",
    "pycocotools": "train,eval",
    "sklearn": "train",
    "hotcoco": "eval",
    "gradio": "app",
    "matplotlib": "viz",
    "optuna": "search",
}
REQUIRED = ("huggingface_hub", "jinja2", "safetensors", "scipy", "timm", "torch", "torchvision", "transformers")


def lacking(error: BaseException, what: str = "This") -> str | None:
    """Returns what to install for an import that failed; None for any other error."""
    if not isinstance(error, ImportError):
        return None
    name = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if "`accelerate" in str(error):  # transformers names an extra of its own
        name = "accelerate"
    if name in EXTRA_OF:
        return f"{what} needs the package {name}, which is not installed: pip install 'detr-hf[{EXTRA_OF[name]}]'."
    if name in REQUIRED:
        return (
            f"{what} needs the package {name}, which `pip install` of detr-hf brings and `pip install --no-deps` does "
            f"not: pip install {name}. So installed, detr-hf runs exported models: detr-hf predict MODEL.onnx PATH."
        )
    return None


@contextmanager
def install_hint(sentence: str) -> Iterator[None]:
    """Raises an ImportError with this sentence, which says what to install, where an import inside fails."""
    try:
        yield
    except ImportError as error:
        raise ImportError(sentence) from error
