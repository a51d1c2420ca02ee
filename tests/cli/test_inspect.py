"""`detr-hf inspect`: a table, the same as JSON, and a drawing; once more writes over its own."""

import json
import xml.etree.ElementTree as ElementTree

from PIL import Image
from typer.testing import CliRunner

from detr_hf.cli.main import app


def run(*arguments):
    return CliRunner().invoke(app, ["inspect", *map(str, arguments)])


def test_table_drawing_and_json_have_the_same_numbers(tmp_path):
    svg, numbers = tmp_path / "way.svg", tmp_path / "way.json"
    assert run("--size", "64x96", "--svg", svg, "--json", numbers).exit_code == 0
    Image.new("RGB", (96, 64)).save(tmp_path / "a.png")
    done = run("--image", tmp_path / "a.png", "--svg", svg, "--json", numbers)  # over its own
    assert done.exit_code == 0, done.output
    found = json.loads(numbers.read_text(encoding="utf-8"))
    total = found["total"]
    assert total["trainable"] == sum(step["trainable"] for step in found["steps"])
    whole = next(line for line in done.output.splitlines() if line.startswith("whole"))
    assert whole.split()[1:4] == [f"{total['trainable']:,}", f"{total['frozen']:,}", f"{total['gflop']:.3f}"]
    texts = [text.text for text in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")]
    (projected,) = [step for step in found["steps"] if step["name"] == "input_proj"]
    assert "×".join(map(str, projected["shape"])) in texts
    assert f"Written: {svg}" in done.output


def test_what_cannot_be_is_refused_before_a_model_is_loaded(tmp_path):
    drawn = tmp_path / "mine.svg"
    drawn.write_text("<svg>mine</svg>", encoding="utf-8")
    for arguments, words in (
        (["--image", "a.png", "--size", "64x64"], "not both"),
        (["--size", "64"], "HEIGHTxWIDTH"),
        (["none", "--svg", drawn], "is no result of detr-hf"),
        (["none.onnx"], "no such file"),
    ):
        done = run(*arguments)
        assert done.exit_code != 0 and words in " ".join(f"{done.output} {done.exception}".split()), done.output
    assert drawn.read_text(encoding="utf-8") == "<svg>mine</svg>"
