"""The artefact is made once for all processes of a test run: tracing takes seconds however small the model is."""

from pathlib import Path

import pytest
from filelock import FileLock

from detr_hf.export import export_model

from .artefacts import small_model, small_processor, small_segmenter


@pytest.fixture(scope="session")
def exported_model():
    """The model behind the artefacts."""
    return small_model()


@pytest.fixture(scope="session")
def segmenter():
    """A model with masks, also behind an artefact."""
    return small_segmenter()


@pytest.fixture(scope="session")
def onnx_artefact(exported_model, tmp_path_factory, worker_id) -> Path:
    """A dynamic float32 ONNX file of the model."""
    return made_once("small", exported_model, tmp_path_factory, worker_id)


@pytest.fixture(scope="session")
def onnx_artefact_with_masks(segmenter, tmp_path_factory, worker_id) -> Path:
    """The same of the model with masks, with those of the three best queries."""
    return made_once("masks", segmenter, tmp_path_factory, worker_id, mask_queries=3)


def made_once(name: str, model, tmp_path_factory, worker_id: str, **options) -> Path:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / f"onnx-{name}"
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.onnx"
    with FileLock(folder.with_suffix(".lock")):
        if not path.exists():
            _, parity = export_model(model, small_processor(label_ids_to_fuse=[1]), path, **options)
            assert parity.cases == 24
    return path
