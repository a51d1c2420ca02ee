"""Draws the figures of the documentation: python docs/draw_figures.py (`make docs-figures`).

Each is made of what a model computes here, with one thread, so that a second run gives the same files to the bit.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from detr_hf import Detector, inspect_model
from detr_hf.data import DigitScenes, prepare
from detr_hf.model import HungarianMatcher, PackedTargets, box_cxcywh_to_xyxy
from detr_hf.visualize import attention, draw_boxes, grid, query_slots
from docs import draw_rooms

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
SCENE = ROOT / "detr_hf" / "assets" / "digits_scene.png"
SEGMENTER = ROOT / "examples" / "panoptic" / "detr-digits-panoptic"
POINTS = [(100, 130), (400, 300)]  # x, y in the scene
TRAINING_SCENE = 7
THRESHOLD = 0.7
SIDE = 300  # pixels of a tile's width


def heat(map_: Any) -> Image.Image:
    """Returns a map (h, w) as colours from dark to bright, its cells as squares."""
    values = np.asarray(map_, dtype=np.float64)
    values = (values - values.min()) / max(values.max() - values.min(), 1e-12)
    cells = Image.fromarray((values * 255).round().astype(np.uint8))
    colours = ImageOps.colorize(cells, black="#0d1b3d", mid="#c8435f", white="#ffe9a0")
    return colours.resize((SIDE, round(SIDE * values.shape[0] / values.shape[1])), Image.Resampling.NEAREST)


def row(tiles: list[Image.Image], captions: list[str], columns: int = 4) -> Image.Image:
    """Returns tiles beside each other."""
    return grid(tiles, columns, captions=captions, side=max(max(tile.size) for tile in tiles))


class Followed:
    """The digit detector, the scene, and what is computed on the way."""

    def __init__(self) -> None:
        self.detector = Detector.from_pretrained("detr-digits")
        self.model, self.processor = self.detector.model, self.detector.image_processor
        self.inputs = self.processor(str(SCENE), return_tensors="pt")
        with torch.no_grad():
            self.outputs = self.model(**self.inputs)
            self.features, self.positions = self.model.backbone(**self.inputs)
            self.stages, states = [], self.inputs["pixel_values"]
            for name, part in self.model.backbone[0].body.items():
                states = part(states)
                self.stages += [states] if name.startswith("layer") else []
        self.seen = attention(self.detector, SCENE, threshold=THRESHOLD)
        self.scene = Image.open(SCENE).convert("RGB")


def demo_boxes(of: Followed) -> Image.Image:
    """Returns what `detr-hf demo` draws."""
    return of.seen.detections.draw()


def how_stages(of: Followed) -> Image.Image:
    """Returns how large the features of each cell are, stage by stage."""
    maps = [stage[0].norm(dim=0) for stage in of.stages]
    captions = [
        f"stage {n}: {stage.shape[1]} channels, {stage.shape[2]}x{stage.shape[3]} cells"
        for n, stage in enumerate(of.stages, start=1)
    ]
    return row([heat(map_) for map_ in maps], captions, columns=2)


def how_positions(of: Followed) -> Image.Image:
    """Returns how alike the encodings of three cells are to those of all."""
    height, width = of.positions.shape[-2:]
    flat = torch.nn.functional.normalize(of.positions[0].flatten(1), dim=0)
    cells = [(height // 2, width // 2), (1, 1), (height - 3, width - 2)]
    maps = [(flat.T @ flat[:, y * width + x]).view(height, width) for y, x in cells]
    return row([heat(map_) for map_ in maps], [f"the cell in row {y}, column {x}" for y, x in cells], columns=3)


def how_encoder(of: Followed) -> Image.Image:
    """Returns the encoder's attention from two points (figure 3)."""
    return of.seen.draw(POINTS, tile=SIDE)


def digits_scene_attention(of: Followed) -> Image.Image:
    """Returns the decoder's attention for each object (figure 6)."""
    return of.seen.draw()


