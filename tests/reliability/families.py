"""The families of cases: pictures, annotations, configurations, weights, data sets, padded batches.

Each function makes what its cases share below a folder and returns the family; see `fuzzing`.
"""

import copy
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from detr_hf import Detector, DETRConfig, DETRForObjectDetection, DETRImageProcessor, DETRImageProcessorPil
from detr_hf.data import load_detection_dataset
from detr_hf.data.checking.check import check
from detr_hf.data.preparing.collate import DetectionCollator
from detr_hf.data.preparing.transform import prepare
from detr_hf.model.loss_detr import SetCriterion
from detr_hf.model.matcher_detr import HungarianMatcher

from ..conftest import NARROW, tiny_config, tiny_model
from ..data import layouts
from ..data.test_fuzz import VALUES, change_a_mask, change_one_field, compressed
from .fuzzing import Family, changed_bytes

HW = (48, 64)
SIZE = {"shortest_edge": 48, "longest_edge": 64}
CLASSES = 3


def pictures(folder: Path) -> Family:
    """Bytes of pictures in six formats, changed, by path, as bytes or opened; both processors and `Detector`."""
    noise = np.random.default_rng(0).integers(0, 255, (*HW, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((16, 12)).resize(HW[::-1])
    modes = {"PNG": ("RGB", "L", "P", "RGBA", "1", "I;16"), "JPEG": ("RGB", "L", "CMYK"), "TIFF": ("RGB", "L", "CMYK")}
    sound = []
    for form in ("PNG", "JPEG", "TIFF", "GIF", "WEBP", "BMP"):
        for mode in modes.get(form, ("RGB",)):
            content = io.BytesIO()
            exif = {"exif": turned().tobytes()} if form in ("JPEG", "WEBP", "PNG") else {}
            converted = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16)) if mode == "I;16" else None
            (converted or image.convert(mode)).save(content, format=form, **exif)
            sound.append(content.getvalue())
    processors = [DETRImageProcessor(size=SIZE), DETRImageProcessorPil(size=SIZE)]
    detector = Detector(tiny_model(**NARROW), processors[0])

    def case(chance: random.Random) -> None:
        path = folder / "a.jpg"
        path.write_bytes(changed_bytes(chance.choice(sound), chance, chance.choice(sound)))
        as_bytes = chance.random() < 0.3
        what = path.read_bytes() if as_bytes else chance.choice((str, Path))(path)
        outcomes = [attempt(lambda one=one: one(what, return_tensors="pt")["pixel_values"]) for one in processors]
        assert len({type(outcome) for outcome in outcomes}) == 1, f"the processors differ: {outcomes}"
        if isinstance(outcomes[0], Exception):
            raise outcomes[0]
        for pixels in outcomes:
            assert pixels.shape[:2] == (1, 3) and max(pixels.shape[2:]) <= 128 and pixels.isfinite().all()
        if chance.random() < 0.1:
            check_detections(detector(what, threshold=0.0))

    return Family(case, ("a.jpg", "image 0"))


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def attempt(call: Callable[[], Any]) -> Any:
    """Returns what a call gives, or the error that it raises."""
    try:
        return call()
    except Exception as error:
        return error


def check_detections(found: Any) -> None:
    """Asserts that every box is finite and inside the picture."""
    height, width = found.size_hw
    for _, _, score, (x0, y0, x1, y1) in found:
        assert 0 <= score <= 1 and 0 <= x0 <= x1 <= width and 0 <= y0 <= y1 <= height, found


