"""The preview: drawn by the command, the same for one seed, and without touching the generator."""

from pathlib import Path

import torch
from PIL import Image
from typer.testing import CliRunner

from detr_hf import DETRImageProcessor
from detr_hf.data import load_detection_dataset
from detr_hf.data.checking.preview import preview

from .. import layouts

PROCESSOR = DETRImageProcessor(size={"shortest_edge": 60, "longest_edge": 100})


def test_preview_leaves_the_generator_alone(tmp_path: Path):
    data = load_detection_dataset(layouts.write_coco(tmp_path))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = preview(data["train"], PROCESSOR, data.id2label, "strong", tile=100, masks=True)
    assert torch.equal(torch.rand(3), expected)
    second = preview(data["train"], PROCESSOR, data.id2label, "strong", tile=100, masks=True)
    assert first.size == (200, 228) and first.tobytes() == second.tobytes()
    assert len({colour for _, colour in first.getcolors(100_000)}) > 50


def test_check_draws_a_preview(tmp_path: Path):
    from detr_hf.cli.main import app

    root = layouts.write_coco(tmp_path / "data")
    grid = tmp_path / "grid.png"
    result = CliRunner().invoke(app, ["check", str(root), "--preview", str(grid), "--augment", "paper"])
    assert result.exit_code == 0, result.output
    assert Image.open(grid).width == 2 * 400
