"""A newcomer's first hour, from a wheel in an empty environment (`make first-hour`; one journey: JOURNEYS=deploy).

Each journey is a list of what such a user does, with the exit code and the words that must come back; what they take
in minutes and megabytes is printed. Nothing of the checkout is used but the wheel. The network is needed for pip
alone: commands run as without one, with a Hub that nobody answers for. `--keep FOLDER` keeps the environments, for
the next time.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import venv
from argparse import ArgumentParser
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NO_HUB = "http://127.0.0.1:9"
SLIM = ("--no-deps {wheel}", "numpy pillow onnxruntime typer rich")
PLAIN = ("{wheel}",)
TRAINING = (*PLAIN, "{wheel}[train,eval]")
EXPORTING = (*PLAIN, "{wheel}[export]")


@dataclass(frozen=True)
class Step:
    """What a user does: a command of detr-hf, or a program of Python, and what must come back in how many seconds."""

    does: str
    says: str = ""
    code: int = 0
    seconds: int = 120


JOURNEYS: dict[str, tuple[tuple[str, ...], list[Step]]] = {
    "detect": (
        PLAIN,
        [
            Step("detr-hf demo", "The picture with"),
            Step("detr-hf predict photos --save boxes", "finds handwritten digits.*Drawn pictures: boxes"),
            Step("detr-hf predict {url}/scene.png --json found.json", "{url}/scene.png: "),
            Step("detr-hf predict empty photos", "empty holds no checkpoint", 2),
            Step("detr-hf predict my-modle/ photos", "no file or folder 'my-modle/'", 2),
            Step("detr-hf predict facebook/detr-resnet-50 photos", "HF_ENDPOINT names a mirror", 1, 30),
            Step("detr-hf predict detr-digits photos --limit 1 --image-size 256 --out run", "Complete: run"),
            Step("detr-hf check data", r"pip install 'detr-hf\[train,eval\]'", 1),
            Step("detr-hf export", r"pip install 'detr-hf\[export\]'", 1),
            Step(
                "from detr_hf import Detector\n"
                "found = Detector.from_pretrained('detr-digits')('photos/scene.png', threshold=0.7)\n"
                "found.save('scene_boxes.png')\nprint(len(found), 'objects')",
                r"[1-9]\d* objects",
            ),
            Step(
                "from detr_hf import Detector\nDetector.from_pretrained('detr-digits')('photos')",
                "is a folder and not one picture.*predict_to_shards",
                1,
            ),
        ],
    ),
    "transformers": (
        PLAIN,
        [
            Step(
                "import detr_hf\nfrom detr_hf.checkpoints.embedded import embedded_model_path\n"
                "from transformers import pipeline\n"
                "found = pipeline('object-detection', model=str(embedded_model_path()))('photos/scene.png')\n"
                "print(len(found), 'objects')",
                r"[1-9]\d* objects",
            ),
        ],
    ),
    "own-data": (
        TRAINING,
        [
            Step("detr-hf check digits", "0 errors", 0, 300),
            Step(
                "detr-hf train --data digits --model detr-digits --max_steps 2 --skip_check --use_cpu "
                "--output_dir out --report_to none --eval_strategy no",
                "average precision",
                0,
                900,
            ),
            Step("detr-hf eval out digits --limit 10 --image-size 200", "The first 10 of 200 pictures.*AP50", 0, 300),
            Step("detr-hf predict out photos", "scene.png: "),
        ],
    ),
    "learn": (
        PLAIN,
        [
            Step(
                "from detr_hf import DETRConfig, DETRForObjectDetection\n"
                "print(DETRForObjectDetection(DETRConfig(num_labels=91)))",
                r"Joiner\(.*PositionEmbeddingSine.*class_embed",
            ),
        ],
    ),
    "deploy": (
        EXPORTING,
        [Step("detr-hf export --output digits.onnx", r"Written: digits\.onnx", 0, 600)],
    ),
    "deploy-slim": (
        SLIM,
        [
            Step("detr-hf predict digits.onnx photos", "scene.png: "),
            Step(
                "import sys\nfrom detr_hf import Detector\n"
                "Detector.from_pretrained('digits.onnx')('photos/scene.png').save('slim.png')\n"
                "assert 'torch' not in sys.modules",
            ),
            Step("detr-hf predict photos", "`pip install --no-deps` does not: pip install transformers", 1),
            Step("detr-hf predict some/model photos", "pip install huggingface_hub", 1),
        ],
    ),
    "contribute": (
        PLAIN,
        [
            Step(
                "from detr_hf.model import Backbone, DETRConfig\n"
                "Backbone(DETRConfig(backbone='vit_tiny_patch16_224'))",
                "does not take images of 101x139 pixels.*resnet50",
                1,
            ),
            Step(
                "import torch\nfrom detr_hf.model import Backbone, DETRConfig\n"
                "body = Backbone(DETRConfig(backbone='swin_tiny_patch4_window7_224')).eval()\n"
                "print(body(torch.zeros(1, 3, 75, 101), None)[-1][0].shape)",
                r"\[1, 768, 3, 4\]",
            ),
        ],
    ),
}


class Hour:
    """The wheel, the environments that were made so far, and the folder in which users work."""

    def __init__(self, folder: Path, kept: Path | None = None):
        self.folder, self.kept = folder, kept or folder
        self.work = folder / "work"
        self.made: set[tuple[str, ...]] = set()
        self.faults: list[str] = []
        (self.work / "photos").mkdir(parents=True)
        (self.work / "empty").mkdir()
        shutil.copy(ROOT / "detr_hf" / "assets" / "digits_scene.png", self.work / "photos" / "scene.png")
        source = folder / "source"
        shutil.copytree(ROOT / "detr_hf", source / "detr_hf", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, source / name)
        pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source)]
        subprocess.run(pip, check=True)
        self.wheel = next(folder.glob("*.whl"))

    def environment(self, installs: tuple[str, ...]) -> Path:
        """Returns the folder of programs of an environment with these installed; one of fewer is added to.

        Environments that were kept get the wheel anew, and what else they lack.
        """
        place = self.kept / ("slim" if installs == SLIM else "full")
        began = time.monotonic()
        if not place.exists():
            venv.create(place, with_pip=True)
        pip = [place / "bin" / "python", "-m", "pip", "install", "--quiet"]
        if installs not in self.made:
            done = max((len(known) for known in self.made if known[:1] == installs[:1]), default=0)
            for requirement in installs[done:]:
                subprocess.run([*pip, *requirement.format(wheel=self.wheel).split()], check=True)
            if not done:
                subprocess.run([*pip, "--no-deps", "--force-reinstall", self.wheel], check=True)
            self.made.add(installs)
            size = sum(file.lstat().st_size for file in place.rglob("*") if not file.is_dir())
            said = " + ".join(requirement.format(wheel="WHEEL") for requirement in installs)
            print(f"  installed {said}: {minutes(began)}, {size / 1e6:,.0f} MB", flush=True)
        return place / "bin"

    def take(self, step: Step, programs: Path, url: str) -> None:
        """Does what a user does, and notes what is not as it must be."""
        does = step.does.replace("{url}", url)
        is_verb = does.startswith("detr-hf ")
        command = [str(programs / "detr-hf"), *does.split()[1:]] if is_verb else [str(programs / "python"), "-c", does]
        settings = {"HF_ENDPOINT": NO_HUB, "HF_HOME": str(self.folder / "home"), "COLUMNS": "1000"}
        hidden = {"PYTHONPATH", "HF_HUB_OFFLINE", "VIRTUAL_ENV"}
        environment = {name: value for name, value in os.environ.items() if name not in hidden} | settings
        began = time.monotonic()
        try:
            done = subprocess.run(
                command, cwd=self.work, env=environment, capture_output=True, text=True, timeout=step.seconds
            )
            code, output = done.returncode, done.stdout + done.stderr
        except subprocess.TimeoutExpired:
            code, output = None, f"not done in {step.seconds} s"
        good = code == step.code and re.search(step.says.replace("{url}", re.escape(url)), output, re.DOTALL)
        shown = does.splitlines()[-1] if not is_verb else does
        print(f"  {'ok   ' if good else 'FAULT'} {time.monotonic() - began:6.1f} s  {shown}", flush=True)
        if not good:
            expected = f"exit code {code}, expected {step.code} and {step.says!r}"
            self.faults.append(f"{shown}\n  {expected}:\n{output[-2000:]}")


def minutes(began: float) -> str:
    """Returns the time since then."""
    return f"{(time.monotonic() - began) / 60:.1f} minutes"


class Quiet(SimpleHTTPRequestHandler):
    """Gives the pictures of a folder, and logs nothing."""

    def log_message(self, *args: object) -> None:
        pass


def main(names: list[str], kept: Path | None = None) -> int:
    """Takes the journeys of these names, or all, and returns how many steps went wrong."""
    unknown = set(names) - set(JOURNEYS)
    if unknown:
        sys.exit(f"There is no journey {sorted(unknown)}; there are {', '.join(JOURNEYS)}.")
    if "deploy-slim" in names and "deploy" not in names:
        names = ["deploy", *names]
    with tempfile.TemporaryDirectory() as scratch:
        hour = Hour(Path(scratch), kept)
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=hour.work / "photos"))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name in names or JOURNEYS:
            installs, steps = JOURNEYS[name]
            print(name, flush=True)
            programs = hour.environment(installs)
            began = time.monotonic()
            for step in steps:
                hour.take(step, programs, f"http://127.0.0.1:{server.server_port}")
            print(f"  {minutes(began)} of use", flush=True)
        server.shutdown()
        print(*hour.faults, sep="\n\n")
        return len(hour.faults)


if __name__ == "__main__":
    arguments = ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("journeys", nargs="*", help=", ".join(JOURNEYS))
    arguments.add_argument("--keep", type=Path, help="The folder of the environments.")
    given = arguments.parse_args()
    sys.exit(main(given.journeys, given.keep))