def loss_of(label: dict[str, Any]) -> float:
    """Returns the loss of fixed predictions for one image's target."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 1, 8, CLASSES + 1, generator=generator)
    boxes = torch.rand(1, 1, 8, 4, generator=generator) * 0.5 + 0.2
    weights = {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}
    return SetCriterion(HungarianMatcher(), weights, eos_coef=0.1)(logits, boxes, [label])[0].item()


def check_target(label: dict[str, Any], masks: bool) -> None:
    """Asserts that a target is finite, inside the picture and of one number of objects, and that it can be learnt."""
    boxes, count = label["boxes"], len(label["boxes"])
    x, y, w, h = boxes.unbind(-1)
    assert boxes.isfinite().all() and (boxes >= 0).all() and (w > 0).all() and (h > 0).all(), boxes
    assert all((edge <= 1 + 1e-5).all() for edge in (x + w / 2, y + h / 2)), boxes
    assert label["class_labels"].dtype == torch.int64 and len(label["class_labels"]) == len(label["area"]) == count
    assert label["area"].isfinite().all() and (label["area"] >= 0).all(), label["area"]
    if masks:
        assert label["masks"].shape == (count, *HW), label["masks"].shape
    assert np.isfinite(loss_of(label))


def annotations(folder: Path) -> Family:
    """One to three fields of an annotation changed: boxes, masks, or a panoptic picture and its segments."""
    image = Image.new("RGB", HW[::-1])
    processor = DETRImageProcessor(do_resize=False)
    ids = np.zeros((*HW, 3), dtype=np.uint8)
    ids[:20, :, 0], ids[20:, :, 0] = 7, 8
    content = io.BytesIO()
    Image.fromarray(ids).save(content, format="PNG")
    path = folder / "5.png"

    def detection(chance: random.Random, masks: bool) -> None:
        given = {"image_id": 5, "annotations": copy.deepcopy(OBJECTS)}
        for _ in range(chance.choice((1, 1, 2, 3))):
            if masks:
                attempt(lambda: change_a_mask(given, chance, folder))
            else:
                attempt(lambda: change_one_field(given, chance))
        options = {"return_segmentation_masks": True} if masks else {}
        check_target(processor(image, annotations=given, return_tensors="pt", **options)["labels"][0], masks)

    def panoptic(chance: random.Random) -> None:
        given = {"image_id": 5, "file_name": "5.png", "segments_info": copy.deepcopy(SEGMENTS)}
        in_picture = chance.random() < 0.4
        path.write_bytes(changed_bytes(content.getvalue(), chance) if in_picture else content.getvalue())
        if not in_picture:
            change_one_field({"annotations": [given], "info": {}}, chance)
        found = processor(image, annotations=given, masks_path=folder, format="coco_panoptic", return_tensors="pt")
        check_target(found["labels"][0], True)

    def case(chance: random.Random) -> None:
        kind = chance.random()
        panoptic(chance) if kind > 0.85 else detection(chance, kind > 0.6)

    return Family(case, ("nnotation", "image", "5.png", "segment", "object", "class_labels", "masks_path"))


OBJECTS = [
    {"id": 17, "bbox": [10, 10, 30, 20], "category_id": 1, "area": 170.0, "iscrowd": 0}
    | {"segmentation": [[10, 10, 40, 10, 40, 30, 10, 30]]},
    {"id": 18, "bbox": [5, 5, 20, 20], "category_id": 0, "area": 90, "iscrowd": 0}
    | {"segmentation": {"size": [48, 64], "counts": compressed([480, 500, 2092])}},
    {"id": 19, "bbox": [0, 0, 64, 48], "category_id": 2, "area": 90, "iscrowd": 0}
    | {"segmentation": {"size": [48, 64], "counts": [0, 480, 2592]}},
]
SEGMENTS = [
    {"id": 7, "category_id": 1, "area": 1280, "bbox": [0, 0, 64, 20], "iscrowd": 0},
    {"id": 8, "category_id": 2, "area": 1792, "bbox": [0, 20, 64, 28], "iscrowd": 0},
]
# What stands for a number in a configuration, besides VALUES: such as could be built.
SMALL: list[Any] = [
    0,
    1,
    2,
    3,
    8,
    16,
    -1,
    0.0,
    0.5,
    1.0,
    1.5,
    "relu",
    "sine",
    "learned",
    "resnet18",
    True,
    False,
    None,
]


def configurations(folder: Path) -> Family:
    """Fields and bytes of config.json changed; what is accepted is saved and comes back, and some of it is built."""
    sound = tiny_config(**NARROW).to_dict()
    path = folder / "config.json"

    def case(chance: random.Random) -> None:
        fields = copy.deepcopy(sound)
        for _ in range(chance.choice((1, 1, 2, 4))):
            name = chance.choice(list(fields))
            how = chance.random()
            if how < 0.1:
                del fields[name]
            elif how < 0.2:
                fields[name[:-1] + chance.choice("xs_")] = fields[name]
            elif isinstance(fields[name], dict) and fields[name] and how < 0.5:
                fields[name][chance.choice(list(fields[name]))] = chance.choice([*VALUES, *SMALL])
            else:
                fields[name] = chance.choice([*VALUES, *SMALL, *SMALL])
        text = json.dumps(fields).encode()
        path.write_bytes(changed_bytes(text, chance) if chance.random() < 0.3 else text)
        config = DETRConfig.from_pretrained(folder)
        config.save_pretrained(folder)
        again = DETRConfig.from_pretrained(folder)
        first, second = config.to_dict(), again.to_dict()
        other = [name for name in first if name != "_name_or_path" and differ(first[name], second.get(name))]
        assert not other, f"after saving: {[(name, first[name], second.get(name)) for name in other]}"
        sizes = [getattr(config, name) for name in ("hidden_dim", "dim_feedforward", "num_queries", "num_labels")]
        if chance.random() < 0.02 and max(sizes) < 3000 and max(config.enc_layers, config.dec_layers) < 9:
            outputs = DETRForObjectDetection(config).eval()(torch.zeros(1, config.num_channels, 64, 64))
            assert outputs.logits.isfinite().all() and outputs.pred_boxes.isfinite().all()

    return Family(case)


def differ(one: Any, other: Any) -> bool:
    """Whether two fields do: NaN does not differ from itself, nor 0 from False, which a file leaves out."""
    return one != other and repr(one) != repr(other)


def weights(folder: Path) -> Family:
    """A weight file, one of two shards or their index changed: header, length, names, shapes, body."""
    model = tiny_model(**NARROW)
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    sound: dict[str, dict[str, bytes]] = {}
    for name, options in {"one": {}, "shards": {"max_shard_size": "150KB"}}.items():
        model.save_pretrained(folder / name, **options)
        sound[name] = {path.name: path.read_bytes() for path in (folder / name).iterdir()}
    assert len(sound["shards"]) > 3

    def case(chance: random.Random) -> None:
        kind = chance.choice(list(sound))
        name = chance.choice([name for name in sound[kind] if name != "config.json"])
        for other, content in sound[kind].items():
            (folder / kind / other).write_bytes(content)
        changed = (changed_index if name.endswith(".json") else changed_weights)(sound[kind][name], chance)
        if changed is None:
            (folder / kind / name).unlink()
        else:
            (folder / kind / name).write_bytes(changed)
        loaded = DETRForObjectDetection.from_pretrained(folder / kind).eval()
        assert all(tensor.isfinite().all() for tensor in loaded.state_dict().values())
        if chance.random() < 0.1:
            attempt(lambda: loaded(pixels).logits)

    return Family(case, (".safetensors", "index.json", "config.json", str(folder)))


def changed_weights(content: bytes, chance: random.Random) -> bytes | None:
    """Returns a safetensors file with its header, length or body changed; None for none."""
    how = chance.random()
    if how < 0.03:
        return None
    if how < 0.4:
        return changed_bytes(content, chance)
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    name = chance.choice([name for name in header if name != "__metadata__"])
    entry = header[name]
    if how < 0.55:
        header[chance.choice((name[:-1], name + ".x", "module." + name, ""))] = header.pop(name)
    elif how < 0.65:
        del header[name]
    elif how < 0.8:
        entry["shape"] = chance.choice(
            [[], [0], [2**40, 2**40], [-1], entry["shape"][::-1], [1, *entry["shape"]], "x"]
        )
    elif how < 0.9:
        entry["dtype"] = chance.choice(["F16", "BF16", "F64", "I64", "BOOL", "F8_E4M3", "X", 3, None])
    else:
        entry["data_offsets"] = chance.choice([[0, 0], [4, 2], [0, 2**62], [-4, 4], entry["data_offsets"][::-1], []])
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def changed_index(content: bytes, chance: random.Random) -> bytes | None:
    """Returns the index of shards with an entry or bytes changed; None for none."""
    how = chance.random()
    if how < 0.05:
        return None
    if how < 0.4:
        return changed_bytes(content, chance)
    index = json.loads(content)
    names = index["weight_map"]
    name = chance.choice(list(names))
    if how < 0.5:
        del names[name]
    elif how < 0.6:
        index["weight_map"] = chance.choice(VALUES)
    else:
        names[name] = chance.choice([*VALUES, "../one/model.safetensors", "config.json", *names.values()])
    return json.dumps(index).encode()


def data_sets(folder: Path) -> Family:
    """A file of a COCO, YOLO or Pascal VOC data set changed: load, check, prepare, collate."""
    sound: dict[str, dict[Path, bytes]] = {}
    for name, write in {"coco": layouts.write_coco, "yolo": layouts.write_yolo, "voc": layouts.write_voc}.items():
        write(folder / name)
        sound[name] = {path: path.read_bytes() for path in sorted((folder / name).rglob("*")) if path.is_file()}
    before: dict[Path, bytes] = {}
    processor = DETRImageProcessor(size=SIZE)

    def case(chance: random.Random) -> None:
        for path, content in before.items():
            path.write_bytes(content)
        before.clear()
        kind = chance.choice(list(sound))
        texts = [path for path in sound[kind] if path.suffix not in (".png", ".jpg")]
        path = chance.choice(texts if chance.random() < 0.85 else list(sound[kind]))
        before[path] = sound[kind][path]
        if path.suffix == ".json" and chance.random() < 0.7:
            content = json.loads(before[path])
            change_one_field(content, chance)
            path.write_text(json.dumps(content))
        else:
            path.write_bytes(changed_bytes(before[path], chance))
        if chance.random() < 0.25:
            assert check(folder / kind).text()
        data = load_detection_dataset(folder / kind)
        for split in data:
            rows = prepare(data[split], processor)
            batch = DetectionCollator(id2label=data.id2label)([rows[index] for index in range(len(rows))])
            assert batch["pixel_values"].isfinite().all()

    return Family(case)


def padded_batches(folder: Path) -> Family:
    """Batches of images of random sizes, with what lies under the padding and masks of every kind; some faulty."""
    model = tiny_model(**NARROW)
    dtypes = (torch.bool, torch.int64, torch.uint8, torch.float32, torch.int32)

    def case(chance: random.Random) -> None:
        generator = torch.Generator().manual_seed(chance.randrange(2**31))
        count = chance.randint(1, 4)
        sizes = [(chance.randint(1, 96), chance.randint(1, 96)) for _ in range(count)]
        height, width = (max(max(size[side] for size in sizes), 32) for side in (0, 1))
        mask = torch.zeros(count, height, width)
        pixels = torch.randn(count, 3, height, width, generator=generator)
        for index, (h, w) in enumerate(sizes):
            mask[index, :h, :w] = 1
        fault = chance.random()
        if fault < 0.1:
            mask = mask[:, : height - chance.randint(1, 8)]
        elif fault < 0.15:
            mask[chance.randrange(count)] = 0
        elif fault < 0.2:
            pixels[chance.randrange(count), 0, 0, 0] = chance.choice((torch.nan, torch.inf))
        elif fault < 0.25:
            pixels = chance.choice((pixels[:, :2], pixels[0], pixels[:0], (pixels * 50).to(torch.uint8)))
        mask = mask.to(chance.choice(dtypes))
        with torch.no_grad():
            found = model(pixels, pixel_mask=mask)
            boxes = DETRImageProcessor().post_process_object_detection(found, threshold=0.0, target_sizes=sizes)
            for result, (h, w) in zip(boxes, sizes, strict=True):
                x1, y1 = result["boxes"][:, 2], result["boxes"][:, 3]
                assert (result["boxes"] >= 0).all() and (x1 <= w).all() and (y1 <= h).all()
            order = torch.randperm(count, generator=generator)
            other = model(pixels[order], pixel_mask=mask[order])
        apart = (other.logits - found.logits[order]).abs().max().item()
        assert apart < 1e-3, f"the order of the batch changes logits by {apart}"

    return Family(case)


# Name -> what makes the family, and how many cases the whole run has.
FAMILIES: dict[str, tuple[Callable[[Path], Family], int]] = {
    "pictures": (pictures, 20_000),
    "annotations": (annotations, 50_000),
    "configurations": (configurations, 5_000),
    "weights": (weights, 5_000),
    "data-sets": (data_sets, 5_000),
    "padded-batches": (padded_batches, 2_000),
}
