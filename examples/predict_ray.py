"""Detects in a folder of pictures with Ray Data: on one machine or a cluster, and on from where it was stopped.

    python examples/predict_ray.py photos/ --output runs/ray
    python examples/predict_ray.py --model facebook/detr-resnet-50 s3/photos/ --address auto --workers 16 --gpus 1

Without a folder it draws 64 scenes and finds 295 digits in them, a line a picture. That took three minutes on two
cores that a dozen other programs used, most of it Ray's own start.

Into the output folder go `found/*.json`, a line a picture with its objects or its error, in no order. Killed at any
moment, also with `kill -9`, the same command goes on behind the batches that Ray noted in `checkpoint` (in beta
there); what came into the folder since is found too. On a cluster both folders are ones that all machines see. For one
machine or a job array `detr-hf predict --out` needs no engine and keeps the order. Needs `pip install ray` and the
extra `predict`.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import ray
from pyarrow import parquet
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata
from ray.data.checkpoint import CheckpointConfig

from detr_hf import Detections, Detector

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


class Batches(Datasource):
    """Paths of pictures, a block for each batch of them.

    Ray saves and notes a block at a time. It reads small files of paths as one block, however many they are, and would
    save nothing before the end.
    """

    def __init__(self, paths: list[str], size: int):
        super().__init__()
        self.blocks = [pyarrow.table({"path": paths[start : start + size]}) for start in range(0, len(paths), size)]

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        """Returns a task a block, whatever Ray would like."""
        return [
            ReadTask(partial(list, [block]), BlockMetadata(block.num_rows, block.nbytes, None, None))
            for block in self.blocks
        ]

    def estimate_inmemory_data_size(self) -> int:
        """Returns the bytes of all paths."""
        return sum(block.nbytes for block in self.blocks)


class Finder:
    """A detector in a process of its own, which Ray gives batches of paths."""

    def __init__(self, model: str, threshold: float):
        self.detector = Detector.from_pretrained(model)
        self.threshold = threshold

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Returns the paths and what is found in each, as JSON."""
        paths = [str(path) for path in batch["path"]]
        outcomes = self.detector.outcomes(paths, self.threshold, batch_size=8)
        return {"path": paths, "found": [json.dumps(record(outcome)) for outcome in outcomes]}


def record(outcome: Any) -> dict[str, Any]:
    """Returns the objects of a picture, or why there are none."""
    if isinstance(outcome, Detections):
        return outcome.record(rounded=True)
    return {"error": str(outcome.error)}


def main() -> None:
    """Starts Ray, goes on with what is left, and says how much there is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", help="of pictures; by default scenes of digits are drawn")
    parser.add_argument("--model", default="detr-digits", help="a folder or Hub id of any DETR")
    parser.add_argument("--threshold", type=float, default=0.7)
    parser.add_argument("--output", type=Path, default=Path("runs/ray"))
    parser.add_argument("--address", help="of a cluster, as 'auto'; by default Ray starts here")
    parser.add_argument("--workers", type=int, default=1, help="processes with a detector each")
    parser.add_argument("--gpus", type=float, default=0, help="of each")
    parser.add_argument("--batch", type=int, default=16, help="pictures that are saved together")
    options = parser.parse_args()
    folder = options.folder or draw_scenes(options.output / "scenes")
    paths = sorted(str(path.resolve()) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    # Going on takes logical processors for the detector, for reading, and for the filter of what is done: with two in
    # all Ray waits for ever.
    here = {} if options.address else {"num_cpus": 5 + options.workers, "include_dashboard": False}
    ray.init(address=options.address, log_to_driver=False, **here)
    context, noted = ray.data.DataContext.get_current(), options.output.resolve() / "checkpoint"
    context.checkpoint_config = CheckpointConfig("path", str(noted), delete_checkpoint_on_success=False)
    done = sum(len(parquet.read_table(file)) for file in noted.glob("*.parquet") if ".pending" not in file.name)
    batches = Batches(paths, options.batch)
    ray.data.read_datasource(batches, override_num_blocks=len(batches.blocks)).map_batches(
        Finder,
        fn_constructor_kwargs={"model": options.model, "threshold": options.threshold},
        batch_size=options.batch,
        compute=ray.data.ActorPoolStrategy(size=options.workers),
        num_gpus=options.gpus,
    ).write_json(str((options.output / "found").resolve()))
    lines = [json.loads(line) for file in (options.output / "found").glob("*.json") for line in file.open()]
    found = [json.loads(line["found"]) for line in lines]
    objects = sum(len(one.get("objects", ())) for one in found)
    failed = sum("error" in one for one in found)
    print(f"{len({line['path'] for line in lines})} of {len(paths)} pictures in {len(lines)} lines, {objects} objects")
    print(f"{failed} could not be read, {done} were done before")
    if len(lines) != len(paths):
        raise SystemExit("Not every picture is there once: is the output folder that of the same pictures?")


def draw_scenes(folder: Path, count: int = 64) -> Path:
    """Returns a folder of scenes of digits."""
    from detr_hf.data import DigitScenes

    scenes = DigitScenes("validation", count)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        if not (folder / f"{number}.jpg").exists():
            scenes[number]["image"].save(folder / f"{number}.jpg")
    return folder


if __name__ == "__main__":
    main()
