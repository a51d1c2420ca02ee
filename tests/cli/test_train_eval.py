"""`detr-hf train` and `detr-hf eval` from a folder of pictures to numbers."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from detr_hf import DETRForObjectDetection, DETRForSegmentation, DETRImageProcessor
from detr_hf.cli.main import app
from detr_hf.cli.train import build, parse
from detr_hf.evaluation import plotting
from detr_hf.training.trainer import DETRTrainer

from ..conftest import tiny_config, tiny_model
from ..data import layouts
from ..training.scenes import micro_model, write_coco

SOURCE_IDS = (3, 5, 9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Seven pictures in two splits, COCO category ids with gaps, and a tiny checkpoint."""
    root = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(1)
    (root / "data" / "annotations").mkdir(parents=True)
    categories = [
        {"id": identity, "name": name} for identity, name in zip(SOURCE_IDS, ("cat", "dog", "owl"), strict=True)
    ]
    for split, count in (("train", 4), ("val", 3)):
        (root / "data" / split).mkdir()
        images, annotations = [], []
        for index in range(count):
            name = f"{split}{index}.png"
            Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(root / "data" / split / name)
            images.append({"id": index + 1, "file_name": name, "width": 64, "height": 48})
            box = {"bbox": [4.0 + index, 6.0, 30.0, 25.0], "area": 750.0, "iscrowd": 0}
            annotations.append({"id": index + 1, "image_id": index + 1, "category_id": SOURCE_IDS[index % 3], **box})
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "data" / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    tiny_model(backbone="test_resnet", hidden_dim=16, dim_feedforward=32, dec_layers=2).save_pretrained(root / "start")
    DETRImageProcessor(size={"shortest_edge": 48, "longest_edge": 64}).save_pretrained(root / "start")
    return root


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_from_pictures_to_numbers(folder, monkeypatch):
    monkeypatch.setattr(DETRTrainer, "save_figures", lambda trainer: ["Curves: drawn."])
    flags = [
        "--max_steps",
        2,
        "--per_device_train_batch_size",
        2,
        "--use_cpu",
        "--report_to",
        "none",
        "--disable_tqdm",
        "true",
    ]
    trained = run(
        "train", "--data", folder / "data", "--model", folder / "start", "--output_dir", folder / "out", *flags
    )
    assert trained.exit_code == 0, trained.output
    assert "average precision, IoU 0.50 to 0.95" in trained.output and "  threshold\n" in trained.output
    assert "Curves: drawn." in trained.stderr
    assert json.loads((folder / "out" / "eval_results.json").read_text())["eval_ap"] >= 0
    assert DETRForObjectDetection.from_pretrained(folder / "out").config.id2label == {0: "cat", 1: "dog", 2: "owl"}

    measured = run(
        "eval", folder / "out", folder / "data", "--json", folder / "m.json", "--results", folder / "r.json"
    )
    assert measured.exit_code == 0, measured.output
    numbers = json.loads((folder / "m.json").read_text())
    assert numbers["AP"] == pytest.approx(
        json.loads((folder / "out" / "eval_results.json").read_text())["eval_ap"], abs=1e-6
    )
    assert set(numbers["per_class"]) == {"cat", "dog", "owl"}
    assert len(numbers["precision_recall"]["recall"]) == 101 and "missed" in numbers["mistakes"]["errors"]

    results = json.loads((folder / "r.json").read_text())
    assert {result["category_id"] for result in results} <= set(SOURCE_IDS)
    again = run("eval", folder / "r.json", folder / "data", "--json", folder / "again.json")
    assert again.exit_code == 0, again.output
    assert json.loads((folder / "again.json").read_text())["AP"] == pytest.approx(numbers["AP"], abs=1e-6)


def test_a_share_for_validation_is_the_same_for_train_and_eval(folder, tmp_path, monkeypatch):
    """Of the training split, read under another name."""
    monkeypatch.setattr(DETRTrainer, "save_figures", lambda trainer: pytest.fail("--figures false"))
    reading = ["--split", "train=train", "--validation_share", 0.5]
    flags = [
        "--max_steps",
        1,
        "--figures",
        "false",
        "--use_cpu",
        "--report_to",
        "none",
        "--disable_tqdm",
        "true",
        "--output_dir",
        tmp_path,
    ]
    trained = run("train", "--data", folder / "data", "--model", folder / "start", *flags, *reading)
    assert trained.exit_code == 0, trained.output
    assert "2 of 4 pictures of split 'train' are set aside as 'validation'" in trained.output
    measured = run("eval", tmp_path, folder / "data", *reading, "--json", tmp_path / "m.json")
    assert measured.exit_code == 0, measured.output
    ap = json.loads((tmp_path / "eval_results.json").read_text())["eval_ap"]
    assert json.loads((tmp_path / "m.json").read_text())["AP"] == pytest.approx(ap, abs=1e-6)
    with pytest.raises(ValueError, match=r"validation split 'val'.*--validation_share 0.5.*--split train"):
        run("eval", tmp_path, folder / "data", "--validation_share", 0.5)
    with pytest.raises(ValueError, match="Did you mean train"):
        run("eval", tmp_path, folder / "data", "--split", "trein")


