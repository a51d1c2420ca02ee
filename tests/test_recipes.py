"""docs/recipes.md as its reader uses it: the blocks of each recipe run, and give what it promises.

The digit detector stands for the checkpoint that the page names; pictures and data are scenes of digits.
"""

import json
import os
import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from detr_hf import Detector
from detr_hf.cli.main import app
from detr_hf.data import DigitScenes

PAGE = Path(__file__).parent.parent / "docs" / "recipes.md"
NAMED, HERE = "facebook/detr-resnet-50", "detr-digits"
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```", re.DOTALL | re.MULTILINE)
FIRST, *RECIPES = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
NEEDED = {"Follow": ["trackers", "cv2"], "Train": ["peft"], "Watch": ["tensorboard", "trackio"]}


def write_coco(folder: Path, scenes: DigitScenes, indices: range, size_hw: tuple[int, int]) -> None:
    folder.mkdir(parents=True)
    images, annotations = [], []
    for number in indices:
        drawn = scenes.draw(number, size_hw)
        drawn["image"].save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": size_hw[1], "height": size_hw[0]})
        objects = drawn["objects"]
        for box, label in zip(objects["bbox"], objects["category"], strict=True):
            one = {
                "bbox": list(map(float, box)),
                "category_id": int(label),
                "area": float(box[2] * box[3]),
                "iscrowd": 0,
            }
            annotations.append({**one, "id": len(annotations) + 1, "image_id": number})
    categories = [{"id": digit, "name": str(digit)} for digit in range(10)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "_annotations.coco.json").write_text(json.dumps(content))


@pytest.fixture
def stage(tmp_path, monkeypatch) -> Path:
    """What the page takes for granted: photographs, one of them large, a film that moves, and data."""
    scenes = DigitScenes("validation", length=30, seed=1)
    (tmp_path / "photos").mkdir()
    (tmp_path / "films").mkdir()
    for number in range(4):
        scenes.draw(number, (128, 160))["image"].save(tmp_path / "photos" / f"{number}.jpg", quality=95)
    tiles = [np.asarray(scenes.draw(4 + number, (240, 320))["image"]) for number in range(12)]
    rows = [np.concatenate(tiles[4 * row : 4 * row + 4], axis=1) for row in range(3)]
    Image.fromarray(np.concatenate(rows)).save(tmp_path / "street.jpg", quality=95)
    scene = np.asarray(scenes.draw(3, (208, 304))["image"])
    with av.open(str(tmp_path / "films" / "film.mp4"), "w") as film:
        stream = film.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 288, 192, "yuv420p"
        for at in range(8):
            pixels = np.ascontiguousarray(scene[at : at + 192, at : at + 288])
            film.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        film.mux(stream.encode())
    for split, indices in (("train", range(6)), ("valid", range(6, 8))):
        write_coco(tmp_path / "path" / "to" / "data" / split, scenes, indices, (96, 128))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    return tmp_path


def run(text: str, names: dict) -> None:
    """Runs the blocks of a text in turn; `detr-hf` in this process."""
    for language, block in BLOCK.findall(text.replace(NAMED, HERE)):
        if language == "python":
            exec(compile(block, "docs/recipes.md", "exec"), names)
            continue
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[0] == "detr-hf":
                extra = ["--use_cpu"] if words[1] == "train" else []
                done = CliRunner().invoke(app, words[1:] + extra)
                assert done.exit_code == 0, done.output
            else:
                assert os.system(shlex.join(words)) == 0


def tracks_last(names: dict, stage: Path) -> None:
    longest = max(names["tracks"].values(), key=len)
    assert len(longest) >= 5 and max(longest) == 7
    steps = np.diff([longest[frame][:2] for frame in sorted(longest)], axis=0)
    assert np.abs(steps + 1).max() < 3, "the camera moves by a pixel a frame"


def tiles_find_more(names: dict, stage: Path) -> None:
    assert len(names["in_tiles"]) > len(names["detector"](names["picture"], threshold=0.5)) > 0


def adapter_is_small_and_merges(names: dict, stage: Path) -> None:
    parts = [sum(p.numel() for p in names["tuned"].parameters() if p.requires_grad or every) for every in (0, 1)]
    assert 0 < parts[0] < 0.2 * parts[1]
    assert (stage / "adapter" / "adapter_model.safetensors").stat().st_size < 5e6
    assert Detector.from_pretrained(stage / "merged").id2label == names["data"].id2label


def tools_get_their_files(names: dict, stage: Path) -> None:
    written = json.loads((stage / "results" / "coco_instances.json").read_text())
    assert len(written["images"]) == 4 and len(written["annotations"]) > 4
    assert sorted(path.stem for path in (stage / "voc" / "Annotations").iterdir()) == list("0123")
    assert (stage / "cvat.xml").read_text().count("<box") == len(written["annotations"])
    assert sum(len(path.read_text().splitlines()) for path in (stage / "yolo").glob("?.txt")) == len(
        written["annotations"]
    )
    import supervision

    read = supervision.DetectionDataset.from_coco(str(stage / "photos"), str(stage / "results/coco_instances.json"))
    assert len(read) == 4 and sum(len(one.xyxy) for one in read.annotations.values()) == len(written["annotations"])


def corrected_is_trained_on(names: dict, stage: Path) -> None:
    state = json.loads((stage / "out_corrected" / "trainer_state.json").read_text())
    assert state["global_step"] == 4


def loggers_have_the_losses(names: dict, stage: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = min((stage / "out_watched" / "runs").rglob("events.*"))
    read = EventAccumulator(str(events)).Reload()
    assert len(read.Scalars("train/loss")) >= 4
    assert any((stage / "trackio").rglob("*my-detr*"))


CHECKS = {
    "Follow": tracks_last,
    "Find": tiles_find_more,
    "Train": adapter_is_small_and_merges,
    "Predictions": tools_get_their_files,
    "Label": corrected_is_trained_on,
    "Watch": loggers_have_the_losses,
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda text: text.split()[0])
def test_the_recipe_gives_what_it_promises(recipe, stage):
    title = recipe.split()[0]
    if missing := [name for name in NEEDED.get(title, []) if find_spec(name) is None]:
        pytest.skip(f"needs {', '.join(missing)}, not installed")
    names: dict = {}
    run(FIRST, names)
    run(recipe, names)
    CHECKS[title](names, stage)


def test_every_recipe_has_its_check():
    assert [recipe.split()[0] for recipe in RECIPES] == list(CHECKS)
