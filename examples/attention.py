"""Draws what a DETR attended to for each object it found, and measures how much of it lies in the object's box.

    python examples/attention.py
    python examples/attention.py --model facebook/detr-resnet-50 street.jpg

The first takes some ten seconds of one core. Of 90 digits, 0.64 of the attention lies in the digit's box, which is
0.043 of the picture.

A map is the weights by which the last decoder layer mixed the encoder's tokens for the query that found the object: a
view of the computation, no explanation of it.
"""

import argparse
from pathlib import Path

import numpy as np

from detr_hf import Detector
from detr_hf.data import DigitScenes
from detr_hf.visualize import attention


def main() -> None:
    """Draws a map an object, and prints the shares."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("pictures", nargs="*", help="paths or URLs; by default scenes of digits")
    parser.add_argument("--model", default="detr-digits", help="a folder or Hub id of any DETR")
    parser.add_argument("--threshold", type=float, default=0.7)
    parser.add_argument("--layer", type=int, default=-1, help="of the decoder; -1 is the last")
    parser.add_argument("--scenes", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("runs/attention"))
    options = parser.parse_args()
    detector = Detector.from_pretrained(options.model)
    scenes = DigitScenes("validation", options.scenes)
    pictures = options.pictures or [scenes[number]["image"] for number in range(options.scenes)]
    of_attention, of_picture = [], []
    for number, picture in enumerate(pictures):
        seen = attention(detector, picture, options.threshold, options.layer)
        height, width = seen.detections.size_hw
        edges = seen.detections.boxes
        of_picture.extend((edges[:, 2:] - edges[:, :2]).prod(axis=1) / (height * width))
        of_attention.extend(seen.in_boxes())
        if number < 3 or options.pictures:
            print("drawn:", seen.save(options.output / f"{number}_attention.png"))
    inside, area = np.mean(of_attention), np.mean(of_picture)
    print(f"{len(of_attention)} objects: {inside:.2f} of the attention is in a box, {area:.3f} of the picture")


if __name__ == "__main__":
    main()
