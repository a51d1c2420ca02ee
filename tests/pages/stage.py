"""What the pages take for granted: checkpoints on a Hub, photographs, data sets. Small ones, made on the spot.

`facebook/detr-resnet-50`, its panoptic sister and `owner/name` are on the tests' loopback Hub; `street.jpg`,
`photos/`, `path/to/data` and the like lie in the folder in which the blocks of a page run, each page in its own copy.
"""

import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import PIL.Image
import PIL.ImageOps

ROOT = Path(__file__).resolve().parents[2]
OF_CHECKOUT = ("detr_hf", "tests", "benchmarks", "examples", "docs", "model_cards")
SIZE = {"shortest_edge": 96, "longest_edge": 160}
STEPS = 4
NAMES = {0: "cat", 1: "dog", 2: "owl"}
STUFF = {3: "sky", 4: "grass"}


def train_shortly() -> None:
    """Lets every training of this process end after four steps, on small pictures, and a search after two."""
    from transformers import Trainer, TrainerCallback

    from detr_hf import DETRTrainer
    from detr_hf.training import trainer

    class Short(TrainerCallback):
        """Measures, saves and stops when the steps are done."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step >= STEPS:
                control.should_training_stop = True
                control.should_evaluate = args.eval_strategy != "no"
                control.should_save = args.save_strategy != "no"

    begin = Trainer.__init__

    def shortened(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        self.add_callback(Short())

    Trainer.__init__ = shortened
    search = DETRTrainer.hyperparameter_search
    DETRTrainer.hyperparameter_search = lambda *args, **kwargs: search(*args, **{"n_trials": 2, **kwargs})
    processor_of = trainer.processor_of

    def small_processor_of(model: Any) -> Any:
        processor = processor_of(model)
        processor.size = type(processor.size)(**SIZE)
        return processor

    trainer.processor_of = small_processor_of


def benchmark_shortly() -> None:
    """Lets benchmarks of this process draw few scenes, and train their backbone on them for two steps."""
    from benchmarks import convergence_tasks

    convergence_tasks.TRAIN_SCENES, convergence_tasks.VALIDATION_SCENES, convergence_tasks.PRETRAIN_STEPS = 32, 4, 2


def certain(model: Any) -> Any:
    """Returns a random model whose queries give different answers, and are sure of them."""
    import torch

    with torch.no_grad():
        image = torch.nn.functional.interpolate(torch.randn(1, 3, 8, 12), size=(64, 96), mode="bilinear")
        states = model(image).last_hidden_state[0]
        model.class_embed.weight *= 15 / (states - states.mean(dim=0)).norm(dim=-1).mean()
        model.class_embed.bias.copy_(-model.class_embed.weight @ states.mean(dim=0))
    return model


def checkpoints(folder: Path) -> dict[str, Path]:
    """Writes what pages name by its Hub id, as transformers writes it, and the original's files beside it."""
    import timm
    from safetensors.torch import save_file

    from detr_hf import DETRImageProcessor
    from tests.checkpoints.foreign import NARROW, original_args, save_original
    from tests.conftest import tiny_model, tiny_segmenter

    def both(**changes: Any) -> tuple[Any, Any]:
        with_stuff = {"id2label": NAMES | STUFF, "hidden_dim": 128, "nheads": 8, "num_queries": 40}
        return certain(tiny_model(**changes)), tiny_segmenter(**with_stuff, **changes)

    found = {}
    for model, name in zip(both(backbone="test_resnet"), ("detr-resnet-50", "detr-resnet-50-panoptic"), strict=True):
        stuff = {"label_ids_to_fuse": sorted(STUFF)} if model.has_mask_head else {}
        found[f"facebook/{name}"] = folder / name
        model.to_transformers().save_pretrained(folder / name)
        DETRImageProcessor(size=SIZE, **stuff).save_pretrained(folder / name)
    originals = certain(tiny_model(backbone_kwargs=NARROW)), both()[1]
    for model, name in zip(originals, ("detr-r50-e632da11.pth", "detr-r50-panoptic-00ce5173.pth"), strict=True):
        save_original(model, folder / name, original_args(model.config, masks=model.has_mask_head))
    for name in ("model", "my_model"):
        shutil.copytree(folder / "detr-resnet-50", folder / name)
    shutil.copytree(folder / "detr-resnet-50-panoptic", folder / "MODEL")
    save_file(timm.create_model("tf_efficientnet_lite0").state_dict(), folder / "tf_efficientnet_lite0.safetensors")
    found["timm/resnet50.tv_in1k"] = folder / "resnet50"
    (folder / "resnet50").mkdir()
    save_file(timm.create_model("resnet50").state_dict(), folder / "resnet50" / "model.safetensors")
    return found


def parquet(splits: Any) -> dict[str, bytes]:
    """Returns the files of a data set repository."""
    files = {}
    for name, rows in splits.items():
        written = io.BytesIO()
        rows.to_parquet(written)
        files[f"data/{name}-00000-of-00001.parquet"] = written.getvalue()
    return files


