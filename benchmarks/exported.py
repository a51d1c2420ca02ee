"""Exported models: their speed beside transformers' DETR in torch, cold starts, and the AP that each precision keeps.

Speed is measured on random weights, like the other comparisons; AP on the checkpoint that ships with the package, or
another of digits, and the validation scenes, which it has not seen. int8 is calibrated on training scenes, or for
speed on random pixels.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detr_hf.export.artefact import SUFFIX_OF, megabytes
from detr_hf.export.exporting import export_model
from detr_hf.export.runtimes import Runtime, load_runtime

from .measuring import compare, environment
from .models import random_pair, random_pixels

# An artefact to measure is written FORMAT, or FORMAT:DTYPE.
VARIANTS = ("onnx", "openvino", "openvino:bfloat16", "openvino:int8")
CALIBRATION_SCENES = 300
RUNTIME_PACKAGES = ("onnxruntime", "openvino", "nncf")

# What a user of each side runs in a new process to see the objects of one picture.
OURS_PREDICTS = """
import sys
from detr_hf import Detector
found = Detector.from_pretrained(sys.argv[1])(sys.argv[2], threshold=0.0)
assert "torch" not in sys.modules or sys.argv[1].endswith(".pt2")
print(len(found))
"""
PEER_PREDICTS = """
import sys
import torch
from PIL import Image
from transformers import AutoImageProcessor, DetrForObjectDetection
processor, model = AutoImageProcessor.from_pretrained(sys.argv[1]), DetrForObjectDetection.from_pretrained(sys.argv[1])
image = Image.open(sys.argv[2]).convert("RGB")
with torch.inference_mode():
    outputs = model(**processor(image, return_tensors="pt"))
(found,) = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=[image.size[::-1]])
print(len(found["scores"]))
"""


def compare_exported(
    variants: Sequence[str] = VARIANTS,
    batch: int = 1,
    size_hw: tuple[int, int] = (800, 1066),
    dynamic: bool = True,
    masked: bool = True,
    backbone: str = "resnet50",
    runs: int = 7,
) -> dict[str, Any]:
    """Returns how fast artefacts are beside transformers' model, eager in float32, at equal threads.

    Raises:
        ValueError: a variant that does not exist, or an artefact that does not give what the model gives.
    """
    ours, peer = random_pair(backbone=backbone)
    pixel_values, _ = random_pixels(batch, size_hw)
    shape = {} if dynamic else {"batch": batch, "size_hw": size_hw}
    calibration = [np.random.default_rng(n).standard_normal((3, 256, 320), dtype=np.float32) for n in range(8)]
    if not dynamic:
        calibration = list(pixel_values.numpy())
    settings = {"batch": batch, "size_hw": list(size_hw), "dynamic": dynamic, "masked": masked, "backbone": backbone}
    record: dict[str, Any] = {"environment": machine(), "settings": settings}

    def peer_runs() -> Any:
        with torch.inference_mode():
            return peer(pixel_values)

    with tempfile.TemporaryDirectory() as folder:
        artefacts = made(variants, ours, Path(folder), calibration, masked=masked, **shape)
        for variant, path, parity in artefacts:
            runtime = load_runtime(path, threads=torch.get_num_threads())
            timed = compare(partial(runtime, pixel_values.numpy()), peer_runs, runs)
            differences = {f"{field.partition('_')[0]}_within": one.largest for field, one in parity.of.items()}
            record[variant] = {**timed, **computed_in(runtime), **differences, "megabytes": megabytes(path)}
    return record


def compare_starts_of_exported(
    variants: Sequence[str] = ("onnx", "openvino"), backbone: str = "resnet50", runs: int = 5
) -> dict[str, Any]:
    """Returns how long a new process takes to find the objects of one picture, beside transformers' DETR.

    Both read the same weights from a folder or file, decode one JPEG of 640x480 pixels, and print how many objects.
    """
    from PIL import Image

    from detr_hf.processing.image_processing_detr import DETRImageProcessor

    ours, peer = random_pair(backbone=backbone)
    record: dict[str, Any] = {"environment": machine(), "settings": {"backbone": backbone, "picture": "640x480 JPEG"}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        peer.save_pretrained(folder / "peer")
        save_peer_processor(DETRImageProcessor(), folder / "peer")
        rng = np.random.default_rng(0)
        picture = Image.fromarray(rng.integers(0, 256, (15, 20, 3), dtype=np.uint8)).resize((640, 480))
        picture.save(folder / "picture.jpg")
        peer_runs = partial(in_new_process, PEER_PREDICTS, folder / "peer", folder / "picture.jpg")
        for variant, path, _ in made(variants, ours, folder, []):
            ours_runs = partial(in_new_process, OURS_PREDICTS, path, folder / "picture.jpg")
            if ours_runs() != peer_runs():
                raise ValueError(f"{variant} and transformers find different numbers of objects.")
            timed = compare(ours_runs, peer_runs, runs, warmup=0)
            timed.pop("cpu_ratio", None)  # the children's time is not this process's
            record[f"start {variant}"] = timed
    return record


def in_new_process(program: str, *arguments: Path) -> str:
    """What a Python program prints."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"A measured process failed: {done.stderr.strip()[-500:]}")
    return done.stdout.strip()


