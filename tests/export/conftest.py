"""The artefact is made once for all processes of a test run: tracing takes seconds however small the model is."""

from pathlib import Path

import pytest
from filelock import FileLock

from detr_hf.export import export_model

from .artefacts import small_model, small_processor


@pytest.fixture(scope="session")
def exported_model():
    """The model behind the artefacts."""
    return small_model()


@pytest.fixture(scope="session")
def onnx_artefact(exported_model, tmp_path_factory, worker_id) -> Path:
    """A dynamic float32 ONNX file of it."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "onnx"
    folder.mkdir(exist_ok=True)
    path = folder / "small.onnx"
    with FileLock(folder.with_suffix(".lock")):
        if not path.exists():
            _, parity = export_model(exported_model, small_processor(), path)
            assert parity.cases == 24
    return path
