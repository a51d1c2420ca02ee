"""FSDP2 in two processes is DDP in two processes, with masks: losses, metrics, saved weights, a resumed run.

accelerate shards on GPUs only. Here it is told that the CPU is one, and the tensors travel by gloo; what is sharded,
gathered, saved and loaded is the same code.
"""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate import state
from accelerate.utils import DistributedType
from safetensors.torch import load_file

from detr_hf import DETRForSegmentation

from .pairs import join_pair, run_pair
from .scenes import Scenes, micro_model, trainer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SAME = (64, 64)
OPTIONS = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "per_device_train_batch_size": 2}


def shard_on_the_cpu() -> None:
    """Makes accelerate take the CPU for a device that it shards on."""

    def set_device(self) -> None:
        self.device = torch.device("cpu")

    state.PartialState._prepare_backend = lambda *args, **options: ("gloo", DistributedType.MULTI_GPU)
    state.PartialState.set_device = set_device


def refusal_of_sharding(root: Path) -> str | None:
    try:
        trainer(root / "refused", fsdp=True)
    except ValueError as error:
        return str(error)
    return None


def run_process(rank: int, port: int, folder: str, sharded: bool) -> None:
    join_pair(rank, port)
    dist.init_process_group("gloo")
    if sharded:
        shard_on_the_cpu()
    root = Path(folder)
    options = {**OPTIONS, **({"fsdp": True} if sharded else {})}
    masks = {"heights": SAME, "masks": True}
    data = {"train": Scenes(12, **masks), "evaluation": Scenes(7, noise=False, **masks)}
    run = trainer(root / "run", micro_model(dropout=0.0, masks=True), **data, **options)
    run.train()
    metrics = run.evaluate()
    run.save_model(str(root / "final"))
    again = trainer(root / "again", micro_model(9, masks=True, dropout=0.0), **data, **options)
    again.train(resume_from_checkpoint=str(root / "run" / "checkpoint-2"))
    result = {
        "sharded": run.is_fsdp_enabled and type(next(run.model_wrapped.parameters())).__name__ == "DTensor",
        "losses": [entry["loss"] for entry in run.state.log_history if "loss" in entry],
        "resumed": [entry["loss"] for entry in again.state.log_history if "loss" in entry],
        "metrics": {name: metrics[name] for name in ("eval_loss", "eval_ap", "eval_ar100")},
        "refused": refusal_of_sharding(root),
    }
    (root / f"{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    found = {}
    for sharded in (False, True):
        folder = tmp_path_factory.mktemp("sharded" if sharded else "whole")
        run_pair(run_process, str(folder), sharded)
        found[sharded] = (folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)])
    return found


def test_sharded_weights_train_as_whole_ones(results):
    (_, whole), (_, shards) = results[False], results[True]
    assert all(process["sharded"] for process in shards) and not any(process["sharded"] for process in whole)
    assert len(shards[0]["losses"]) == 4 and max(shards[0]["losses"]) - min(shards[0]["losses"]) > 0.1
    assert shards[0]["losses"] == pytest.approx(whole[0]["losses"], rel=1e-5)
    for process in shards:
        assert process["metrics"] == pytest.approx(whole[0]["metrics"], abs=1e-5)


def test_what_is_saved_is_a_whole_model(results):
    whole, shards = (load_file(results[sharded][0] / "final" / "model.safetensors") for sharded in (False, True))
    assert whole.keys() == shards.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(shards[name], tensor, atol=1e-5, rtol=1e-4, msg=name)
    DETRForSegmentation.from_pretrained(results[True][0] / "final")
    DETRForSegmentation.from_pretrained(results[True][0] / "run" / "checkpoint-4")


def test_a_sharded_run_resumes(results):
    for process in results[True][1]:
        assert process["resumed"] == pytest.approx(process["losses"], rel=1e-6)


def test_sharding_that_would_be_ignored_is_refused(results):
    for process in results[False][1]:
        assert "fsdp would be ignored here" in process["refused"]
    assert all(process["refused"] is None for process in results[True][1])
