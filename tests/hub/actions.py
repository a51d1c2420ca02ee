"""What the tests do in the process that talks to the loopback Hub: functions of plain data, and no tests."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from detr_hf import DETRForObjectDetection, DETRImageProcessor
from detr_hf.hub import push, push_dataset, verify

from ..conftest import tiny_model, tiny_segmenter

THIN = {"backbone_kwargs": {"channels": [8, 16, 24, 32], "layers": [1, 1, 1, 1], "stem_type": "deep", "stem_width": 8}}
SIZE = {"shortest_edge": 64, "longest_edge": 96}


def thin_model(seed: int = 0, **changes: Any) -> DETRForObjectDetection:
    """A tiny DETR of about a megabyte."""
    return tiny_model(seed, **{**THIN, **changes})


def digest(model: torch.nn.Module) -> str:
    """One hash of all weights, by name."""
    return digest_of(model.state_dict())


def digest_of(state_dict: dict[str, torch.Tensor]) -> str:
    """The same of a state dict."""
    total = hashlib.sha256()
    for name, tensor in sorted(state_dict.items()):
        total.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return total.hexdigest()


def picture(seed: int = 0) -> Image.Image:
    """A small picture of noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (60, 80, 3), dtype=np.uint8))


@torch.no_grad()
def outputs_of(model: Any, processor: Any) -> list[list[float]]:
    """Logits, boxes and masks, if there are any, for the picture, as numbers."""
    outputs = model.eval()(**processor(picture(), return_tensors="pt"))
    fields = [outputs.get(name) for name in ("logits", "pred_boxes", "pred_masks")]
    return [field.flatten().tolist() for field in fields if field is not None]


def push_model(repo: str, seed: int = 0, changes: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    """Pushes a thin model by `push_to_hub`; the commit, the weights' digest and the outputs."""
    model = thin_model(seed, **(changes or {}))
    processor = DETRImageProcessor(size=SIZE)
    info = model.push_to_hub(repo, **{"processor": processor, **options})
    return {
        "oid": info.oid,
        "pr": getattr(info, "pr_url", None),
        "digest": digest(model),
        "outputs": outputs_of(model, processor),
        "training": model.training,
    }


def push_plain(repo: str, **options: Any) -> dict[str, Any]:
    """Pushes a model that plain DETR can express."""
    model, processor = tiny_model(), DETRImageProcessor(size=SIZE)
    push(model, repo, processor=processor, **options)
    plain = digest(model.to_transformers()) if options.get("format") == "transformers" else None
    return {"digest": digest(model), "plain_digest": plain, "outputs": outputs_of(model, processor)}


def push_segmenter(repo: str, **options: Any) -> dict[str, Any]:
    """Pushes a model with masks and a stuff class, that plain DETR can express."""
    model = tiny_segmenter(backbone="test_resnet", nheads=8)
    model.class_embed.bias.data[-1] -= 10  # every query is an object
    processor = DETRImageProcessor(size=SIZE, label_ids_to_fuse=[2])
    push(model, repo, processor=processor, **options)
    plain = digest(model.to_transformers()) if options.get("format") == "transformers" else None
    return {"digest": digest(model), "plain_digest": plain, "outputs": outputs_of(model, processor)}


def push_after_training(repo: str) -> dict[str, Any]:
    """Pushes a model after two steps with training-only aids; what it computes without them."""
    model = thin_model(num_query_groups=2, num_denoising=4, encoder_aux_head=True)
    processor = DETRImageProcessor(size=SIZE)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    batch = processor(picture(), return_tensors="pt")
    labels = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}]
    model.train()
    for _ in range(2):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    push(model, repo, processor=processor)
    assert model.training and model.config.has_training_aids  # the model itself goes on as it was
    kept = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("training_aids.")}
    return {"digest": digest_of(kept), "outputs": outputs_of(model, processor)}


def load(repo: str, **options: Any) -> dict[str, Any]:
    """Loads by the package: the weights' digest, and the outputs with the repository's own processor."""
    model = DETRForObjectDetection.from_pretrained(repo, **options)
    where = {name: options[name] for name in ("revision", "token", "cache_dir") if name in options}
    processor = DETRImageProcessor.from_pretrained(repo, **where)
    return {"digest": digest(model), "outputs": outputs_of(model, processor), "size": dict(processor.size)}


def load_from(folder: str) -> str:
    """The digest of a model in a folder."""
    return digest(DETRForObjectDetection.from_pretrained(folder))


def verified(repo: str, **options: Any) -> dict[str, str]:
    """The files that `verify` found whole."""
    return verify(repo, **options).files


def validate_card(text: str) -> None:
    """What `huggingface_hub` and the Hub say of a card."""
    from huggingface_hub import ModelCard

    ModelCard(text).validate()


