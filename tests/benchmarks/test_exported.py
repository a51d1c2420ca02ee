"""The measuring of exported models: AP of a perfect detector is 1, and what fails says so."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("hotcoco")

from benchmarks.exported import (
    OURS_PREDICTS,
    PEER_PREDICTS,
    average_precision,
    in_new_process,
    made,
    precision_kept,
)
from detr_hf import Detections
from detr_hf.data.digits import DigitScenes

from ..export.artefacts import small_model


@pytest.fixture(scope="module")
def rows():
    return [DigitScenes("validation", 4, (96, 96))[index] for index in range(4)]


class Oracle:
    """Finds what is there, with boxes shifted by some pixels."""

    id2label = DigitScenes("validation", 1).id2label

    def __init__(self, rows, shift: float = 0.0):
        self.rows, self.shift = rows, shift

    def stream(self, images, threshold):
        assert threshold == 0
        for row, image in zip(self.rows, images, strict=True):
            assert np.array_equal(image, np.asarray(row["image"]))
            boxes_xywh = np.array(row["objects"]["bbox"]).reshape(-1, 4)
            boxes = np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1) + self.shift
            labels = row["objects"]["category"]
            yield Detections(boxes, np.ones(len(boxes)), labels, list(map(str, labels)), size_hw=(96, 96))


def test_average_precision_sees_where_boxes_are(rows):
    assert average_precision(Oracle(rows), rows)["AP"] == pytest.approx(1)
    shifted = average_precision(Oracle(rows, shift=2.0), rows)
    assert shifted["AP"] < 0.9 and shifted["s_a_picture"] > 0


def test_a_process_that_fails_is_no_measurement(tmp_path):
    assert in_new_process("import sys; print(sys.argv[1:])", Path("a")) == "['a']"
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        in_new_process("1 / 0")
    for program in (OURS_PREDICTS, PEER_PREDICTS):
        compile(program, "program", "exec")


def test_an_unknown_variant_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no export to 'tflite'"):
        next(made(["tflite:int8"], small_model(), tmp_path, []))


@pytest.mark.slow
def test_onnx_keeps_the_precision_of_the_shipped_checkpoint():
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    record = precision_kept(["onnx"], scenes=12)
    assert record["torch"]["AP"] > 0.4 and abs(record["onnx"]["points"]) < 0.1
