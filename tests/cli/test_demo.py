"""`detr-hf demo`: the shipped model on the shipped scene."""

import re

import numpy as np
from PIL import Image
from typer.testing import CliRunner

from detr_hf import Detector
from detr_hf.checkpoints.embedded import demo_scene_path
from detr_hf.cli.main import app


def test_draws_what_it_tells(tmp_path):
    out = tmp_path / "deep" / "boxes.png"
    done = CliRunner().invoke(app, ["demo", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert str(out) in done.stdout
    detections = Detector.from_pretrained()(demo_scene_path())
    rows = re.findall(r"^  (\S+) +(\d\.\d\d) +[\d.]+ +[\d.]+ +[\d.]+ +[\d.]+$", done.stdout, re.MULTILINE)
    assert [name for name, _ in rows] == detections.names and len(rows) >= 3
    with Image.open(out) as drawn, Image.open(demo_scene_path()) as scene:
        assert drawn.size == scene.size
        assert not np.array_equal(np.asarray(drawn), np.asarray(scene.convert("RGB")))