def segments() -> Any:
    """Returns rows of pictures with segments, whose classes have no names."""
    import numpy as np
    from datasets import Dataset, Features, Image, Value

    one = {"id": Value("int64"), "category_id": Value("int64"), "bbox": [Value("int64")], "area": Value("int64")}
    features = Features({"image": Image(), "label": Image(), "segments_info": [one | {"iscrowd": Value("int64")}]})
    ids = np.zeros((48, 64, 3), np.uint8)
    ids[:20, :, 0], ids[20:, :, 0], ids[8:40, 8:24, 0] = 1, 2, 3
    boxes = {1: [0, 0, 64, 20], 2: [0, 20, 64, 28], 3: [8, 8, 16, 32]}
    info = [
        {"id": id_, "category_id": id_ - 1, "bbox": box, "area": int((ids[..., 0] == id_).sum()), "iscrowd": 0}
        for id_, box in boxes.items()
    ]
    pixels = PIL.Image.fromarray(ids * 60)
    return Dataset.from_list(
        [{"image": pixels, "label": PIL.Image.fromarray(ids), "segments_info": info}] * 2, features=features
    )


def pictures(folder: Path) -> None:
    """Draws scenes of digits as photographs, and a film and a shard of them."""
    import av

    from detr_hf.data import DigitScenes

    scenes = DigitScenes("validation", length=6, seed=1)
    drawn = [scenes.draw(index, (96, 128))["image"].convert("RGB") for index in range(6)]
    (folder / "photos").mkdir()
    (folder / "films").mkdir()
    (folder / "shards").mkdir()
    scenes.draw(0, (480, 640))["image"].convert("RGB").save(folder / "street.jpg", quality=95)
    drawn[1].save(folder / "scene.png")
    for number, image in enumerate(drawn[2:]):
        image.save(folder / "photos" / f"{number}.jpg", quality=95)
    with tarfile.open(folder / "shards" / "0.tar", "w") as shard:
        shard.add(folder / "scene.png", "0.png")
    with av.open(str(folder / "films" / "film.mp4"), "w") as film:
        stream = film.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for image in drawn:
            film.mux(stream.encode(av.VideoFrame.from_image(image)))
        film.mux(stream.encode())


def data_sets(folder: Path) -> None:
    """Writes small data sets in the layouts that pages name."""
    from tests.data import layouts
    from tests.hub.actions import scenes

    (folder / "path" / "to").mkdir(parents=True)
    layouts.write_coco2017(folder / "path/to/coco")
    layouts.write_yolo(folder / "path/to/yolo")
    layouts.write_voc(folder / "path/to/voc")
    layouts.write_hf(folder / "path/to/saved")
    layouts.write_roboflow(folder / "path/to/roboflow")
    for name in ("path/to/data", "cards", "bccd"):
        layouts.write_coco(folder / name)
    remove_empty(folder / "path/to/data")
    layouts.write_panoptic(folder / "my_coco")
    layouts.write_coco(folder / "my_coco")
    validation_of_segments(folder / "my_coco")
    scenes(str(folder / "path/to/digits"), count=12)


def remove_empty(folder: Path) -> None:
    """Removes the training pictures without objects: a part of so few that is set aside may be one of these."""
    path = folder / "annotations_train.json"
    content = json.loads(path.read_text("utf-8"))
    used = {one["image_id"] for one in content["annotations"]}
    for image in content["images"]:
        if image["id"] not in used:
            (folder / "train" / image["file_name"]).unlink()
    content["images"] = [image for image in content["images"] if image["id"] in used]
    path.write_text(json.dumps(content), "utf-8")


def validation_of_segments(folder: Path) -> None:
    """Gives panoptic data a validation split: the same segments, in pictures of other colours."""
    shutil.copytree(folder / "panoptic_train", folder / "panoptic_val")
    shutil.copy(folder / "panoptic_train.json", folder / "panoptic_val.json")
    for path in (folder / "panoptic_train").iterdir():
        PIL.ImageOps.invert(PIL.Image.open(folder / "train" / path.name)).save(folder / "val" / path.name)


class Stage:
    """A Hub with the checkpoints, and folders to work in."""

    def __init__(self, folder: Path, hub: Any):
        self.folder, self.hub = folder, hub
        self.template = folder / "template"
        self.template.mkdir(parents=True)
        for repo, written in checkpoints(self.template).items():
            hub.put(repo, {path.name: path.read_bytes() for path in written.iterdir()})
        (self.template / ".venv/bin").mkdir(parents=True)
        (self.template / ".venv/bin/activate").touch()  # the environment is the one that is at work
        pictures(self.template)
        data_sets(self.template)
        from tests.data.layouts import hf_splits

        splits = hf_splits()
        hub.put("owner/name", parquet({**splits, "test": splits["val"]}), kind="datasets")
        hub.put("nielsr/ade20k-panoptic-demo", parquet({"train": segments()}), kind="datasets")

    @contextmanager
    def folder_of(self, page: str) -> Iterator[Path]:
        """A context with the folder in which the blocks of a page run."""
        work = self.folder / page.replace("/", "_")
        shutil.copytree(self.template, work)
        for name in OF_CHECKOUT:
            (work / name).symlink_to(ROOT / name)
        try:
            yield work
        finally:
            shutil.rmtree(work)