def test_transformers_own_checkpoint_is_evaluated_alike(folder):
    DETRForObjectDetection.from_pretrained(folder / "start").to_transformers().save_pretrained(folder / "theirs")
    DETRImageProcessor.from_pretrained(folder / "start").save_pretrained(folder / "theirs")
    for name in ("start", "theirs"):
        assert run("eval", folder / name, folder / "data", "--json", folder / f"{name}.json").exit_code == 0
    ours, theirs = (json.loads((folder / f"{name}.json").read_text()) for name in ("start", "theirs"))
    assert ours["AR100"] == pytest.approx(theirs["AR100"], abs=1e-6)
    assert ours["mistakes"] == theirs["mistakes"]


def test_limit_and_image_size(folder, tmp_path):
    given = ("--limit", 2, "--image-size", 32, "--json", tmp_path / "m.json", "--results", tmp_path / "r.json")
    done = run("eval", folder / "start", folder / "data", *given)
    assert done.exit_code == 0, done.output
    assert "The first 2 of 3 pictures of split 'val' (--limit)." in done.stderr
    found = json.loads((tmp_path / "r.json").read_text())
    assert {one["image_id"] for one in found} == {1, 2}
    whole = tmp_path / "whole.json"
    assert run("eval", folder / "start", folder / "data", "--results", whole).exit_code == 0
    same_pictures = [one["score"] for one in json.loads(whole.read_text()) if one["image_id"] < 3]
    assert sorted(same_pictures) != sorted(one["score"] for one in found)  # 48 pixels, not 32
    refused = run("eval", whole, folder / "data", "--limit", 1)
    assert refused.exit_code == 2 and "--image-size, --limit: is for a model" in refused.output


def test_plots_of_results_lie_in_a_folder(folder, tmp_path, monkeypatch):
    for name in ("save_precision_recall", "save_confusion", "save_calibration", "save_report"):  # each half a second
        monkeypatch.setattr(plotting.plots, name, lambda *given: given[-1].write_bytes(b""))
    box = {"bbox": [4.0, 6.0, 30.0, 25.0], "score": 0.9}
    results = [{"image_id": n, "category_id": SOURCE_IDS[n != 1], **box} for n in (1, 2, 3)]
    (tmp_path / "r.json").write_text(json.dumps(results))
    done = run("eval", tmp_path / "r.json", folder / "data", "--plots", tmp_path / "new" / "plots", "--threshold", 0.3)
    assert done.exit_code == 0, done.output
    names = [f"{name}.png" for name in ("precision_recall", "confusion", "mistakes", "ap_by_class", "comparison")]
    files = {path.name for path in (tmp_path / "new" / "plots").iterdir()}
    assert files == {*names, "calibration.png", "report.pdf", "numbers.json"}
    assert "query_slots.png" in done.stderr and "Not drawn, as nobody knows" in done.stderr
    numbers = json.loads((tmp_path / "new" / "plots" / "numbers.json").read_text())
    assert numbers["mistakes"]["threshold"] == 0.3 and str(numbers["data"]) == str(folder / "data")
    for name in names[2:]:
        assert Image.open(tmp_path / "new" / "plots" / name).width > 400


