"""The auto classes and the pipeline find this package, and its code travels with a checkpoint."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForObjectDetection, pipeline
from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES

import detr_hf
from detr_hf import (
    DETRConfig,
    DETRForObjectDetection,
    DETRForSegmentation,
    DETRImageProcessor,
    DETRImageProcessorPil,
    DETRModel,
)

from .conftest import tiny_config, tiny_model, tiny_segmenter

SIZE = {"shortest_edge": 64, "longest_edge": 96}


def pictures() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    shapes = [(60, 80), (100, 50), (64, 64)]
    return [Image.fromarray(generator.integers(0, 255, (*shape, 3), dtype=np.uint8)) for shape in shapes]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    tiny_model().save_pretrained(path)
    DETRImageProcessor(size=SIZE).save_pretrained(path)
    return path


def run_python(code: str, *arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code, *arguments], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "Traceback" not in result.stderr
    return result.stdout.strip()


def test_the_auto_classes_build_and_load_this_packages_classes(folder):
    assert isinstance(AutoConfig.from_pretrained(folder), DETRConfig)
    assert type(AutoModel.from_pretrained(folder)) is DETRModel
    assert type(AutoModelForObjectDetection.from_pretrained(folder)) is DETRForObjectDetection
    assert type(AutoModelForObjectDetection.from_config(DETRConfig(backbone="resnet18"))) is DETRForObjectDetection
    assert type(AutoImageProcessor.from_pretrained(folder)) is DETRImageProcessor
    assert type(AutoImageProcessor.from_pretrained(folder, backend="pil")) is DETRImageProcessorPil


MASKS = [f"AutoModelFor{kind}Segmentation" for kind in ("Image", "Instance", "Universal")]


def test_one_folder_gives_masks_boxes_and_the_base_and_a_detectors_folder_a_new_mask_head(tmp_path, folder):
    model = DETRForSegmentation(tiny_config(backbone="test_resnet"))
    model.save_pretrained(tmp_path)
    kinds = {**dict.fromkeys(MASKS, DETRForSegmentation), "AutoModelForObjectDetection": DETRForObjectDetection}
    for auto_class, kind in {**kinds, "AutoModel": DETRModel}.items():
        loaded = getattr(transformers, auto_class).from_pretrained(tmp_path)
        assert type(loaded) is kind and not loaded.mask_head_is_new
        assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    with_new_head = getattr(transformers, MASKS[0]).from_pretrained(folder)
    assert type(with_new_head) is DETRForSegmentation and with_new_head.mask_head_is_new


def test_importing_the_package_imports_neither_torch_nor_transformers():
    code = "import sys, detr_hf; print([m for m in ('torch', 'transformers', 'timm', 'scipy') if m in sys.modules])"
    assert run_python(code) == "[]"


def test_the_pipeline_batches_pictures_of_different_sizes(folder):
    detect = pipeline("object-detection", model=str(folder), threshold=0.0)
    one_by_one = detect(pictures())
    together = detect(pictures(), batch_size=3)
    assert [len(found) for found in together] == [7, 7, 7]
    for picture, (alone, batched) in zip(pictures(), zip(one_by_one, together, strict=True), strict=True):
        assert {found["label"] for found in alone} <= {"cat", "dog", "owl"}
        assert all(0 <= found["box"]["xmax"] <= picture.width for found in batched)
        scores = [[found["score"] for found in result] for result in (alone, batched)]
        assert np.allclose(*scores, atol=0.1)  # padding is seen by the backbone's convolutions, as in the original


def test_the_pipeline_is_silent_about_support(folder, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    pipe = pipeline("object-detection", model=str(folder))
    assert len(pipe(Image.new("RGB", (64, 64)), threshold=0.0)) == 7
    assert "not supported" not in caplog.text
    pipe.model.__class__ = type("Stranger", (DETRForObjectDetection,), {})
    pipe.check_model_type(MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES)
    assert "The model 'Stranger' is not supported" in caplog.text  # it would be said


def test_other_models_keep_the_stock_pipeline():
    from transformers.pipelines.object_detection import ObjectDetectionPipeline

    from detr_hf.inference.pipelines import DETRObjectDetectionPipeline

    assert issubclass(DETRObjectDetectionPipeline, ObjectDetectionPipeline)


WITHOUT_THE_PACKAGE = """
import sys
sys.modules["detr_hf"] = None  # importing it now fails, as where it is not installed
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForObjectDetection
folder, target = sys.argv[1:]
model = AutoModelForObjectDetection.from_pretrained(folder, trust_remote_code=True).eval()
base = AutoModel.from_pretrained(folder, trust_remote_code=True)
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
assert (type(base).__name__, type(config).__name__) == ("DETRModel", "DETRConfig")
for backend in ("torchvision", "pil"):
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True, backend=backend)
    batch = processor([Image.new("RGB", (40, 30), "red")], return_tensors="pt")
    with torch.no_grad():
        outputs = model(**batch)
    found = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=[(30, 40)])
    assert len(found[0]["scores"]) == 7
