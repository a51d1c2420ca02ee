"""transformers' own classes stop at a folder that save_pretrained wrote, with a sentence that names this package."""

import json
import sys

import pytest
import transformers

from detr_hf import DETRConfig, DETRImageProcessor, DETRImageProcessorPil
from tests.checkpoints.foreign import narrow_model
from tests.conftest import tiny_config

MODELS = [
    "DetrForObjectDetection",
    "DetrForSegmentation",
    "ConditionalDetrForObjectDetection",
    "DeformableDetrForObjectDetection",
    "TableTransformerForObjectDetection",
    "DabDetrForObjectDetection",
    "YolosForObjectDetection",
    "RTDetrForObjectDetection",
    "RTDetrV2ForObjectDetection",
    "DFineForObjectDetection",
    "OwlViTForObjectDetection",
    "MaskFormerForInstanceSegmentation",
    "ViTModel",
]
PROCESSORS = ["DetrImageProcessor", "ConditionalDetrImageProcessor", "RTDetrImageProcessor", "ViTImageProcessor"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved")
    narrow_model().save_pretrained(path)
    DETRImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(path)
    return path


@pytest.mark.parametrize("name", MODELS + PROCESSORS)
def test_a_class_of_transformers_stops_with_the_package_that_is_needed(folder, name):
    with pytest.raises(Exception, match=r"but of detr_hf: pip install detr_hf and import it"):
        getattr(transformers, name).from_pretrained(folder)


@pytest.mark.parametrize("name", ["AutoConfig", "AutoModel", "AutoModelForObjectDetection", "pipeline"])
def test_without_the_package_auto_classes_name_its_type(folder, monkeypatch, name):
    mapping = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    monkeypatch.setattr(mapping, "_extra_content", {})
    monkeypatch.setitem(sys.modules, "detr_hf", None)
    with pytest.raises(ValueError, match="model type `detr_hf`"):
        if name == "pipeline":
            transformers.pipeline("object-detection", str(folder))
        else:
            getattr(transformers, name).from_pretrained(folder)


def test_here_the_fields_that_stop_them_mean_nothing(folder, tmp_path):
    for file, field in (("config.json", "init_std"), ("preprocessor_config.json", "crop_size")):
        assert "detr_hf" in json.loads((folder / file).read_text())[field]
    config = DETRConfig.from_pretrained(folder)
    assert not hasattr(config, "init_std") and config.to_dict() == narrow_model().config.to_dict() | {
        "architectures": ["DETRForObjectDetection"],
        "dtype": "float32",
        "transformers_version": transformers.__version__,
    }
    for cls in (DETRImageProcessor, DETRImageProcessorPil):
        assert cls.from_pretrained(folder).crop_size is None
    assert DETRConfig.from_pretrained(folder, attn_implementation="eager")._attn_implementation == "eager"
    tiny_config().save_pretrained(tmp_path)  # of a configuration alone as well
    with pytest.raises(Exception, match="but of detr_hf"):
        transformers.DetrConfig.from_pretrained(tmp_path)
