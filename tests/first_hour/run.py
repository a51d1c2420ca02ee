"""A newcomer's first hour, from a wheel in an empty environment (`make first-hour`; one journey: JOURNEYS=deploy).

Each journey is a list of what such a user does, with the exit code and the words that must come back; what they take
in minutes and megabytes is printed. Nothing of the checkout is used but the wheel, and what a user would have copied
from it: the guide beside this file, the code of a page. The network is needed for pip alone: commands run as without
one, with a Hub that nobody answers for. `--keep FOLDER` keeps the environments, for the next time; `--patience 5` is
for a machine that does other things as well.

The journeys of a contributor and of a learner end at what a wheel has: a clone's are `make test` and `make docs-test`.
"""

import os
import re
import shlex
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
GUIDED = (*TRAINING, "albumentations torchmetrics")
EXPORTING = (*TRAINING, "{wheel}[export]")
EXTRAS = ("datasets", "accelerate", "hotcoco", "onnx")  # of each extra a package without which it is not there
# What nobody wants to see, whatever else is right.
NOISE = re.compile(r"During handling of the above|The above exception was|Retrying in")
# A data set of the user's own, in YOLO's layout; then a box of it that is no fraction of the picture.
OWN_DATA = """
from pathlib import Path
from detr_hf.data import DigitScenes
for split, count in (("train", 8), ("validation", 4)):
    scenes = DigitScenes(split, count)
    for kind in ("images", "labels"):
        Path("mine", kind, split).mkdir(parents=True)
    for number in range(count):
        scene, lines = scenes[number], []
        for label, (x, y, w, h) in zip(scene["objects"]["category"], scene["objects"]["bbox"]):
            W, H = scene["image"].size
            lines.append(f"{label} {(x + w / 2) / W} {(y + h / 2) / H} {w / W} {h / H}")
        scene["image"].save(f"mine/images/{split}/{split}{number}.png")
        Path(f"mine/labels/{split}/{split}{number}.txt").write_text("\\n".join(lines))
names = ", ".join(f"'{digit}'" for digit in range(10))
text = f"path: .\\ntrain: images/train\\nval: images/validation\\nnames: [{names}]\\n"
Path("mine/data.yaml").write_text(text)
print(text)
"""
SPOILT = """
from pathlib import Path
import shutil
shutil.copytree("mine", "spoilt")
Path("spoilt/labels/train/train0.txt").write_text("3 1.4 0.5 0.2 0.2")
shutil.copy("spoilt/images/train/train1.png", "spoilt/images/validation/again.png")
"""
# A page of the documentation as a program: its blocks one after another.
BLOCKS = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
PARTS = "\n".join(BLOCKS.findall((ROOT / "docs" / "parts.md").read_text(encoding="utf-8")))
GUIDE = (Path(__file__).parent / "guide.py").read_text(encoding="utf-8")
TRAIN = "detr-hf train --use_cpu --report_to none --figures false"


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
            Step("detr-hf predict facebook/detr-resnet-50 photos", "HF_ENDPOINT names a mirror", 1, 10),
            Step("detr-hf predict photos --model ''", "a name is empty", 2, 10),
            Step("detr-hf predict photos/scene.png photos --model photos/scene.png", "is a picture, where", 1),
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
            Step(
                "from detr_hf import DETRForObjectDetection\n"
                "DETRForObjectDetection.from_pretrained('facebook/detr-resnet-50')",
                "is not in the Hugging Face cache.*HF_ENDPOINT names a mirror",
                1,
            ),
        ],
    ),
    "transformers": (
        GUIDED,
        [
            Step(
                "import detr_hf\nfrom transformers import pipeline\n"
                "found = pipeline('object-detection', model=str(detr_hf.embedded_model_path()))('photos/scene.png')\n"
                "print(len(found), 'objects')",
                r"[1-9]\d* objects",
            ),
            Step(GUIDE, r"mAP 0\.[3-9]\d, [1-9]\d* objects of", 0, 600),
        ],
    ),
    "own-data": (
        TRAINING,
        [
            Step("detr-hf check digits", "0 errors", 0, 300),
            Step(
                f"{TRAIN} --data digits --model detr-digits --max_steps 2 --skip_check --output_dir out "
                "--eval_strategy no",
                "average precision",
                0,
                900,
            ),
            Step("detr-hf eval out digits --limit 10 --image-size 200", "The first 10 of 200 pictures.*AP50", 0, 300),
            Step("detr-hf predict out photos", "scene.png: "),
            Step(OWN_DATA, "names: "),
            Step("detr-hf check mine --preview seen.png", "0 errors.*seen.png"),
            Step(SPOILT),
            Step("detr-hf check spoilt", "box-not-normalised.*train0.txt.*image-in-two-splits", 1),
            Step(
                f"{TRAIN} --data mine --model detr-digits --max_steps 4 --save_steps 2 --shortest_edge 160 "
                "--output_dir mine-out",
                r"(?=.*parameters)(?=.*AP50).*Model: mine-out",
                0,
                600,
            ),
            Step(
                f"{TRAIN} --data mine --model detr-digits --max_steps 4 --save_steps 2 --shortest_edge 160 "
                "--output_dir mine-out",
                "it goes on from step 4",
                0,
                600,
            ),
            Step(f"{TRAIN} --data mine --epochs 3", "--num_train_epochs", 2),
            Step(f"{TRAIN} --data mine --model detr-digit --output_dir no", "Did you mean detr-digits", 1, 10),
            Step("detr-hf eval mine-out mine", "AP50"),
        ],
    ),
    "learn": (
        PLAIN,
        [
            Step(
                "from detr_hf import DETRConfig, DETRForObjectDetection\n"
                "print(DETRForObjectDetection(DETRConfig(num_labels=91)))",
                r"(?=.*class_embed).*Joiner\(.*PositionEmbeddingSine",
            ),
            Step(PARTS, r"torch\.Size\(\[2, 512, 4, 5\]\)", 0, 300),
            Step("detr-hf inspect detr-digits --svg way.svg", "Written: way.svg"),
        ],
    ),
    "deploy": (
        EXPORTING,
        [
            Step("detr-hf export --output digits.onnx", r"Written: digits\.onnx", 0, 600),
            Step("detr-hf eval digits.onnx digits --split validation --limit 4", "AP50", 0, 300),
            Step("detr-hf benchmark digits.onnx --runs 2 --size 160x160", "pictures/s"),
        ],
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

    def __init__(self, folder: Path, kept: Path | None = None, patience: float = 1):
        self.folder, self.kept, self.patience = folder, kept or folder, patience
        self.work = folder / "work"
        self.made: dict[Path, list[str]] = {}  # environment -> what this run has installed in it
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
        """Returns the folder of programs of an environment with these installed, beside what it has.

        Environments that were kept get the wheel anew, and lose what they had beyond a plain installation.
        """
        place = self.kept / ("slim" if installs == SLIM else "full")
        began = time.monotonic()
        pip = [place / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "install", "-qqq"]
        if not place.exists():
            venv.create(place, with_pip=True)
        elif place not in self.made:
            subprocess.run([*pip[:-2], "uninstall", "-y", "-qqq", *EXTRAS], check=True)
        done = self.made.setdefault(place, [])
        missing = [requirement for requirement in installs if requirement not in done]
        for requirement in missing:
            subprocess.run([*pip, *requirement.format(wheel=self.wheel).split()], check=True)
        if not done:
            subprocess.run([*pip, "--no-deps", "--force-reinstall", self.wheel], check=True)
        done += missing
        if missing:
            size = sum(file.lstat().st_size for file in place.rglob("*") if not file.is_dir())
            said = " + ".join(missing).format(wheel="WHEEL")
            print(f"  installed {said}: {minutes(began)}, {size / 1e6:,.0f} MB", flush=True)
        return place / "bin"

    def take(self, step: Step, programs: Path, url: str) -> None:
        """Does what a user does, and notes what is not as it must be."""
        does = step.does.replace("{url}", url)
        is_verb = does.startswith("detr-hf ")
        python = str(programs / "python")
        command = [str(programs / "detr-hf"), *shlex.split(does)[1:]] if is_verb else [python, "-c", does]
        settings = {"HF_ENDPOINT": NO_HUB, "HF_HOME": str(self.folder / "home"), "COLUMNS": "1000"}
        settings["PYTHONUNBUFFERED"] = "1"  # what is said and what is written come in the order in which they are seen
        hidden = {"PYTHONPATH", "HF_HUB_OFFLINE", "VIRTUAL_ENV"}
        environment = {name: value for name, value in os.environ.items() if name not in hidden} | settings
        seconds = step.seconds * self.patience
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        began = time.monotonic()
        try:
            done = subprocess.run(command, cwd=self.work, env=environment, timeout=seconds, check=False, **streams)
            code, output = done.returncode, done.stdout
        except subprocess.TimeoutExpired as late:
            code, output = None, f"{(late.stdout or b'').decode()[-1500:]}\nnot done in {seconds:.0f} s"
        good = code == step.code and re.search(step.says.replace("{url}", re.escape(url)), output, re.DOTALL)
        noise = NOISE.search(output) or (is_verb and "Traceback" in output)
        shown = does if is_verb else does.strip().splitlines()[-1]
        took = f"{time.monotonic() - began:6.1f} s"
        print(f"  {'FAULT' if noise or not good else 'ok   '} {took}  {shown}", flush=True)
        if noise or not good:
            wanted = f"exit code {code}, expected {step.code} and {step.says!r}, and no traceback"
            self.faults.append(f"{shown}\n  {wanted}:\n{output[-3000:]}")


def minutes(began: float) -> str:
    """Returns the time since then."""
    return f"{(time.monotonic() - began) / 60:.1f} minutes"


class Quiet(SimpleHTTPRequestHandler):
    """Gives the pictures of a folder, and logs nothing."""

    def log_message(self, *args: object) -> None:
        pass


def main(names: list[str], kept: Path | None = None, patience: float = 1) -> int:
    """Takes the journeys of these names, or all, and returns how many steps went wrong."""
    unknown = set(names) - set(JOURNEYS)
    if unknown:
        sys.exit(f"There is no journey {sorted(unknown)}; there are {', '.join(JOURNEYS)}.")
    if "deploy-slim" in names and "deploy" not in names:
        names = ["deploy", *names]
    with tempfile.TemporaryDirectory() as scratch:
        hour = Hour(Path(scratch), kept, patience)
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
    arguments.add_argument("--patience", type=float, default=1, help="Times the seconds that a step may take.")
    given = arguments.parse_args()
    sys.exit(main(given.journeys, given.keep, given.patience))
