"""DETR for other runtimes: ONNX Runtime, OpenVINO, torch.export, ExecuTorch.

`export_model` writes an artefact and checks it against the model; `load_runtime` runs one, in NumPy, and for ONNX and
OpenVINO without importing torch. `Detector.from_pretrained` takes an artefact's path as it takes a checkpoint's.
"""

from typing import TYPE_CHECKING

from ..lazy_names import lazy_names

if TYPE_CHECKING:
    from .artefact import ArtefactInfo as ArtefactInfo, find_artefact as find_artefact
    from .exporting import export_model as export_model
    from .parity import Parity as Parity, check_parity as check_parity
    from .runtimes import load_runtime as load_runtime

__getattr__, __dir__ = lazy_names(__name__)