def scenes(folder: str, count: int = 4) -> str:
    """Writes a COCO data set of drawn digits, with a train and a val split, and returns its folder."""
    from detr_hf.data.digits import DigitScenes

    root = Path(folder)
    for split, kind in (("train", "train"), ("val", "validation")):
        source = DigitScenes(kind, length=count, objects_per_scene=(1, 3), seed=3)
        (root / split).mkdir(parents=True)
        categories = [{"id": label + 5, "name": name} for label, name in source.id2label.items()]
        content: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}
        for index in range(count):
            scene = source.draw(index, (64, 80))
            scene["image"].save(root / split / f"{index}.png")
            content["images"].append({"id": index, "file_name": f"{index}.png", "width": 80, "height": 64})
            for box, label in zip(scene["objects"]["bbox"], scene["objects"]["category"], strict=True):
                number = len(content["annotations"])
                place = {"id": number, "image_id": index, "category_id": label + 5}
                content["annotations"].append({**place, "bbox": list(box), "area": box[2] * box[3], "iscrowd": 0})
        (root / split / "_annotations.coco.json").write_text(json.dumps(content))
    return folder


def push_scenes(repo: str, folder: str) -> list[Any]:
    """Pushes a data set, loads it back, and returns what both hold."""
    from detr_hf import load_detection_dataset

    before = load_detection_dataset(folder)
    push_dataset(before, repo, private=True)
    return [rows_of(before), rows_of(load_detection_dataset(repo))]


def rows_of(data: Any) -> dict[str, Any]:
    """Class names and rows of a data set, pictures as the bytes of their pixels."""
    return {
        "id2label": data.id2label,
        **{
            name: [
                {
                    **{key: row[key] for key in ("image_id", "file_name", "width", "height", "objects")},
                    "pixels": hashlib.sha256(row["image"].convert("RGB").tobytes()).hexdigest(),
                }
                for row in rows
            ]
            for name, rows in data.items()
        },
    }


def train_and_push(folder: str, output: str, **arguments: Any) -> dict[str, Any]:
    """Trains 30 steps on drawn scenes with pushes on the way, then pushes by hand."""
    from detr_hf import DETRTrainer, DETRTrainingArguments, load_detection_dataset

    logging.getLogger("detr_hf").setLevel(logging.INFO)
    data = load_detection_dataset(folder)
    model = thin_model(id2label=data.id2label, label2id=data.label2id)
    args = DETRTrainingArguments(
        output,
        **{
            "max_steps": 30,
            "per_device_train_batch_size": 2,
            "eval_strategy": "steps",
            "save_strategy": "steps",
            "eval_steps": 10,
            "save_steps": 10,
            "logging_steps": 5,
            "report_to": "none",
            "use_cpu": True,
            "augment": "none",
            "push_to_hub": True,
            "hub_strategy": "every_save",
            "hub_always_push": True,
            "hub_model_id": "me/trained",
            "disable_tqdm": True,
            **arguments,
        },
    )
    trainer = DETRTrainer(model, args, data, processing_class=DETRImageProcessor(size=SIZE))
    trainer.train()
    info = trainer.push_to_hub(license="apache-2.0", dataset="drawn digits")
    metrics = None if trainer.last_evaluation is None else trainer.last_evaluation.to_dict()
    return {
        "oid": info.oid,
        "digest": digest(trainer.model),
        "metrics": metrics,
        "files": sorted(map(str, Path(output).iterdir())),
    }


def saved_files(folder: str) -> list[str]:
    """What a plain `save_pretrained` writes in this process."""
    thin_model().save_pretrained(folder)
    return sorted(path.name for path in Path(folder).iterdir())


def push_with_data(repo: str, folder: str, **options: Any) -> None:
    """Pushes a model together with the data set that it is for."""
    from detr_hf import load_detection_dataset

    data = load_detection_dataset(scenes(folder))
    model = thin_model(id2label=data.id2label, label2id=data.label2id)
    push(model, repo, processor=DETRImageProcessor(size=SIZE), data=data, license="apache-2.0", **options)


def size_of(content: bytes) -> tuple[int, int]:
    """Width and height of an encoded picture."""
    from io import BytesIO

    return Image.open(BytesIO(content)).size


def auto_load(repo: str) -> str:
    """The module of the class that the auto class takes."""
    from transformers import AutoModelForObjectDetection

    return type(AutoModelForObjectDetection.from_pretrained(repo)).__module__


def snapshot(repo: str, folder: str) -> None:
    """Downloads a whole repository with the Hub's own client."""
    from huggingface_hub import snapshot_download

    snapshot_download(repo, local_dir=folder)