def how_queries(of: Followed) -> Image.Image:
    """Returns where each query put its boxes in forty scenes (figure 7)."""
    scenes = DigitScenes("validation")
    return query_slots(of.detector, (scenes[number]["image"] for number in range(40))).draw(tile=110)


def how_answers(of: Followed) -> Image.Image:
    """Returns the boxes of all queries, and of those above the threshold."""
    tiles = []
    for threshold in (0.0, THRESHOLD):
        found = of.detector(SCENE, threshold=threshold)
        tiles.append(draw_boxes(of.scene, found.boxes, found.names, labels=found.labels, scores=found.scores))
    return row(tiles, ["all 20 answers", f"those above {THRESHOLD}"])


def how_matching(of: Followed) -> Image.Image:
    """Returns a scene's truth, and the answers that are matched with it, each with its query's number."""
    scenes = DigitScenes("validation")
    prepared, image = prepare(scenes, of.processor)[TRAINING_SCENE], scenes[TRAINING_SCENE]["image"].convert("RGB")
    labels = prepared["labels"]
    with torch.no_grad():
        outputs = of.model(prepared["pixel_values"][None])
    targets = PackedTargets.from_list([labels], 1, torch.device("cpu"))
    matches = HungarianMatcher(1, 5, 2)(outputs.logits[None], outputs.pred_boxes[None], targets)
    names = [of.detector.id2label[label] for label in labels["class_labels"].tolist()]
    size = torch.tensor([image.width, image.height] * 2)
    truth, answers = (box_cxcywh_to_xyxy(boxes) * size for boxes in (labels["boxes"], outputs.pred_boxes[0]))
    pairs = list(zip(matches.query[0].tolist(), matches.object[0].tolist(), strict=True))
    classes = [int(labels["class_labels"][object_]) for _, object_ in pairs]
    numbers = [f"query {query}" for query, _ in pairs]
    tiles = [
        draw_boxes(image, truth.numpy(), names, labels=labels["class_labels"].tolist()),
        draw_boxes(image, answers[matches.query[0]].numpy(), numbers, labels=classes),
    ]
    tiles = [tile.resize((SIDE, SIDE), Image.Resampling.LANCZOS) for tile in tiles]
    return row(tiles, ["the truth", "the answer that each object gets"])


def panoptic(of: Followed) -> Image.Image:
    """Returns ten scenes, the truth on the left of the segments found, as `examples/panoptic.py` draws them."""
    from detr_hf.checkpoints.processors import processor_of
    from examples.panoptic import draw

    return draw(SEGMENTER, DigitScenes("validation", masks=True), processor_of(SEGMENTER)).quantize(128)


def how_inspect(of: Followed) -> str:
    """Returns the paper's figure 2 with this model's numbers, without the milliseconds of the day."""
    drawn = inspect_model("detr-digits", SCENE).to_svg()
    return re.sub(
        r"<text [^>]*>(?:Milliseconds|\([a-z]+, float32\)|[^<]*fast the model is)[^<]*</text>\n|  ?· \d+ ms", "", drawn
    )


FIGURES: tuple[Callable[[Followed], Image.Image | str], ...] = (
    demo_boxes,
    how_stages,
    how_positions,
    how_encoder,
    how_queries,
    digits_scene_attention,
    how_answers,
    how_matching,
    panoptic,
    how_inspect,
)


def main(folder: Path = IMAGES) -> None:
    """Draws all of them, and the rooms."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    of = Followed()
    for figure in FIGURES:
        drawn = figure(of)
        if isinstance(drawn, str):
            (folder / f"{figure.__name__}.svg").write_text(drawn, encoding="utf-8")
        else:
            drawn.save(folder / f"{figure.__name__}.png", optimize=True)
    (folder / draw_rooms.PICTURE.name).write_text(draw_rooms.drawing(), encoding="utf-8")
    print(f"{len(FIGURES) + 1} figures: {folder}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
