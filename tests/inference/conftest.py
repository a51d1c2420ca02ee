"""A `Detector` on an artefact is tested on the one that the tests of the export make."""

from ..export.conftest import (
    exported_model as exported_model,
    onnx_artefact as onnx_artefact,
    onnx_artefact_with_masks as onnx_artefact_with_masks,
    segmenter as segmenter,
)