@pytest.mark.parametrize("bad", ["a file", "no right to write", "the data", "matplotlib", "hotcoco"])
def test_plots_that_cannot_be_written_are_refused_before_anything_is_read(bad, folder, tmp_path, monkeypatch):
    words = {"a file": "is a file: name a folder", "the data": "is the folder of the data"}
    place = {"a file": tmp_path / "file", "the data": folder / "data", "no right to write": tmp_path / "file" / "x"}
    (tmp_path / "file").touch()
    monkeypatch.setattr("detr_hf.cli.eval.find_spec", lambda name: None if name == bad else True)
    error = ImportError if bad in ("matplotlib", "hotcoco") else (OSError, ValueError)
    with pytest.raises(
        error, match=words.get(bad, rf"cannot be written|--plots needs {bad}.*pip install 'detr-hf\[eval,viz\]'")
    ):
        run("eval", "nowhere", folder / "data", "--plots", place.get(bad, tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_the_shipped_model_on_the_shipped_scenes(tmp_path, monkeypatch):
    monkeypatch.setattr("detr_hf.data.readers.digit_data.SCENES", {"train": 2, "validation": 3})
    done = run("eval", "detr-digits", "digits", "--json", tmp_path / "m.json")
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "m.json").read_text())["AP50"] > 0.8


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"annotations": []}, "COCO annotation file"),
        ([{"image_id": 1}], "no category_id and no bbox and no score"),
        ([{"image_id": 77, "category_id": 3, "bbox": [1, 1, 2, 2], "score": 0.5}], "image_id 77"),
        ([{"image_id": 1, "category_id": 4, "bbox": [1, 1, 2, 2], "score": 0.5}], "category_id 4"),
    ],
)
def test_a_bad_results_file_is_named(content, message, folder):
    (folder / "bad.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        run("eval", folder / "bad.json", folder / "data")


@pytest.fixture(scope="module")
def panoptic(tmp_path_factory):
    """Panoptic data, and a checkpoint with masks of its classes."""
    root = layouts.write_panoptic(tmp_path_factory.mktemp("panoptic"))
    names = {0: "cat", 1: "dog", 2: "owl", 3: "ground"}
    small = {"backbone": "test_resnet", "hidden_dim": 16, "dim_feedforward": 32, "dec_layers": 2}
    model = DETRForSegmentation(tiny_config(**small, id2label=names))
    model.mask_head_is_new = False
    model.save_pretrained(root / "model")
    DETRImageProcessor(size={"shortest_edge": 48, "longest_edge": 64}).save_pretrained(root / "model")
    return root


def test_masks_and_panoptic_quality_are_printed_and_written(panoptic, tmp_path):
    data = (panoptic, "--split", "train", "--task", "panoptic")
    written = ("--json", tmp_path / "m.json", "--results", tmp_path / "r.json", "--panoptic_threshold", 0.1)
    measured = run("eval", panoptic / "model", *data, *written)
    assert measured.exit_code == 0, measured.output
    assert all(word in measured.output for word in ("masks", "panoptic", "things", "stuff", "ground"))
    numbers = json.loads((tmp_path / "m.json").read_text())
    assert numbers["masks"]["num_images"] == numbers["panoptic"]["num_images"] == 4
    assert set(numbers["panoptic"]["per_class"]) == {"cat", "dog", "owl", "ground"}
    again = run("eval", tmp_path / "r.json", *data, "--masks", "--json", tmp_path / "again.json")
    assert again.exit_code == 0, again.output
    assert json.loads((tmp_path / "again.json").read_text())["masks"] == numbers["masks"]
    annotations = layouts.read_json(panoptic / "panoptic_train.json")["annotations"]
    shutil.copytree(panoptic / "panoptic_train", tmp_path / "found")
    layouts.write_json(tmp_path / "found.json", annotations)
    perfect = run("eval", tmp_path / "found.json", *data[:3], "--json", tmp_path / "pq.json")
    assert perfect.exit_code == 0 and "1.000" in perfect.output, perfect.output
    assert json.loads((tmp_path / "pq.json").read_text())["panoptic"]["PQ"] == 1


def test_masks_that_are_not_there_are_refused(folder, panoptic, tmp_path):
    with pytest.raises(ValueError, match="has no mask head, and --masks asks for masks"):
        run("eval", folder / "start", panoptic, "--split", "train", "--masks")
    layouts.write_json(
        tmp_path / "boxes.json", [{"image_id": 100, "category_id": 3, "bbox": [1, 1, 2, 2], "score": 0.5}]
    )
    with pytest.raises(ValueError, match="holds boxes alone, and masks are asked for"):
        run("eval", tmp_path / "boxes.json", panoptic, "--split", "train", "--task", "panoptic", "--masks")


def test_a_model_of_other_classes_is_refused(folder, tmp_path):
    tiny_model(backbone="test_resnet", id2label={0: "car"}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no class in common"):
        run("eval", tmp_path, folder / "data")


@pytest.fixture(scope="module")
def with_masks(tmp_path_factory):
    """Data with masks, and a checkpoint of a detector and of a segmenter."""
    root = tmp_path_factory.mktemp("masks")
    write_coco(root / "instances", panoptic=False)
    write_coco(root / "panoptic", panoptic=True)
    for name in ("detector", "segmenter"):
        micro_model(masks=name == "segmenter").save_pretrained(root / name)
        DETRImageProcessor(size={"shortest_edge": 48, "longest_edge": 64}).save_pretrained(root / name)
    return root


@pytest.mark.parametrize(
    ("start", "data", "flags", "masks"),
    [
        ("detector", "instances", [], False),
        ("segmenter", "instances", [], True),
        ("segmenter", "panoptic", ["--task", "detection"], False),
        ("detector", "panoptic", ["--task", "panoptic"], True),
    ],
)
def test_the_task_decides_about_masks_and_without_one_the_checkpoint(start, data, flags, masks, with_masks, tmp_path):
    common = [
        "--data",
        str(with_masks / data),
        "--model",
        str(with_masks / start),
        "--output_dir",
        str(tmp_path),
        "--use_cpu",
    ]
    run = build(*parse([*common, "--skip_check", "--shortest_edge", "48", "--report_to", "none", *flags]))
    assert type(run.model) is (DETRForSegmentation if masks else DETRForObjectDetection)
    assert run.model.mask_head_is_new == (masks and start == "detector")
    assert ("masks" in run.train_dataset[0]["labels"]) == masks
    assert run.processing_class.label_ids_to_fuse == ([1] if masks and data == "panoptic" else [])


@pytest.mark.parametrize(
    ("flags", "value"), [([], None), (["--freeze_detector"], True), (["--freeze_detector", "false"], False)]
)
def test_a_switch_that_may_be_left_undecided_needs_no_value(flags, value):
    _, _, args = parse(["--data", "x", "--output_dir", "x", "--use_cpu", *flags])
    assert args.freeze_detector is value
