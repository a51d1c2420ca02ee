"""Writes a detector as ONNX, runs it without its checkpoint, and compares both.

    python examples/export_and_run.py
    python examples/export_and_run.py --model facebook/detr-resnet-50 --to openvino

The first takes 45 seconds of one core: AP 0.857 on 50 scenes, from the checkpoint and from the ONNX file alike.

What is written holds preprocessing and class names too, so `Detector` and `detr-hf predict` run it as they run a
checkpoint, where torch need not be installed. Needs the extras `export` and `eval`.
"""

import argparse
import time
from pathlib import Path

from detr_hf import Detector, evaluate, export_model
from detr_hf.data import DigitScenes

NAMES = {"onnx": "model.onnx", "openvino": "model_openvino", "torch-export": "model.pt2"}


def main() -> None:
    """Exports, runs both on the same scenes, and prints AP and time."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="detr-digits", help="a folder or Hub id of any DETR")
    parser.add_argument("--to", default="onnx", choices=NAMES)
    parser.add_argument("--scenes", type=int, default=50, help="to measure on")
    parser.add_argument("--output", type=Path, default=Path("runs/export"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    loaded = Detector.from_pretrained(options.model, device="cpu")
    output = options.output / NAMES[options.to]
    path, parity = export_model(loaded.model, loaded.image_processor, output, options.to, overwrite=True)
    print(f"written: {path}; {parity}")
    scenes = DigitScenes("validation", options.scenes)
    pictures = [scenes[number]["image"] for number in range(options.scenes)]
    for name in (options.model, path):
        detector = Detector.from_pretrained(name)
        detector(pictures[0])  # the first one takes longer
        began = time.perf_counter()
        detector(pictures)
        milliseconds = 1000 * (time.perf_counter() - began) / len(pictures)
        score = f", AP {evaluate(detector, scenes).metrics['AP']:.3f}" if options.model == "detr-digits" else ""
        print(f"{name}: {milliseconds:.0f} ms a picture{score}")


if __name__ == "__main__":
    main()