labels = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}]
assert model(**batch, labels=labels).loss.isfinite()
model.save_pretrained(target)
processor.save_pretrained(target)
total = sum(p.double().sum() for p in model.state_dict().values()).item()
print(type(model).__name__, type(processor).__name__, total)
"""


def test_the_code_travels_with_the_checkpoint_and_runs_where_the_package_is_absent(tmp_path, monkeypatch):
    classes = [(DETRConfig, "AutoConfig"), (DETRForObjectDetection, "AutoModelForObjectDetection")]
    for cls in (DETRConfig, DETRForObjectDetection, DETRImageProcessor, DETRImageProcessorPil):
        monkeypatch.setattr(cls, "_auto_class", None)  # registering one processor registers both
    for cls, auto in [*classes, (DETRImageProcessor, "AutoImageProcessor")]:
        cls.register_for_auto_class(auto)
    model = tiny_model()
    model.save_pretrained(tmp_path / "first")
    DETRImageProcessor(size=SIZE).save_pretrained(tmp_path / "first")
    total = sum(p.double().sum() for p in model.state_dict().values()).item()
    for source, target in (("first", "second"), ("second", "third")):  # what it re-saves travels on
        printed = run_python(WITHOUT_THE_PACKAGE, str(tmp_path / source), str(tmp_path / target))
        assert printed == f"DETRForObjectDetection DETRImageProcessorPil {total}"


MASKS_WITHOUT_THE_PACKAGE = """
import sys
sys.modules["detr_hf"] = None
import torch, transformers
from PIL import Image
from transformers import pipeline
folder, picture = sys.argv[1:]
loading = {"trust_remote_code": True}
segment = pipeline("image-segmentation", model=folder, **loading)
image = Image.open(picture)
for subtask in (None, "instance", "semantic"):
    options = {} if subtask == "semantic" else {"threshold": 0.3, "overlap_mask_area_threshold": 0.1}
    found = segment(image, subtask=subtask, **options)
    print([(one["label"], one["score"] and round(one["score"], 4), sum(one["mask"].histogram()[1:])) for one in found])
detect = pipeline("object-detection", model=folder, threshold=0.0, **loading)
print(type(segment.model).__name__, type(segment.model).__module__.partition(".")[0], type(detect.model).__name__)
for auto in ("Instance", "Universal"):
    model = getattr(transformers, f"AutoModelFor{auto}Segmentation").from_pretrained(folder, **loading)
    assert type(model) is type(segment.model)
segment.model.mask_head_is_new = True
try:
    segment(image)
except ValueError as error:
    print("mask head is new" in str(error))
"""


@pytest.mark.slow
def test_masks_come_by_the_code_in_the_folder_where_the_package_is_absent(tmp_path):
    """The three subtasks in a fresh process, with the numbers of this one."""
    from detr_hf.hub.staging import add_code

    model, picture = tiny_segmenter(), pictures()[0].resize((9, 9)).resize((80, 60))
    processor = DETRImageProcessor(size=SIZE, label_ids_to_fuse=[2])
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    add_code(tmp_path)
    picture.save(tmp_path / "picture.png")
    segment = pipeline("image-segmentation", model=model, image_processor=processor)
    *lines, kinds, refused = run_python(
        MASKS_WITHOUT_THE_PACKAGE, str(tmp_path), str(tmp_path / "picture.png")
    ).splitlines()
    for subtask, line in zip((None, "instance", "semantic"), lines, strict=True):
        options = {} if subtask == "semantic" else {"threshold": 0.3, "overlap_mask_area_threshold": 0.1}
        found = segment(picture, subtask=subtask, **options)
        assert line == str(
            [
                (one["label"], one["score"] and round(one["score"], 4), sum(one["mask"].histogram()[1:]))
                for one in found
            ]
        )
        assert found
    assert kinds == "DETRForSegmentation transformers_modules DETRForObjectDetection" and refused == "True"


TWICE = """
import sys
from transformers import AutoModelForObjectDetection
folder = sys.argv[1]
kinds = [
    type(AutoModelForObjectDetection.from_pretrained(folder, trust_remote_code=True, **more)).__module__
    for more in ({}, {}, {"id2label": {0: "a", 1: "b", 2: "c"}})
]
print(len(set(kinds)), kinds[0].partition(".")[0], "detr_hf" in sys.modules)
import detr_hf
packaged = type(detr_hf.DETRForObjectDetection.from_pretrained(folder)).__module__
again = type(AutoModelForObjectDetection.from_pretrained(folder, trust_remote_code=True)).__module__
print(packaged, again.partition(".")[0])
"""


@pytest.mark.slow
def test_the_same_call_gives_the_same_class(tmp_path):
    """Code that travelled stays itself where the package is installed, and does not import it by itself."""
    from detr_hf.hub.staging import add_code

    tiny_model().save_pretrained(tmp_path)
    DETRImageProcessor(size=SIZE).save_pretrained(tmp_path)
    add_code(tmp_path)
    first, after_import = run_python(TWICE, str(tmp_path)).splitlines()
    assert first == "1 transformers_modules False"
    assert after_import == "detr_hf.model.modeling_detr detr_hf"


def test_no_code_is_promised_where_none_is_written(tmp_path, folder):
    model = DETRForObjectDetection.from_pretrained(folder)
    model.config.auto_map = {"AutoModel": "modeling_detr.DETRModel"}  # as after loading a repository with code
    model.save_pretrained(tmp_path)
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())


def test_saving_onto_a_file_is_refused(tmp_path, model):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file"):
        model.save_pretrained(tmp_path / "file")


def test_every_public_name_can_be_imported():
    for name in detr_hf.__all__:
        assert getattr(detr_hf, name).__module__.startswith("detr_hf.")
    with pytest.raises(AttributeError, match="no attribute 'DetrConfig'"):
        detr_hf.DetrConfig  # noqa: B018


@torch.no_grad()
def test_from_pretrained_on_a_device_map_gives_the_same_outputs(folder):
    pixel_values = torch.randn(1, 3, 64, 64)
    expected = DETRForObjectDetection.from_pretrained(folder).eval()(pixel_values).logits
    mapped = DETRForObjectDetection.from_pretrained(folder, device_map={"": "cpu"}).eval()
    assert torch.equal(mapped(pixel_values).logits, expected)
