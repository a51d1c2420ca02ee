"""Draws every kind of picture on 16 photographs, to be looked at: python -m docs.contact_sheet [FOLDER] [--out SHEETS]

FOLDER holds COCO's layout with a panoptic file (`panoptic_train.json`, `panoptic_train/`, `train/`); without one the
pictures are drawn. They are chosen to be hard: tall, wide, tiny, dark, grey, with the most objects and with none; and
the names are in Chinese, Arabic, Cyrillic, accents, emoji and 200 letters. Each kind gives three sheets: as it is, and
as people with protanopia and deuteranopia see it. The SVGs are shown by a headless Chromium, in a dark and a light
page, on a desktop and on a phone, with the pointer over an object: `pip install playwright`, `apt-get install
--no-install-recommends chromium-headless-shell fonts-wqy-microhei`.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.drawing import objects
from benchmarks.preprocess import photographs
from detr_hf import Detections, Detector
from detr_hf.inference.segments import SegmentMap
from detr_hf.processing.run_lengths_detr import run_lengths
from detr_hf.visualize import draw_boxes, grid
from tests.visualize.test_colors import SIGHTS

COUNT, COLUMNS, SIDE_PX, TINY_PX = 16, 4, 480, 72
NAMES = (
    "猫",
    "قطة صغيرة",
    "собака",
    "café au lait",
    "🐱 cat",
    "交通信号灯",
    "a name of two hundred letters " * 7,
    "dining table",
    "Ελάφι",
    "חתול",
)


@dataclass(frozen=True)
class Sample:
    """A picture and what is in it: boxes (N, 4) xyxy, labels, names, masks (N, H, W) bool, and segments of all."""

    image: Image.Image
    boxes: np.ndarray
    labels: list[int]
    names: list[str]
    masks: np.ndarray
    ids: np.ndarray
    segments: list[dict[str, Any]]

    def found(self) -> Detections:
        """Returns it as a detector would."""
        return Detections(
            self.boxes,
            np.linspace(0.98, 0.5, len(self.boxes)),
            self.labels,
            self.names,
            segmentations=[run_lengths(mask) for mask in self.masks],
            panoptic=SegmentMap(self.ids, self.segments),
            size_hw=self.image.size[::-1],
            source=self.image,
        )


def name_of(label: int) -> str:
    """Returns a name in one of the scripts."""
    return NAMES[label % len(NAMES)]


def sample_of(image: Image.Image, masks: list[np.ndarray], labels: list[int], things: list[bool]) -> Sample:
    """Returns a picture whose segments have these masks; those of things are objects too."""
    ids = np.zeros(image.size[::-1], dtype=np.int32)
    segments = []
    for number, (mask, label) in enumerate(zip(masks, labels, strict=True), start=1):
        ids[mask] = number
        segments.append({"id": number, "label_id": label, "name": name_of(label), "area": int(mask.sum())})
    kept = [place for place, is_thing in enumerate(things) if is_thing and masks[place].any()]
    boxes = [box_of(masks[place]) for place in kept]
    return Sample(
        image,
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        [labels[place] for place in kept],
        [name_of(labels[place]) for place in kept],
        np.array([masks[place] for place in kept], dtype=bool).reshape(-1, *image.size[::-1]),
        ids,
        segments,
    )


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Returns x0, y0, x1, y1 of a mask's pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def drawn_samples() -> Iterator[Sample]:
    """Yields pictures without photographs, of several shapes, with 0 to 42 objects."""
    sizes_hw = [(480, 640), (640, 300), (200, 640), (480, 480)]
    for number, count in enumerate((3, 42, 0, 8, 1, 12, 5, 2, 40, 6, 4, 9, 15, 7, 0, 20)):
        (image,) = photographs(1, sizes_hw[number % 4])
        _, masks = objects(max(count, 1), image.size[::-1])
        labels = [(number + 3 * place) % 40 for place in range(count)]
        yield sample_of(image, list(masks[:count]), labels, [True] * count)


def coco_samples(folder: Path) -> Iterator[Sample]:
    """Yields the pictures of a COCO panoptic set."""
    file = json.loads((folder / "panoptic_train.json").read_text(encoding="utf-8"))
    categories = {one["id"]: (place, bool(one["isthing"])) for place, one in enumerate(file["categories"])}
    names = {one["id"]: one["file_name"] for one in file["images"]}
    for one in file["annotations"]:
        image = Image.open(folder / "train" / names[one["image_id"]]).convert("RGB")
        colors = np.asarray(Image.open(folder / "panoptic_train" / one["file_name"]).convert("RGB")).astype(np.int32)
        ids = colors @ np.array([1, 256, 65536])
        segments = [segment for segment in one["segments_info"] if not segment["iscrowd"]]
        kinds = [categories[segment["category_id"]] for segment in segments]
        masks = [ids == segment["id"] for segment in segments]
        yield sample_of(image, masks, [label for label, _ in kinds], [is_thing for _, is_thing in kinds])


def hard_ones(samples: list[Sample]) -> list[Sample]:
    """Returns 16: the three with most objects, one without, the tallest, widest, darkest and greyest, a tiny one."""
    left = list(samples)

    def take(key: Callable[[Sample], float]) -> Sample:
        best = max(left, key=key)
        del left[next(place for place, one in enumerate(left) if one is best)]
        return best

    def greyness(one: Sample) -> float:
        return -np.ptp(np.asarray(one.image.resize((32, 32)), dtype=float), axis=2).mean()

    keys: list[Callable[[Sample], float]] = [lambda one: len(one.boxes)] * 3
    keys += [lambda one: -len(one.boxes), lambda one: one.image.height / one.image.width]
    keys += [lambda one: one.image.width / one.image.height, lambda one: -np.asarray(one.image).mean(), greyness]
    chosen = [take(key) for key in keys]
    tiny = take(lambda one: -abs(len(one.boxes) - 4))
    chosen.append(smaller(tiny, TINY_PX / max(tiny.image.size)))
    return chosen + left[: COUNT - len(chosen)]


def smaller(one: Sample, scale: float) -> Sample:
    """Returns a sample in another size."""
    image = one.image.resize((round(one.image.width * scale), round(one.image.height * scale)))
    ids = np.asarray(Image.fromarray(one.ids).resize(image.size, Image.Resampling.NEAREST))
    masks = [Image.fromarray(mask).resize(image.size, Image.Resampling.NEAREST) for mask in one.masks]
    masks = np.array([np.asarray(mask) for mask in masks], dtype=bool).reshape(-1, *image.size[::-1])
    return replace(one, image=image, boxes=one.boxes * scale, masks=masks, ids=ids)


def as_seen(image: Image.Image, sight: str) -> Image.Image:
    """Returns the image as someone of a sight of `SIGHTS` sees it."""
    srgb = np.asarray(image, dtype=np.float32) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = (linear @ np.transpose(SIGHTS[sight]).astype(np.float32)).clip(0, 1)
    srgb = np.where(seen <= 0.0031308, seen * 12.92, 1.055 * seen ** (1 / 2.4) - 0.055)
    return Image.fromarray((srgb * 255).round().astype(np.uint8))


def attention_of(samples: list[Sample], points: bool) -> list[Image.Image]:
    """Returns what the shipped detector attended to in each picture, for its two best objects or from two points."""
    detector, drawn = Detector.from_pretrained("detr-digits"), []
    for one in samples:
        scores = detector(one.image, threshold=0).scores
        seen = detector.attention(one.image, threshold=float(scores[2]))
        seen.detections.names = [name_of(label) for label in seen.detections.labels.tolist()]
        width, height = one.image.size
        where = [(width // 4, height // 2), (3 * width // 4, height // 3)] if points else None
        drawn.append(seen.draw(where, tile=SIDE_PX // 2, columns=3))
    return drawn


def sheets(samples: list[Sample]) -> Iterator[tuple[str, Image.Image]]:
    """Yields each kind's name and sheet."""
    found = [one.found() for one in samples]
    many = max(samples, key=lambda one: len(one.boxes))
    truth = [
        draw_boxes(one.image, one.boxes, one.names, labels=one.labels, masks=list(one.masks), side=SIDE_PX // 2)
        for one in samples
    ]
    pairs = [cell for both in zip(truth, found, strict=True) for cell in both]
    captions = [text for one in samples for text in (f"{len(one.boxes)} 个物体: {', '.join(one.names[:3])}", "")]
    yield "boxes", grid([one.draw(what="detection", side=SIDE_PX) for one in found], COLUMNS, side=SIDE_PX)
    crowd = many.found()
    yield (
        "crowd",
        grid([crowd.draw(what="detection", labels=labels) for labels in ("clear", "all", "none")], 3, side=960),
    )
    yield "masks", grid([one.draw(side=SIDE_PX) for one in found], COLUMNS, side=SIDE_PX)
    yield "panoptic", grid([one.draw(what="panoptic", side=SIDE_PX) for one in found], COLUMNS, side=SIDE_PX)
    yield "grid", grid(pairs, heads=("truth", "found") * 4, captions=captions, side=SIDE_PX // 2)
    yield "attention", grid(attention_of(samples, points=False), 2, side=960)
    yield "encoder_point", grid(attention_of(samples, points=True), 2, side=960)


def svg_sheets(samples: list[Sample], out: Path) -> None:
    """Writes pages of SVGs and what Chromium shows of them: masks, segments, and an object under the pointer."""
    from playwright.sync_api import sync_playwright

    svgs = [one.found().to_svg(max_side=960) for one in samples]
    svgs += [one.found().to_svg(what="panoptic", max_side=960) for one in samples[:4]]
    style = "body{margin:8px;display:grid;gap:8px;grid-template-columns:repeat(auto-fit,minmax(360px,1fr))}"
    page = f"<!doctype html><meta charset=utf-8><style>:root{{color-scheme:light dark}}{style}</style>"
    (out / "svg.html").write_text(page + "".join(f"<div>{svg}</div>" for svg in svgs), encoding="utf-8")
    samples[0].found().save(out / "one.svg")
    samples[0].found().save(out / "one.html")
    with sync_playwright() as playwright:
        program = shutil.which("chromium-headless-shell")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        shots = (("svg", 1800, "light", None), ("one", 1280, "dark", "hover"), ("one", 390, "light", "focus"))
        for name, width, scheme, act in shots:
            tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            asked: list[str] = []
            tab.on("request", lambda request, asked=asked: asked.append(request.url))
            tab.on("console", lambda message: sys.exit(f"Chromium says: {message.text}"))
            tab.goto((out / f"{name}.html").absolute().as_uri())
            if act == "hover":
                tab.locator("g.object:not(.named) .rim").last.hover(force=True)
            elif act == "focus":
                tab.locator("g.object:not(.named)").last.focus()
            tab.screenshot(path=out / f"{name}_{width}_{scheme}.png", full_page=True)
            if outside := [url for url in asked if not url.startswith(("file:", "data:"))]:
                sys.exit(f"The page asked for {outside}.")
        browser.close()


def main() -> None:
    """Draws the sheets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="photographs; drawn pictures without")
    parser.add_argument("--out", type=Path, default=Path("contact_sheet"))
    parser.add_argument("--only", nargs="*", default=[], help="kinds, as boxes or svg; all by default")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    samples = list(drawn_samples()) if arguments.folder is None else hard_ones(list(coco_samples(arguments.folder)))
    for name, sheet in sheets(samples):
        if not arguments.only or name in arguments.only:
            for sight in SIGHTS:
                path = arguments.out / (f"{name}.png" if sight == "normal" else f"{name}_{sight}.png")
                as_seen(sheet, sight).save(path)
            sys.stdout.write(f"{name}: {sheet.width}x{sheet.height}\n")
    if not arguments.only or "svg" in arguments.only:
        try:
            svg_sheets(samples, arguments.out)
        except ImportError:
            sys.exit("The SVG sheets are missing: pip install playwright, and see python -m docs.contact_sheet --help")
        sys.stdout.write("svg: as Chromium shows it\n")


if __name__ == "__main__":
    main()
