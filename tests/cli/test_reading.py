"""One set of reading options for every verb that reads data: what they do, and that messages name them."""

import ast
import dataclasses
import inspect
import json
import logging
import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from detr_hf.cli.flags import with_nearest
from detr_hf.cli.main import app
from detr_hf.cli.reading import FLAG_OF, PYTHON_NAMES, Reading, class_names, in_flags, speaking_of_flags
from detr_hf.cli.train import DataArguments, parse
from detr_hf.data import load_detection_dataset
from detr_hf.data.read_options import ReadOptions
from detr_hf.training.arguments import DETRTrainingArguments

from ..bad_inputs.kinds import coco, edit, yolo

PACKAGE = Path(inspect.getfile(load_detection_dataset)).parents[1]
VERBS = ("check", "eval", "push")
# Arguments that a message names and that no verb has: what they are for is not reached from the command line.
PYTHON_ONLY = {"streaming", "dilation"}


def flags_of(verb: str) -> set[str]:
    command = typer.main.get_command(app).commands[verb]
    return {option for parameter in command.params for option in parameter.opts}


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, f"{result.output} {result.exception}"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_every_option(verb: str):
    assert {f"--{one.name}" for one in dataclasses.fields(Reading)} <= flags_of(verb)


def test_python_and_the_command_line_have_the_same_options():
    flags = {PYTHON_NAMES.get(one.name, one.name) for one in dataclasses.fields(Reading)}
    assert flags == {one.name for one in dataclasses.fields(ReadOptions)} - {"streaming", "load_options"}
    assert flags <= set(inspect.signature(load_detection_dataset).parameters)
    assert set(Reading().options()) == flags


def advised_arguments() -> set[str]:
    """Arguments that the messages of loading and checking tell to give: `name=` in a text."""
    found = set()
    for path in (PACKAGE / "data").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                found |= set(ARGUMENT.findall(node.value))
    return found


ARGUMENT = re.compile(r"(?<![\w.])([a-z_0-9]+)=(?![=\s])")
# Of `DetectionData.__repr__`, of Label Studio's addresses, and of Albumentations.
NOT_ADVICE = {"classes", "d", "bbox_params", "label_fields"}


def test_every_argument_that_a_message_names_is_a_flag():
    advised = advised_arguments() - PYTHON_ONLY
    assert {"image_root", "box_format", "on_fault", "id2label", "validation_share"} <= advised
    of_training = {one.name for kind in (DETRTrainingArguments, DataArguments) for one in dataclasses.fields(kind)}
    assert advised - NOT_ADVICE <= set(FLAG_OF) | of_training, "add an option to Reading, or the name to PYTHON_ONLY"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pass box_format='xyxy'; or", "pass --box_format xyxy; or"),
        ("Pass image_root=, the folder", "Pass --image_root, the folder"),
        ("Pass image_root=.", "Pass --image_root."),
        ("pass id2label={0: 'name', ...}.", "pass --classes 0=name."),
        ("Pass id2label={id: name}.", "Pass --classes id=name."),
        ("as in load_detection_dataset(..., splits={'train': 'trainval'}).", "as in --split train=trainval."),
        ("read the others alone: splits=['a', 'b']", "read the others alone: --split a --split b"),
        ("validation_share=0.1 of 3 pictures", "--validation_share 0.1 of 3 pictures"),
        ("format= is 'x'; there are", "--format is 'x'; there are"),
        ("Name one: split=...", "Name one: --split"),
        ("streaming=True is for", "streaming=True is for"),
    ],
)
def test_messages_name_flags(text: str, said: str):
    assert in_flags(text) == said


def test_the_log_names_flags_and_is_as_before_afterwards(capsys):
    logger = logging.getLogger("detr_hf.data.here")
    before = logger.getEffectiveLevel()
    with pytest.raises(ValueError, match="--on_fault drop"), speaking_of_flags():
        logger.warning("pass image_root=, the folder")
        logger.info("3 of 10 pictures")
        raise ValueError("pass on_fault='drop'")
    said = capsys.readouterr().err
    assert "pass --image_root, the folder" in said and "3 of 10 pictures" in said
    assert logger.getEffectiveLevel() == before and not logging.getLogger("detr_hf").handlers


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (None, None),
        (["cat,dog"], ["cat", "dog"]),
        (["cat", "dog"], ["cat", "dog"]),
        (["3=cat,5=dog"], {3: "cat", 5: "dog"}),
        (["3=cat", "x=dog"], {3: "cat", "x": "dog"}),
    ],
)
def test_class_names(words, names):
    assert class_names(words) == names


def test_class_names_of_files(tmp_path):
    (tmp_path / "names.txt").write_bytes(b"\xef\xbb\xbfcat\r\n\r\nfire truck\r\n")
    (tmp_path / "names.json").write_text(json.dumps({"3": "cat"}))
    assert class_names([str(tmp_path / "names.txt")]) == ["cat", "fire truck"]
    assert class_names([str(tmp_path / "names.json")]) == {"3": "cat"}
    with pytest.raises(typer.BadParameter, match="either each name"):
        class_names(["3=cat", "dog"])


def test_check_takes_what_its_message_asks_for(tmp_path):
    corners = [10, 10, 90, 60]
    edit(
        coco(tmp_path, names=("a.png", "b.png")),
        lambda content: [a.update(bbox=corners) for a in content["annotations"]],
    )
    code, said = run("check", tmp_path)
    assert code == 1 and "--box_format xyxy" in said and "box_format=" not in said
    assert run("check", tmp_path, "--box_format", "xyxy")[0] == 0
    assert run("check", tmp_path, "--box-format=xyxy")[0] == 0


