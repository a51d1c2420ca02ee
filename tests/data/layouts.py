"""Small data sets on disk in every layout, from one description: pictures with filled rectangles as objects."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detr_hf.data import DetectionData

NAMES = ("cat", "dog", "owl")
# Category ids with a gap, as COCO has them.
SOURCE_IDS = (3, 5, 9)
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
# For each picture: width, height, objects as (class index, x, y, width, height).
SCENES = {
    "train": [
        (64, 48, [(0, 4, 6, 20, 10), (1, 30, 20, 30, 24)]),
        (48, 64, [(2, 8, 8, 16, 40)]),
        (60, 60, []),
        (80, 50, [(1, 0, 0, 40, 25), (1, 50, 30, 20, 20), (0, 10, 30, 8, 12)]),
    ],
    "val": [(64, 64, [(0, 10, 10, 40, 30)]), (50, 70, [(2, 5, 5, 20, 20), (1, 30, 40, 16, 24)])],
}


def draw(split: str, number: int) -> Image.Image:
    """Picture `number` of a split: grey noise (each picture differs), objects in their class's colour."""
    width, height, objects = SCENES[split][number]
    noise = np.random.default_rng((len(split), number)).integers(90, 110, (height, width, 1), dtype=np.uint8)
    pixels = np.repeat(noise, 3, axis=2)
    for label, x, y, w, h in objects:
        pixels[y : y + h, x : x + w] = COLOURS[label]
    return Image.fromarray(pixels)


def save_pictures(folder: Path, split: str) -> list[str]:
    """Writes a split's pictures as PNG and returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for number in range(len(SCENES[split])):
        names.append(f"{split}_{number}.png")
        draw(split, number).save(folder / names[-1])
    return names


def polygon(x: float, y: float, w: float, h: float) -> list[float]:
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def coco_content(split: str, names: list[str] | None = None) -> dict[str, Any]:
    """The COCO JSON of a split."""
    images, annotations = [], []
    for number, (width, height, objects) in enumerate(SCENES[split]):
        name = names[number] if names else f"{split}_{number}.png"
        images.append({"id": 100 + number, "file_name": name, "width": width, "height": height})
        for label, x, y, w, h in objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 100 + number,
                    "category_id": SOURCE_IDS[label],
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": [polygon(x, y, w, h)],
                }
            )
    categories = [{"id": key, "name": name} for key, name in zip(SOURCE_IDS, NAMES, strict=True)]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_coco(root: Path) -> Path:
    """`annotations_train.json` beside `train/`."""
    for split in SCENES:
        save_pictures(root / split, split)
        write_json(root / f"annotations_{split}.json", coco_content(split))
    return root


def write_coco2017(root: Path) -> Path:
    """COCO's own layout."""
    for split in SCENES:
        save_pictures(root / f"{split}2017", split)
        write_json(root / "annotations" / f"instances_{split}2017.json", coco_content(split))
        write_json(root / "annotations" / f"captions_{split}2017.json", {"images": [], "annotations": []})
    return root


def write_roboflow(root: Path) -> Path:
    """Roboflow's COCO export."""
    for split in SCENES:
        folder = root / ("valid" if split == "val" else split)
        save_pictures(folder, split)
        write_json(folder / "_annotations.coco.json", coco_content(split))
    return root


