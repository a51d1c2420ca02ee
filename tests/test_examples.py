"""The fine-tuning example and its peer run from data to report, on drawn pictures and a backbone of a few layers."""

import argparse
import ast
import importlib
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from detr_hf import DETRForObjectDetection, DETRImageProcessor

ROOT = Path(__file__).parent.parent
NAMES = ("square", "bar")
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LONG = {"finetune", "panoptic", "train_digits"}  # train for long, or on data that is not here
QUICK = {
    "quickstart": "--scenes 2",
    "attention": "--scenes 1",
    "export_and_run": "--scenes 2",
    "from_transformers": "--steps 1 --scenes 2",
    "custom_backbone": "--steps 2 --batch 2 --side 64 --scenes 2",
    "lora": "--steps 1 --scenes 2",
}
OTHERS = {"lora": "peft", "predict_ray": "ray"}  # what they need that no extra brings


def load(path: str):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A COCO folder: six training and three validation pictures with one or two objects."""
    root = tmp_path_factory.mktemp("shapes")
    for split, count in (("train", 6), ("val", 3)):
        (root / split).mkdir()
        images, annotations = [], []
        for number in range(1, count + 1):
            pixels = np.full((48, 64, 3), 40, np.uint8)
            for label in range(1 + number % 2):
                x, y, width, height = 4 + 4 * number, 4 + 22 * label, 20, 16 - 6 * label
                pixels[y : y + height, x : x + width] = (200, 90 * label, 30)
                box = {"bbox": [x, y, width, height], "area": width * height, "iscrowd": 0}
                annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": label, **box})
            name = f"{split}{number}.png"
            Image.fromarray(pixels).save(root / split / name)
            images.append({"id": number, "file_name": name, "width": 64, "height": 48})
        categories = [{"id": label, "name": name} for label, name in enumerate(NAMES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"annotations_{split}.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def backbone_file(tmp_path_factory):
    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet", num_classes=0)
    with torch.no_grad():
        for module in model.modules():  # a backbone that was trained has statistics
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_var.uniform_(0.5, 2)
                module.running_mean.normal_(0, 0.5)
    path = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    save_file(model.state_dict(), path)
    return path


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_import_public_names_alone(path):
    """What a user would copy: `from detr_hf import ...`, or from a room that declares what it exports."""
    for node in ast.walk(ast.parse(path.read_text())):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module] if isinstance(node, ast.ImportFrom) else []
        for name in (name for name in modules if name.partition(".")[0] == "detr_hf"):
            public = getattr(importlib.import_module(name), "__all__", ())
            assert name.count(".") <= 1 and hasattr(importlib.import_module(name), "__path__"), f"{name} is no face"
            assert public, f"{name} declares no public names"
            if isinstance(node, ast.ImportFrom):
                assert {alias.name for alias in node.names} <= set(public), f"line {node.lineno}"


def test_every_example_says_its_command_and_has_its_place():
    table = (ROOT / "examples" / "README.md").read_text()
    for path in EXAMPLES:
        about = ast.get_docstring(ast.parse(path.read_text()))
        assert re.search(rf"^ *(python|torchrun .*)? ?examples/{path.name}", about, re.MULTILINE), path.name
        assert re.search(r"\b(AP|PQ|loss)\b.*\d|\d digits|card", about), f"{path.name} says what it reached"
        assert re.search(r"\b(seconds?|minutes?|hours?)\b", about), f"{path.name} says what it cost"
        assert f"]({path.name})" in table
    made = re.search(r"^EXAMPLES = (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert set(made) == {path.stem for path in EXAMPLES} - LONG == QUICK.keys() | {"predict_ray"}


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_the_example_runs_to_its_end(name, tmp_path):
    if name in OTHERS:
        pytest.importorskip(OTHERS[name], reason=f"pip install {OTHERS[name]}")
    command = [sys.executable, ROOT / "examples" / f"{name}.py", *QUICK[name].split(), "--output", tmp_path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=280)
    assert done.returncode == 0, done.stderr
    assert re.search(r"(AP|objects).* \d", done.stdout) and any(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ray_killed_half_way_ends_with_every_picture_once(tmp_path):
    pytest.importorskip("ray", reason='pip install "ray[data]"')
    from detr_hf.data import DigitScenes

    (tmp_path / "photos").mkdir()
    for number in range(60):
        DigitScenes("validation", 60)[number]["image"].save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "photos" / "broken.png").write_bytes(b"no picture")
    command = [sys.executable, ROOT / "examples" / "predict_ray.py", tmp_path / "photos", "--output", tmp_path / "out"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment["RAY_raylet_start_wait_time_s"] = "600"  # a busy machine takes longer than Ray waits
    given = {"env": environment, "cwd": tmp_path, "start_new_session": True, "text": True}

    def committed() -> set[str]:
        files = (tmp_path / "out" / "checkpoint").glob("*.parquet")
        return {file.stem for file in files if ".pending" not in file.name}

    def lines(files) -> list[str]:
        return [json.loads(line)["path"] for file in files for line in file.read_text().splitlines()]

    found = tmp_path / "out" / "found"
    killed = subprocess.Popen([*map(str, command), "--batch", "4"], **given, stdout=subprocess.DEVNULL)
    while len(committed()) < 5:
        assert killed.poll() is None, "it ended before it could be killed"
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    before = committed()
    kept = {file: file.read_bytes() for file in found.iterdir() if file.stem in before}
    assert len(kept) == len(before) and 20 <= len(lines(kept)) < 61
    shutil.copy(tmp_path / "photos" / "0.png", tmp_path / "photos" / "late.png")
    done = subprocess.run([*map(str, command), "--batch", "4"], **given, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert "62 of 62 pictures in 62 lines" in done.stdout and "1 could not be read" in done.stdout
    assert len(set(lines(found.iterdir()))) == len(lines(found.iterdir())) == 62
    assert all(file.read_bytes() == content for file, content in kept.items())
    assert int(re.search(r"(\d+) were done before", done.stdout)[1]) >= len(lines(kept))


def small_flags(data, backbone_file, folder):
    flags = ["--data", data, "--backbone", "test_efficientnet", "--backbone_weights", backbone_file]
    return [str(flag) for flag in (*flags, "--layers", 1, "--max-steps", 2, "--output_dir", folder / "model")]


def test_finetune_writes_model_numbers_and_picture(data, backbone_file, tmp_path, monkeypatch):
    finetune = load("examples/finetune.py")
    flags = ["--report", tmp_path / "report", "--shortest_edge", 48, "--dataloader_num_workers", 0, "--use_cpu"]
    flags += ["--dataloader_persistent_workers", "false", "--options", "fast_ref", "--shown", 2]
    flags = small_flags(data, backbone_file, tmp_path) + [str(flag) for flag in flags]
    monkeypatch.setattr(sys, "argv", ["finetune.py", *flags])
    finetune.main()
    numbers = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert 0 <= numbers["AP"] <= 1 and numbers["steps"] == 2 and numbers["num_images"] == 3
    assert set(numbers["per_class"]) == set(NAMES)
    table = (tmp_path / "report" / "metrics.txt").read_text()
    assert all(name in table for name in NAMES)
    assert Image.open(tmp_path / "report" / "comparison.png").width > 600
    model = DETRForObjectDetection.from_pretrained(tmp_path / "model")
    assert model.config.reference_points and model.config.num_queries == 25
    assert model.config.id2label == dict(enumerate(NAMES))
    processor = DETRImageProcessor.from_pretrained(tmp_path / "model")
    assert list(processor.image_mean) == [0.5] * 3 and processor.size["shortest_edge"] == 48


LAUNCHERS = {
    "torchrun": "torch.distributed.run --nproc-per-node 2",
    "accelerate": "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no "
    "--dynamo_backend no",
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_finetune_in_two_processes(launcher, data, backbone_file, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = ["--master-port" if launcher == "torchrun" else "--main_process_port", str(probe.getsockname()[1])]
    flags = ["--shortest_edge", "48", "--dataloader_num_workers", "0", "--use_cpu", "--per_device_train_batch_size"]
    flags += ["2", "--dataloader_persistent_workers", "false"]
    command = [sys.executable, "-m", *LAUNCHERS[launcher].split(), *port, str(ROOT / "examples" / "finetune.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*command, *small_flags(data, backbone_file, tmp_path), *flags],
        check=True,
        env=environment,
        timeout=280,
        cwd=tmp_path,
    )
    numbers = json.loads((tmp_path / "model" / "metrics.json").read_text())
    assert numbers["processes"] == 2 and numbers["steps"] == 2 and numbers["num_images"] == 3
    log = json.loads((tmp_path / "model" / "log.json").read_text())
    assert log[-1]["epoch"] == 1.0  # two processes with two pictures each: the second step has the last two of six


def test_finetune_starts_from_a_checkpoint(data, tmp_path, monkeypatch):
    from .training.scenes import micro_model

    finetune = load("examples/finetune.py")
    micro_model(num_queries=9).save_pretrained(tmp_path / "start")
    DETRImageProcessor(image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path / "start")
    flags = ["--data", data, "--model", tmp_path / "start", "--output_dir", tmp_path / "out", "--shortest_edge", 48]
    monkeypatch.setattr(sys, "argv", ["finetune.py", *map(str, flags)])
    start, args = finetune.parse()
    assert "learning_rate" in args.unset and args.max_steps == 4000  # the recipe's rates; the example's steps
    loaded = finetune.load_detection_dataset(data)
    model = finetune.build_model(start, loaded)
    assert model.config.num_queries == 9 and model.config.id2label == loaded.id2label
    processor = finetune.build_processor(start)
    assert list(processor.image_mean) == [0.1, 0.2, 0.3] and processor.size["shortest_edge"] == 48


@pytest.mark.slow
def test_panoptic_learns_in_two_stages_and_reports(tmp_path, monkeypatch):
    from .training.scenes import micro_model

    panoptic = load("examples/panoptic.py")
    digits = {label: str(label) for label in range(10)}
    micro_model(id2label=digits, num_queries=12).save_pretrained(tmp_path / "start")
    DETRImageProcessor(size={"shortest_edge": 64, "longest_edge": 64}).save_pretrained(tmp_path / "start")
    common = "--use_cpu --max_steps 1 --eval_steps 1 --save_steps 1 --per_device_train_batch_size 2 --scenes 2"
    common += " --scenes_for_curves 1 --dataloader_num_workers 0 --dataloader_persistent_workers false"
    numbers = {}
    for stage, model, flags in (("alone", "start", ["--freeze_detector"]), ("joint", "alone", ["--card", "card.md"])):
        folders = ["--model", str(tmp_path / model), "--output_dir", str(tmp_path / stage)]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["panoptic.py", *common.split(), *folders, *flags])
        panoptic.main()
        numbers[stage] = json.loads((tmp_path / stage / "metrics.json").read_text())
        assert Image.open(tmp_path / stage / "scenes.png").width > 500
        assert any("eval_mask_ap" in entry for entry in json.loads((tmp_path / stage / "curves.json").read_text()))
    assert list(numbers["alone"]["masks"]["per_class"]) == list(digits.values())
    before, after = (
        DETRForObjectDetection.from_pretrained(tmp_path / name).state_dict() for name in ("start", "alone")
    )
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert numbers["joint"]["panoptic"]["num_images"] == 2 and {"temple", "flower"} < set(
        numbers["joint"]["per_class"]
    )
    assert DETRImageProcessor.from_pretrained(tmp_path / "joint").label_ids_to_fuse == [10, 11]
    card = (tmp_path / "card.md").read_text()
    assert "| stuff | one segment of each in a picture: temple, flower |" in card and "1 steps of 2 scenes" in card


def test_the_peer_trains_and_is_measured(data, backbone_file, tmp_path, monkeypatch):
    peer = load("benchmarks/finetune_transformers.py")
    flags = [*small_flags(data, backbone_file, tmp_path), "--square", "64", "--workers", "0", "--num_queries", "10"]
    monkeypatch.setattr(sys, "argv", ["finetune_transformers.py", *flags])
    peer.main()
    numbers = json.loads((tmp_path / "model" / "metrics.json").read_text())
    assert 0 <= numbers["AP"] <= 1 and numbers["steps"] == 2 and numbers["num_images"] == 3


def test_the_peers_backbone_is_timms_only_when_repaired(backbone_file):
    """transformers' frozen batch norms lose the activation that timm's norms of EfficientNets hold."""
    peer = load("benchmarks/finetune_transformers.py")
    pixels = torch.randn(1, 3, 64, 64)
    reference = timm.create_model("test_efficientnet", features_only=True, out_indices=(-1,), output_stride=16)
    weights = peer.load_file(backbone_file)
    reference.load_state_dict({name: weights[name] for name in reference.state_dict()})
    expected = reference.eval()(pixels)[-1]
    found = {}
    for as_shipped in (False, True):
        options = {"recipe": "guide", "layers": 1, "num_queries": 5, "seed": 0, "as_shipped": as_shipped}
        options |= {"backbone": "test_efficientnet", "backbone_weights": str(backbone_file)}
        model = peer.build_model(argparse.Namespace(**options), {0: "square"}).eval()
        with torch.no_grad():
            found[as_shipped] = model.model.backbone(pixels, torch.ones(1, 64, 64))[-1][0]
    torch.testing.assert_close(found[False], expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found[True], expected, rtol=0.1)
