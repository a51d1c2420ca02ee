"""Finds objects in pictures, draws them, and measures the detector that ships with detr_hf.

    python examples/quickstart.py
    python examples/quickstart.py --model facebook/detr-resnet-50 --threshold 0.8 street.jpg

The first takes some ten seconds of one core: it finds 8 digits in its scene, and reaches AP 0.842 and AP50 0.967 on
100 scenes.
"""

import argparse
from pathlib import Path

from detr_hf import Detector, evaluate
from detr_hf.data import DigitScenes


def main() -> None:
    """Detects, draws, and measures where the truth is known."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("pictures", nargs="*", help="paths or URLs; by default a scene of digits")
    parser.add_argument("--model", default="detr-digits", help="a folder or Hub id of any DETR")
    parser.add_argument("--threshold", type=float, default=0.7)
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--scenes", type=int, default=100, help="to measure detr-digits on")
    options = parser.parse_args()
    detector = Detector.from_pretrained(options.model)
    pictures = options.pictures or [DigitScenes("validation", 1)[0]["image"]]
    for number, found in enumerate(detector.stream(pictures, options.threshold)):
        print(found)  # each object has a name, a score and a box; found.to_pandas() is a table of them
        print("drawn:", found.save(options.output / f"{number}_boxes.png"))
    if options.model == "detr-digits" and not options.pictures:
        reached = evaluate(detector, DigitScenes("validation", options.scenes))
        print(f"AP {reached.metrics['AP']:.3f}, AP50 {reached.metrics['AP50']:.3f} on {options.scenes} scenes")


if __name__ == "__main__":
    main()