def save_peer_processor(processor: Any, folder: Path) -> None:
    """Writes transformers' own image processor with the settings of this package's."""
    from transformers import DetrImageProcessor

    DetrImageProcessor(size=dict(processor.size)).save_pretrained(folder)


def precision_kept(
    variants: Sequence[str] = VARIANTS,
    scenes: int = 500,
    calibration_scenes: int = CALIBRATION_SCENES,
    checkpoint: str | Path | None = None,
) -> dict[str, Any]:
    """Returns a digit checkpoint's AP on validation scenes, in torch and in each artefact, and the difference.

    By default it is the shipped one. Of one with masks, their AP and the panoptic quality are measured too.
    """
    from detr_hf.checkpoints.embedded import embedded_model_path
    from detr_hf.checkpoints.model_classes import load_model
    from detr_hf.data.digits import DigitScenes
    from detr_hf.inference.detector import Detector
    from detr_hf.processing.image_processing_detr import DETRImageProcessor

    source = embedded_model_path() if checkpoint is None else Path(checkpoint)
    model, processor = load_model(source).eval(), DETRImageProcessor.from_pretrained(source)
    rows = DigitScenes("validation", scenes, masks=model.has_mask_head)
    calibration = []
    if any(variant.endswith("int8") for variant in variants):
        pictures = (scene["image"] for scene in DigitScenes("train", calibration_scenes))
        calibration = [processor(picture, return_tensors="np")["pixel_values"][0] for picture in pictures]
    settings = {"checkpoint": source.name, "scenes": scenes, "calibration_scenes": len(calibration)}
    record: dict[str, Any] = {"environment": machine(), "settings": settings}
    reference = average_precision(Detector(model, processor), rows)
    record["torch"] = reference
    with tempfile.TemporaryDirectory() as folder:
        for variant, path, _ in made(variants, model, Path(folder), calibration, processor=processor):
            detector = Detector.from_pretrained(path)
            found = average_precision(detector, rows)
            points = {
                "points" if name == "AP" else f"{name}_points": 100 * (found[name] - reference[name])
                for name in ("AP", "mask_AP", "PQ")
                if name in reference
            }
            record[variant] = {**found, **points, **computed_in(detector.model), "megabytes": megabytes(path)}
    return record


def average_precision(detector: Any, rows: Any) -> dict[str, float]:
    """Returns AP, AP50 and AP75 of a detector on rows in the schema of `detr_hf.data`, and seconds a picture.

    Of a detector with masks, mask AP and PQ too.
    """
    from detr_hf import evaluate

    found = evaluate(detector, rows)
    of_boxes = {name: found.metrics[name] for name in ("AP", "AP50", "AP75")}
    of_masks = {}
    if getattr(detector, "task", "detection") == "panoptic":
        of_masks = {"mask_AP": found.masks.summary["AP"], "PQ": found.panoptic.summary["PQ"]}
    return {**of_boxes, **of_masks, "s_a_picture": found.seconds / len(rows)}


def made(
    variants: Sequence[str],
    model: Any,
    folder: Path,
    calibration: list[np.ndarray],
    processor: Any = None,
    **shape: Any,
) -> Iterator[tuple[str, Path, Any]]:
    """Exports each variant, yields its name, path and parity, and deletes it when the next is asked for."""
    from detr_hf.processing.image_processing_detr import DETRImageProcessor

    for variant in variants:
        to, _, dtype = variant.partition(":")
        if to not in SUFFIX_OF:
            raise ValueError(
                f"There is no export to {to!r}; write FORMAT or FORMAT:DTYPE, with {', '.join(SUFFIX_OF)}."
            )
        output = folder / f"artefact{SUFFIX_OF[to]}"
        pixels = calibration if dtype == "int8" else None
        processor = processor or DETRImageProcessor()
        path, parity = export_model(
            model,
            processor,
            output,
            to,
            dtype=dtype or "float32",
            calibration=pixels,
            overwrite=True,
            accept_difference=True,  # what it costs is what is measured
            **shape,
        )
        with removed_afterwards(output):
            yield variant, path, parity


@contextmanager
def removed_afterwards(path: Path) -> Iterator[None]:
    """Deletes a file or folder at the end."""
    try:
        yield
    finally:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)  # after an error the whole folder may be gone


def computed_in(runtime: Runtime) -> dict[str, str]:
    """The precision that OpenVINO really computes in, which is float32 where the processor lacks bfloat16."""
    compiled = getattr(runtime, "compiled", None)
    if compiled is None:
        return {}
    return {"computed_in": compiled.get_property("INFERENCE_PRECISION_HINT").to_string()}


def machine() -> dict[str, Any]:
    """The environment, with the runtimes' versions."""
    found = environment("cpu")
    for name in RUNTIME_PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found["versions"][name] = metadata.version(name)
    return found


__all__ = ["compare_exported", "compare_starts_of_exported", "precision_kept"]
