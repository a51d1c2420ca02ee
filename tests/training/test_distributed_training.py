"""Two processes with half a batch each are one process with the whole: same losses, same weights, same AP."""

import json
import shutil
from pathlib import Path

import pytest
import torch.distributed as dist

from .pairs import join_pair, run_pair
from .scenes import Scenes, digest, micro_model, trainer

pytestmark = pytest.mark.slow  # minutes; loss and gradients of two processes are in tests/model/test_distributed.py
STEPS = 20
SAME = (
    64,
    64,
)  # with pictures of several sizes the padding depends on the batch, and the backbone sees it at the border
EVALUATED = 7  # over two processes in batches of 3: 3 and 3, then 1 and a filler


def run(folder: Path, batch_size: int) -> dict:
    """Losses of SGD over 20 steps, the sum of the weights, and the metrics of an evaluation."""
    train = trainer(
        folder,
        micro_model(dropout=0.0),
        train=Scenes(12, heights=SAME),
        evaluation=Scenes(EVALUATED, noise=False, heights=SAME),
        per_device_train_batch_size=batch_size,
        max_steps=STEPS,
        save_strategy="no",
        optim="sgd",
        learning_rate=0.05,
        backbone_learning_rate=0.01,
        head_learning_rate=0.05,
        warmup_steps=0,
        lr_drop=0,
    )
    train.train()
    history = [entry for entry in train.state.log_history if "loss" in entry]
    names = ("loss", "grad_norm", "loss_ce", "loss_bbox", "loss_giou", "class_error")
    metrics = {
        name: value for name, value in train.evaluate().items() if "second" not in name and "runtime" not in name
    }
    images = (
        len(train.predict(Scenes(EVALUATED, noise=False, heights=SAME)).predictions) // train.model.config.num_queries
    )
    return {
        "curves": {name: [entry[name] for entry in history] for name in names},
        "metrics": metrics,
        "images": images,
    }


def resume(folder: Path, rank: int) -> dict:
    """Hashes of the weights after four steps straight, and after two and a restart, with dropout."""
    options = {"max_steps": 4, "save_steps": 2, "ema_decay": 0.9, "per_device_train_batch_size": 2}
    straight = trainer(folder / "straight", **options)
    straight.train()
    if rank == 0:
        shutil.copytree(folder / "straight" / "checkpoint-2", folder / "resumed" / "checkpoint-2")
    dist.barrier()
    resumed = trainer(folder / "resumed", micro_model(seed=9), **options)
    resumed.train(resume_from_checkpoint=True)
    return {"straight": digest(straight.model), "resumed": digest(resumed.model)}


def run_process(rank: int, port: int, folder: str) -> None:
    join_pair(rank, port)
    result = run(Path(folder) / "pair", batch_size=2) | resume(Path(folder) / "resume", rank)
    (Path(folder) / f"{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    run_pair(run_process, str(folder))
    pair = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    return run(folder / "single", batch_size=4), pair


def test_the_loss_curve_is_the_same_over_20_steps(results):
    single, pair = results
    for name, curve in single["curves"].items():
        assert len(curve) == STEPS
        tolerance = {"grad_norm": 1e-3, "class_error": 1e-3}.get(name, 1e-4)
        assert pair[0]["curves"][name] == pytest.approx(curve, rel=tolerance, abs=1e-5), name
    assert max(single["curves"]["loss"]) - min(single["curves"]["loss"]) > 0.1  # it went somewhere


def test_a_sharded_evaluation_counts_each_picture_once(results):
    single, pair = results
    assert single["images"] == EVALUATED
    assert pair[0]["images"] == pair[1]["images"] == EVALUATED
    named = [name for name in single["metrics"] if name.startswith(("eval_ap", "eval_ar", "eval_loss", "eval_class"))]
    assert len(named) >= 10
    for process in pair:
        for name in named:
            assert process["metrics"][name] == pytest.approx(single["metrics"][name], rel=1e-4, abs=1e-6), name


def test_two_processes_resume_exactly(results):
    hashes = {process[run] for process in results[1] for run in ("straight", "resumed")}
    assert len(hashes) == 1