def write_yolo(root: Path) -> Path:
    """data.yaml, `images/train` and `labels/train`."""
    for split, scenes in SCENES.items():
        save_pictures(root / "images" / split, split)
        labels = root / "labels" / split
        labels.mkdir(parents=True)
        for number, (width, height, objects) in enumerate(scenes):
            lines = [
                f"{c} {(x + w / 2) / width:.8f} {(y + h / 2) / height:.8f} {w / width:.8f} {h / height:.8f}"
                for c, x, y, w, h in objects
            ]
            if lines:
                (labels / f"{split}_{number}.txt").write_text("\n".join(lines) + "\n")
    (root / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames: [{', '.join(NAMES)}]\n")
    return root


def write_voc(root: Path) -> Path:
    """Annotations, JPEGImages and ImageSets."""
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for split, scenes in SCENES.items():
        names = save_pictures(root / "JPEGImages", split)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(Path(name).stem for name in names))
        for name, (width, height, objects) in zip(names, scenes, strict=True):
            parts = [
                f"<object><name>{NAMES[c]}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax>"
                f"<ymax>{y + h}</ymax></bndbox></object>"
                for c, x, y, w, h in objects
            ]
            size = f"<size><width>{width}</width><height>{height}</height></size>"
            text = f"<annotation><filename>{name}</filename>{size}{''.join(parts)}</annotation>"
            (root / "Annotations" / Path(name).with_suffix(".xml").name).write_text(text)
    return root


def write_hf(root: Path) -> Path:
    """A saved `datasets.DatasetDict` with an `objects` column."""
    hf_splits().save_to_disk(root)
    return root


def hf_splits() -> Any:
    """The scenes as a `datasets.DatasetDict`."""
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value

    objects = {"bbox": List(List(Value("float32"), length=4)), "category": List(ClassLabel(names=list(NAMES)))}
    features = Features({"image": Image(), "image_id": Value("int64"), "objects": objects})
    splits = {}
    for split, scenes in SCENES.items():
        rows = [
            {
                "image": draw(split, number),
                "image_id": 100 + number,
                "objects": {
                    "bbox": [list(box) for _, *box in scene[2]],
                    "category": [label for label, *_ in scene[2]],
                },
            }
            for number, scene in enumerate(scenes)
        ]
        splits[split] = Dataset.from_list(rows, features=features)
    return DatasetDict(splits)


def write_panoptic(root: Path) -> Path:
    """COCO panoptic: segment PNGs beside the JSON; the rest of each picture is one segment of stuff."""
    names = save_pictures(root / "train", "train")
    images = coco_content("train")["images"]
    annotations = []
    (root / "panoptic_train").mkdir()
    for number, (width, height, objects) in enumerate(SCENES["train"]):
        ids = np.full((height, width), 7)
        for position, (_, x, y, w, h) in enumerate(objects):
            ids[y : y + h, x : x + w] = 1000 + position
        colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2).astype(np.uint8)
        Image.fromarray(colours).save(root / "panoptic_train" / names[number])
        segments = [
            {"id": 7, "category_id": 20, "bbox": [0, 0, width, height], "area": int((ids == 7).sum()), "iscrowd": 0}
        ]
        segments += [
            {"id": 1000 + position, "category_id": SOURCE_IDS[c], "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
            for position, (c, x, y, w, h) in enumerate(objects)
        ]
        annotations.append({"image_id": 100 + number, "file_name": names[number], "segments_info": segments})
    categories = [{"id": key, "name": name, "isthing": 1} for key, name in zip(SOURCE_IDS, NAMES, strict=True)]
    categories.append({"id": 20, "name": "ground", "isthing": 0})
    write_json(root / "panoptic_train.json", {"images": images, "annotations": annotations, "categories": categories})
    return root


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def objects_of(data: DetectionData, kind: str) -> list[list[tuple]]:
    """For each row of a split: (class name, x, y, width, height) of its objects."""
    names = data.id2label
    split = data[data.split_for(kind)]
    return [
        [
            (names[c], *(round(value, 3) for value in box))
            for c, box in zip(row["objects"]["category"], row["objects"]["bbox"], strict=True)
        ]
        for row in split
    ]


def fill(root: Path, files: dict[str, str | tuple[int, int]]) -> Path:
    """Writes texts (`{root}` is the folder), and noise of a size where the value is one."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, tuple):
            Image.effect_noise(content, 60).convert("RGB").save(path)
        else:
            path.write_bytes(content.replace("{root}", str(root)).encode())
    return root
