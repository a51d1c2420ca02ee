"""The command as a whole: help, version, and how an error looks."""

import json
import shutil
import subprocess
import sys
from itertools import cycle

import pytest
from PIL import Image
from typer.testing import CliRunner

import detr_hf
from detr_hf.checkpoints.embedded import demo_scene_path
from detr_hf.cli.flags import without_python
from detr_hf.cli.main import app, main
from detr_hf.errors import EXTRA_OF, lacking

from ..conftest import NARROW, tiny_model


def test_help_names_the_verbs():
    shown = CliRunner().invoke(app, ["--help"])
    assert shown.exit_code == 0
    for verb in ("demo", "predict", "convert"):
        assert verb in shown.output
        assert CliRunner().invoke(app, [verb, "--help"]).exit_code == 0


def test_version():
    assert CliRunner().invoke(app, ["--version"]).output == f"detr-hf {detr_hf.version.__version__}\n"


def test_a_wrong_call_exits_with_2():
    assert CliRunner().invoke(app, ["detect"]).exit_code == 2
    assert CliRunner().invoke(app, ["predict"]).exit_code == 2
    assert CliRunner().invoke(app, ["predict", "a.jpg", "--threshold", "3"]).exit_code == 2


def run_main(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["detr-hf", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code


def test_an_error_is_one_line(monkeypatch, capsys, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    picture = tmp_path / "a.png"
    assert run_main(monkeypatch, "predict", str(tmp_path), str(picture)) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("detr-hf: ") and "Traceback" not in last


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("hidden_dim", "Field 'hidden_dim' expected int, got str"),
        ("label2id", "label2id is str 'x'; expected a mapping"),
    ],
)
def test_a_field_of_another_type_is_no_traceback(field, words, monkeypatch, capsys, tmp_path):
    tiny_model(**NARROW).save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**fields, field: "x"}))
    assert run_main(monkeypatch, "predict", str(tmp_path), str(demo_scene_path())) == 1
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error


@pytest.mark.parametrize(("fault", "work"), [(TypeError, lambda: len(5)), (KeyError, lambda: {}["x"])])
def test_a_fault_of_the_program_shows_its_place(fault, work, monkeypatch):
    monkeypatch.setattr(sys.modules["detr_hf.cli.main"], "app", work)
    with pytest.raises(fault):
        main()


def test_a_traceback_can_be_asked_for(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    monkeypatch.setenv("DETR_HF_TRACEBACK", "1")
    monkeypatch.setattr("sys.argv", ["detr-hf", "predict", str(tmp_path), str(tmp_path / "a.png")])
    with pytest.raises(Exception, match="bert"):
        main()


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("Choose another name, or pass overwrite=True (--overwrite).", "Choose another name, or pass --overwrite."),
        ("mask_queries=5 (--mask-queries) is for masks.", "--mask-queries is for masks."),
        ("Name one with image_column (--image-column).", "Name one with --image-column."),
        ("use task='panoptic' (--task).", "use --task."),
        ("a cache (--cache) that", "a --cache that"),
        ("without what it requires (--no-deps)", "without what it requires (--no-deps)"),
        ("load_detection_dataset needs the package datasets, which", "This needs the package datasets, which"),
    ],
)
def test_the_command_line_names_its_flags_alone(said, shown):
    assert without_python(said) == shown


# A plain install lacks the extras; one without dependencies lacks nearly all.
LACKING = """
import sys
from importlib.abc import MetaPathFinder
absent, verbs = sys.argv[1].split(","), sys.argv[2].split(";")
class Lacking(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Lacking())
import detr_hf
from detr_hf.cli.main import main
for verb in verbs:
    sys.argv = ["detr-hf", *verb.split()]
    try:
        main()
    except SystemExit as stop:
        assert stop.code == 1, verb
for name in ("load_detection_dataset", "check"):
    try:
        getattr(detr_hf, name)
    except ImportError as error:
        print(f"{name}: {error}", file=sys.stderr)
"""
EXTRAS = ",".join(EXTRA_OF)
BARE = EXTRAS + ",torch,transformers,timm,torchvision,huggingface_hub,scipy"


@pytest.mark.parametrize(
    ("absent", "verbs", "said"),
    [
        (
            EXTRAS,
            "check data;app",
            "the package datasets, which is not installed: pip install 'detr-hf[train,eval]'.;"
            "the package gradio, which is not installed: pip install 'detr-hf[app]'.",
        ),
        (BARE, "predict .;export;convert detr-digits x;eval detr-digits d", "--no-deps` does not: pip install"),
    ],
)
def test_a_verb_that_lacks_a_package_says_what_to_install(absent, verbs, said, tmp_path):
    (tmp_path / "a.png").touch()
    command = [sys.executable, "-c", LACKING, absent, verbs]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("Model: ")]
    assert len(lines) == verbs.count(";") + 3 and done.returncode == 0, done.stderr
    assert all(words in line for line, words in zip(lines[:-2], cycle(said.split(";")))), done.stderr
    assert all("pip install 'detr-hf[train,eval]'" in line for line in lines[-2:]), done.stderr


WITH_A_MODEL = (
    "eval empty nowhere",
    "train --data nowhere --model empty --output_dir out",
    "check nowhere --model empty",
    "convert empty out",
    "export empty",
    "push empty me/x",
    "benchmark empty",
    "inspect empty",
    "predict photos --model empty",
)


@pytest.mark.parametrize("command", WITH_A_MODEL)
def test_no_verb_takes_a_folder_for_a_model_and_each_says_so_before_the_data(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "empty" / "a.png")
    shutil.copytree("empty", "photos")
    refused = CliRunner().invoke(app, command.split()).exception
    assert isinstance(refused, ValueError) and "empty has no config.json" in str(refused)


def test_the_extra_of_trainer_is_ours():
    assert "detr-hf[train,eval]" in lacking(
        ImportError("Using the `Trainer` requires `accelerate>=1.1.0`: install it")
    )
    assert lacking(ImportError("something else")) is lacking(ValueError("`accelerate`")) is None