def test_check_drops_and_shares(tmp_path):
    path = coco(tmp_path, names=[f"{number}.png" for number in range(10)])
    edit(path, lambda content: content["annotations"][0].update(bbox=[1, 1, -5, 5]))
    assert run("check", tmp_path)[0] == 1
    code, said = run("check", tmp_path, "--on_fault", "drop", "--validation_share", "0.2")
    assert code == 0 and "box-negative (1)" in said and "left out: the object" in said
    assert "2 of 10 pictures of split 'train' are set aside" in said and "validation: 2 images" in said


NEW = ("--model", "scratch", "--backbone_weights", "none")


def test_training_names_the_split_that_is_there(tmp_path):
    coco(tmp_path, "default")
    with pytest.raises(ValueError, match="--split train=default"):
        CliRunner().invoke(app, ["train", "--data", str(tmp_path), "--output_dir", "x", *NEW], catch_exceptions=False)


def test_image_root_by_split(tmp_path):
    for split, folder in (("train", "x/one"), ("val", "y/two")):
        coco(tmp_path / "data", split, folder=f"../{folder}")
    code, said = run("check", tmp_path / "data")
    assert code == 1 and "Pass --image_root" in said
    roots = ["--image_root", f"train={tmp_path / 'x/one'}", "--image_root", f"val={tmp_path / 'y/two'}"]
    code, said = run("check", tmp_path / "data", *roots)
    assert code == 0 and "train: 2 images" in said and "val: 2 images" in said
    code, said = run("check", tmp_path / "data", "--image_root", "vel=/x")
    assert code == 1 and "--image_root is given for 'vel'" in said


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        (["check", "x", "--box_formt", "xyxy"], "--box_format"),
        (["check", "x", "--id2label", "3=cat"], "--classes"),
        (["check", "x", "--data_format", "coco"], "--format"),
        (["eval", "m", "x", "--treshold", "0.5"], "--threshold"),
        (["predict", "a.jpg", "--treshold", "0.5"], "--threshold"),
        (["push", "m", "r", "--splits", "val"], "--split"),
        (["push", "m", "r", "--to", "detrhf"], "detr_hf"),
        (["convert", "m", "r", "--too", "detr_hf"], "--to"),
        (["chek", "x"], "check"),
    ],
)
def test_a_wrong_word_is_answered_with_the_nearest(arguments, nearest):
    code, said = run(*arguments)
    assert code == 2 and re.search(rf"(Did you mean|\(Possible).*{re.escape(nearest)}", " ".join(said.split())), said


@pytest.mark.parametrize(
    ("flags", "nearest"),
    [
        (["--dta", "x", "--output_dir", "y"], "--data"),
        (["--data", "x", "--output_dir", "y", "--lerning_rate", "1"], "--learning_rate"),
        (["--data", "x", "--output_dir", "y", "--val_share=0.1"], "--validation_share"),
        (["--data", "x", "--output_dir", "y", "--id2label", "a"], "--classes"),
        (["--data", "x", "--output_dir", "y", "--lr_scheduler_type", "cosin"], "cosine"),
    ],
)
def test_a_wrong_flag_of_train_is_answered_with_the_nearest(flags, nearest, capsys):
    with pytest.raises((SystemExit, ValueError)) as left:
        parse(flags)
    assert re.search(rf"did you mean {nearest}\?", capsys.readouterr().err + str(left.value), re.IGNORECASE)


@pytest.mark.parametrize(
    ("flag", "value", "nearest"),
    [
        ("format", "ylo", "yolo"),
        ("box_format", "xyxi", "xyxy"),
        ("task", "detect", "detection"),
        ("on_fault", "dropp", "drop"),
    ],
)
def test_a_wrong_value_is_answered_with_the_nearest(flag, value, nearest, tmp_path):
    yolo(tmp_path)
    code, said = run("check", tmp_path, f"--{flag}", value)
    assert code == 1 and f"--{flag} is '{value}'" in said and f"Did you mean {nearest}?" in said


@pytest.mark.parametrize(
    ("message", "nearest"),
    [
        ("recipe is 'fst'; choose 'auto', 'scratch' or 'fast'.", "fast"),
        ("augment is 'papr'; expected one of none, paper, strong, or a callable.", "paper"),
        ("There is no split 'vall'; there are 'train', 'val'. Name one: --split", "val"),
        ("'cosin' is not a valid SchedulerType, please select one of ['linear', 'cosine']", "cosine"),
        ("'detr' is not one of 'detr_hf', 'transformers'.", "detr_hf"),
        ("x is 'qqq'; there are a, b.", None),
        ("format is 'ylo'; there are yolo. Did you mean yolo?", None),
        ("/data; there is nothing", None),
    ],
)
def test_messages_end_with_the_nearest(message: str, nearest: str | None):
    assert with_nearest(message) == message + (f" Did you mean {nearest}?" if nearest else "")


def test_train_reads_its_flags_as_the_others_do():
    flags = ["--split", "train=default", "--split", "val", "--image-root", "r", "--classes", "cat", "dog", "--masks"]
    _, reading, _ = parse(["--data", "x", "--output_dir", "y", *flags])
    given = {
        "splits": {"train": "default", "val": "val"},
        "image_root": "r",
        "id2label": ["cat", "dog"],
        "masks": True,
    }
    assert reading.options() == Reading().options() | given
