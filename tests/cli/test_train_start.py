"""`detr-hf train`: what it starts from, its flags and help, and the same command again."""

import json
import re

import pytest
import timm
import torch
from typer.testing import CliRunner

from detr_hf import DETRImageProcessor
from detr_hf.cli.main import app
from detr_hf.cli.train import DataArguments, build, parse, parser
from detr_hf.cli.train_again import command_of, resume_choice
from detr_hf.cli.train_help import NEEDED, OTHER_NAMES
from detr_hf.cli.train_start import refuse_no_start
from detr_hf.errors import DataError, HubError
from detr_hf.training.arguments import RECIPES

from ..training.scenes import micro_model, trained, write_coco

CPU = ["--use_cpu", "--report_to", "none", "--disable_tqdm", "true", "--figures", "false"]
SMALL = ["--shortest_edge", "48", "--num_queries", "5"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Data, a trained and a new checkpoint, and the weights of a backbone."""
    root = tmp_path_factory.mktemp("start")
    write_coco(root / "data", panoptic=False)
    for name, model in (("trained", trained(micro_model())), ("new", micro_model())):
        model.save_pretrained(root / name)
        DETRImageProcessor(size={"shortest_edge": 48, "longest_edge": 64}).save_pretrained(root / name)
    torch.save(timm.create_model("test_resnet").state_dict(), root / "backbone.pt")
    return root


def flags(root, *start, out="out"):
    return ["--data", str(root / "data"), "--output_dir", str(root / out), "--skip_check", *CPU, *map(str, start)]


def run(*arguments):
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


KINDS = {
    "by default": ([], "precise"),
    "what is asked for": (["--preset", "detr"], "scratch"),
    "the one that a recipe is for": (["--recipe", "fast"], "scratch"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_model_on_the_weights_of_a_backbone(kind, root, caplog):
    given, rates = KINDS[kind]
    start = ("--backbone", "test_resnet", "--backbone_weights", root / "backbone.pt", *SMALL)
    made = build(*parse(flags(root, *start, *given)))
    assert "Unexpected keys" not in caplog.text  # of the classifier's head
    weights = torch.load(root / "backbone.pt", weights_only=True)
    assert torch.equal(next(made.model.backbone[0].body.parameters()), weights["conv1.0.weight"])
    assert made.args.learning_rate == RECIPES[rates]["learning_rate"] and made.model.config.num_queries == 5
    assert made.model.config.box_queries == (rates == "precise")
    assert set(made.processing_class.image_mean) == {0.5}  # of these weights
    assert made.processing_class.size == {"shortest_edge": 48, "longest_edge": 80}


def test_arguments_of_the_backbone_are_pairs():
    start = parse(["--data", "x", "--backbone_kwargs", "a=True", "--backbone-kwargs", "b=(2, 3)", "c=gelu"])[0]
    assert start.is_new and start.backbone_options() == {"a": True, "b": (2, 3), "c": "gelu"}


def test_a_new_model_sees_pictures_at_a_size_that_suits_them(root, capsys):
    start = ("--backbone", "test_resnet", "--backbone_weights", root / "backbone.pt")
    size = build(*parse(flags(root, *start))).processing_class.size
    assert size == {"shortest_edge": 320, "longest_edge": 533}
    of_checkpoint = build(*parse(flags(root, "--model", root / "new"))).processing_class.size
    assert of_checkpoint["shortest_edge"] == 48
    assert "at a shortest side of 320" in capsys.readouterr().err


@pytest.mark.parametrize(("start", "rate"), [("trained", 5e-5), ("new", 1e-4)])
def test_rates_go_by_what_the_folder_holds(start, rate, root):
    assert build(*parse(flags(root, "--model", root / start))).args.learning_rate == rate


REFUSED = {
    "no weights in the cache": (["--model", "scratch"], OSError, r"resnet50.*--backbone_weights FILE"),
    "no weights of another": (["--backbone", "resnet18"], OSError, r"resnet18.*--backbone_weights FILE"),
    "no file": (["--backbone_weights", "nowhere.pt"], OSError, "--backbone_weights nowhere.pt is neither"),
    "another backbone's": (["--backbone", "resnet18", "--backbone_weights", "FILE"], ValueError, "does not hold"),
    "no backbone": (
        ["--backbone", "resnet5O"],
        ValueError,
        "--backbone resnet5O is not known.*Did you mean 'resnet50",
    ),
    "one size": (
        ["--backbone", "vit_tiny_patch16_224", "--backbone_weights", "none"],
        ValueError,
        "or Swin. --backbone_kwargs dynamic_img_size=True --backbone_kwargs dynamic_img_pad=True makes it take them",
    ),
    "no pair": (["--backbone_kwargs", "dynamic_img_size"], ValueError, "--backbone_kwargs 'dynamic_img_size' is no"),
    "two starts": (["--model", "x", "--backbone", "resnet18"], ValueError, "give one of the two"),
    "no preset": (["--preset", "quick"], ValueError, "--preset quick is not known.*detr"),
    "two kinds": (["--model", "x", "--preset", "precise"], ValueError, "--preset builds a new model.*--model x"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_start_is_refused_before_the_data_are_read(case, root, monkeypatch, tmp_path):
    start, kind, words = REFUSED[case]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    start = [str(root / "backbone.pt") if word == "FILE" else word for word in start]
    done = run("--data", root / "nowhere", "--output_dir", root / "out", *CPU, *start)
    with pytest.raises(kind, match=words):
        raise done.exception
    assert not isinstance(done.exception, DataError)


@pytest.mark.parametrize(
    ("start", "is_refused"),
    [
        (["--model", "nowhere"], True),
        (["--model=nowhere"], True),
        ([], False),  # a flag that there is not comes first
        (["--model", "scratch"], False),
        (["--backbone-weights", "none"], False),
        (["--mod", "nowhere"], False),  # the parser takes it
        (["--model", "nowhere", "--help"], False),
        (["--model", "nowhere", "--backbone", "resnet18"], False),  # of which it is said that they are two
        (["--model"], False),
    ],
)
def test_a_checkpoint_of_nothing_is_refused_before_seconds_of_imports(start, is_refused, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    if is_refused:
        with pytest.raises(HubError, match="nowhere"):
            refuse_no_start(["--data", "digits", *start])
    else:
        refuse_no_start(["--data", "digits", *start])


def test_the_help_is_short_and_has_what_there_is():
    done = run("--help")
    lines = done.output.splitlines()
    assert done.exit_code == 0 and len(lines) <= 60 and max(map(len, lines)) <= 110
    known = {option for action in parser()._actions for option in action.option_strings}
    needed = {f"--{name}" for group in NEEDED.values() for name in group}
    assert needed <= known and all(any(f"{flag} " in line for line in lines) for flag in needed)
    everything = run("--help-all").output
    assert all(option in everything for option in known if option.startswith("--"))
    assert {target.split()[0] for target in OTHER_NAMES.values() if target.startswith("--")} <= known


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--max_stepz", "did you mean --max_steps?"),
        ("--epochs", "here it is --num_train_epochs"),
        ("--batch-size", "here it is --per_device_train_batch_size"),
        ("--lr", "here it is --learning_rate"),
        ("--device", "here it is --use_cpu"),
        ("--imgsz=256", "here it is --shortest_edge"),
    ],
)
def test_a_flag_that_there_is_not_is_answered_with_ours(flag, meant):
    done = run("--data", "x", flag, "1")
    assert done.exit_code == 2 and meant in done.output and len(done.output.splitlines()) == 1


@pytest.mark.parametrize("flag", ["--val-fraction", "--val_fraction", "--validation_share"])
def test_a_part_for_validation_has_three_names(flag, root):
    assert parse(["--data", "x", "--use_cpu", flag, "0.25"])[1].validation_share == 0.25
    name = "train=train"
    checked = CliRunner().invoke(app, ["check", str(root / "data"), "--split", name, flag, "0.5"])
    assert "validation: 1 images" in checked.output, checked.output


def test_a_data_set_of_one_split_says_what_to_give(root):
    with pytest.raises(ValueError, match=re.escape("--validation_share 0.1")):
        raise run(*flags(root, "--model", root / "trained", "--split", "train=train")).exception


def test_what_the_check_says_is_of_the_size_of_the_run(root, capsys):
    command = flags(root, "--model", root / "trained", "--shortest_edge", 32, out="sizes")
    build(*parse([word for word in command if word != "--skip_check"]))
    said = capsys.readouterr().err
    assert "at a shortest side of 32 pixels" in said and "50% of the objects are smaller" in said


@pytest.mark.slow
def test_the_same_command_again_goes_on_and_another_does_not(root):
    """A run that was stopped after its first step, as by a kill; then one that is at its end."""
    start = ["--model", root / "trained", "--max_steps", 2, "--eval_strategy", "steps", "--eval_steps", 1]
    command = flags(root, *start, out="again")
    whole = run(*command)
    assert whole.exit_code == 0, whole.output
    noted = json.loads((root / "again" / "checkpoint-2" / "training_run.json").read_text())["command"]
    assert noted["max_steps"] == 2 and "output_dir" not in noted
    for path in (root / "again" / "checkpoint-2").iterdir():
        path.unlink()
    (root / "again" / "checkpoint-2").rmdir()
    done = run(*command, "--disable_tqdm", "true")  # what changes nothing may differ
    assert done.exit_code == 0 and "goes on from step 1." in done.output, done.output
    assert "2 steps of" in done.output and ", from step 1" in done.output
    done = run(*command)
    assert "goes on from step 2." in done.output and "nothing left to train" in done.output
    arguments, given = parse([*command, "--learning_rate", "1e-3"])[2], parser()
    other = command_of(given.given([*command, "--learning_rate", "1e-3"]))
    assert other["learning_rate"] == 1e-3 and resume_choice(arguments, other) is None


def test_a_checkpoint_of_this_command_is_gone_on_with(tmp_path, capsys):
    checkpoint = tmp_path / "checkpoint-3"
    checkpoint.mkdir()
    for name, content in (("checkpoint_files", {}), ("training_run", {"id": "a", "command": {"max_steps": 9}})):
        (checkpoint / f"{name}.json").write_text(json.dumps(content))
    args = parse(["--data", "x", "--output_dir", str(tmp_path), "--use_cpu"])[2]
    assert resume_choice(args, {"max_steps": 9}) == str(checkpoint)
    assert "goes on from step 3. (--resume_from_checkpoint false starts anew.)" in capsys.readouterr().err
    assert resume_choice(args, {"max_steps": 9, "seed": 1}) is None
    assert "of another command (--seed was None, is 1): a new run starts" in capsys.readouterr().err
    args.resume_from_checkpoint = "false"
    assert resume_choice(args, {"max_steps": 9}) is None


@pytest.mark.parametrize(
    ("flag", "choice"),
    [
        (None, None),
        ("true", True),
        ("True", True),
        ("auto", "auto"),
        ("out/checkpoint-3", "out/checkpoint-3"),
        ("false", None),
    ],
)
def test_what_is_said_of_going_on_is_done(flag, choice, tmp_path):
    given = [] if flag is None else ["--resume_from_checkpoint", flag]
    args = parse(["--data", "x", "--output_dir", str(tmp_path), "--use_cpu", *given])[2]
    assert resume_choice(args, {}) == choice


def test_without_a_name_the_detector_of_coco_is_meant():
    assert DataArguments(data="x").checkpoint == "facebook/detr-resnet-50"
    assert DataArguments(data="x", model="scratch").checkpoint is None
