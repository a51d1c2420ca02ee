"""Where the files are that ship inside the package: the default checkpoint and the scene of the demo."""

from importlib.resources import files
from pathlib import Path

EMBEDDED_MODEL = "detr-digits"
DEMO_SCENE = "digits_scene.png"


def embedded_model_path() -> Path:
    """Returns the folder of the default checkpoint: a small DETR that finds handwritten digits."""
    return _asset(EMBEDDED_MODEL)


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
