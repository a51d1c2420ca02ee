"""What a user's type checker sees of the public names; only checked, by `make types`, and never run."""

from typing import assert_type

import numpy as np
from PIL import Image

import detr_hf
from detr_hf import Detection, Detections, Detector, DETRConfig, DETRForObjectDetection, DETRForSegmentation
from detr_hf.evaluation import Evaluation


def detecting(photo: Image.Image) -> None:
    detector = Detector.from_pretrained("facebook/detr-resnet-50", device="cpu")
    assert_type(detector, Detector)
    found = detector("street.jpg", threshold=0.7)
    assert_type(found, Detections)
    assert_type(detector(["a.jpg", "b.jpg"]), list[Detections])
    assert_type(detector(photo), Detections)
    assert_type(found[0], Detection)
    assert_type(found[:3], Detections)
    assert_type(found[found.scores > 0.9], Detections)
    assert_type(found.filter(names="cat").names, list[str])
    assert_type(found[0].box, tuple[float, float, float, float])
    assert_type(found.boxes, np.ndarray)
    assert_type([one.score for one in found], list[float])


def modelling() -> None:
    model = DETRForObjectDetection.from_pretrained("facebook/detr-resnet-50", id2label={0: "cat"})
    assert_type(model, DETRForObjectDetection)
    assert_type(DETRForSegmentation.from_pretrained("folder"), DETRForSegmentation)
    assert_type(DETRConfig.from_preset("precise"), DETRConfig)


def measuring(data: detr_hf.DetectionData) -> None:
    assert_type(detr_hf.load_detection_dataset("folder"), detr_hf.DetectionData)
    report = detr_hf.evaluate("facebook/detr-resnet-50", data)
    assert_type(report, Evaluation)
    trainer = detr_hf.DETRTrainer(DETRForObjectDetection(DETRConfig()), detr_hf.DETRTrainingArguments("out"), data)
    trainer.train()
