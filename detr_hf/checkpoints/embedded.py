"""What ships inside the package: the default checkpoint, by a name like any other, and the scene of the demo."""

from importlib.resources import files
from pathlib import Path
from typing import Any

EMBEDDED_MODEL = "detr-digits"
DEMO_SCENE = "digits_scene.png"
# What is to be seen there, from left to right: a digit, and the middle of its box in pixels.
DEMO_DIGITS = (("8", (67, 451)), ("8", (210, 448)), ("6", (238, 75)), ("1", (268, 145)), ("2", (280, 388)))
ABOUT = (
    f"{EMBEDDED_MODEL}, which comes with detr_hf, finds handwritten digits, and takes other things for digits. For "
    "other objects name a checkpoint, such as facebook/detr-resnet-50."
)


def embedded_model_path() -> Path:
    """Returns the folder of the default checkpoint: a small DETR that finds handwritten digits."""
    return _asset(EMBEDDED_MODEL)


def shipped(name_or_path: Any) -> Any:
    """Returns the folder of the default checkpoint for its name, unless something here is called so; else what is
    given."""
    is_its_name = str(name_or_path) == EMBEDDED_MODEL and not Path(EMBEDDED_MODEL).exists()
    return embedded_model_path() if is_its_name else name_or_path


def demo_scene_path() -> Path:
    """Returns the picture that `detr-hf demo` looks at."""
    return _asset(DEMO_SCENE)


def _asset(name: str) -> Path:
    """Returns the path of a shipped file or folder; FileNotFoundError where the installation lacks it."""
    path = Path(str(files(__package__.partition(".")[0]) / "assets" / name))
    if not path.exists():
        raise FileNotFoundError(
            f"This installation of detr_hf lacks {path}. Install the package again from its wheel or source."
        )
    return path
