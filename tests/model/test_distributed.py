"""Several processes give one process's loss and gradients, whatever share of the objects each of them has."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from detr_hf import DETRForSegmentation

from ..conftest import NARROW, some_labels, tiny_config, tiny_model
from ..training.scenes import filled

# Objects of the images of each process.
SHARES = {
    "even": [[2, 1], [1, 2]],
    "uneven": [[5, 3], [1, 0]],
    "one process without objects": [[3, 2], [0, 0]],
    "none at all": [[0, 0], [0, 0]],
    "more objects than queries": [[9, 1], [2, 2]],
    "batches of different size": [[2, 1, 3], [4]],
}
# With aids whose losses are not random; "uneven" and "one process without objects" once more.
AIDED = ("uneven", "one process without objects")
AIDS = {"encoder_aux_head": True, "num_query_groups": 2}
# And with masks, joint or on a frozen detector.
MASKED = ("one process without objects", "none at all", "more objects than queries")
KINDS = {"aided": AIDED, "masked": MASKED, "frozen": ("one process without objects", "none at all")}
CASES = [*SHARES, *(f"{name}, {kind}" for kind, names in KINDS.items() for name in names)]


def model_of(case: str):
    kind = case.rpartition(", ")[2]
    if kind not in ("masked", "frozen"):
        return tiny_model(dropout=0.0, **NARROW, **(AIDS if kind == "aided" else {})).train()
    torch.manual_seed(0)
    model = DETRForSegmentation(tiny_config(dropout=0.0, freeze_detector=kind == "frozen", **NARROW))
    model.freeze()
    return model.train()


def shares_of(case: str) -> list[list[int]]:
    return SHARES[case if case in SHARES else case.rpartition(", ")[0]]


def global_batch(shares: list[list[int]]):
    counts = [count for share in shares for count in share]
    pixel_values = torch.randn(len(counts), 3, 64, 64, generator=torch.Generator().manual_seed(1))
    labels = some_labels(*counts)
    for label in labels:
        label["masks"] = filled(label["boxes"], (64, 64))
    return pixel_values, labels


def losses_and_gradients(model, pixel_values, labels):
    outputs = model(pixel_values, labels=labels)
    outputs.loss.backward()
    named = getattr(model, "module", model).named_parameters()
    losses = {name: value.detach() for name, value in outputs.loss_dict.items() if name.startswith("loss")}
    return {"loss": outputs.loss.detach(), **losses}, {name: p.grad for name, p in named if p.grad is not None}


def run_process(rank: int, world_size: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=os.environ["DETR_TEST_PORT"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    results = {}
    for case in CASES:
        shares = shares_of(case)
        pixel_values, labels = global_batch(shares)
        start = sum(len(share) for share in shares[:rank])
        mine = slice(start, start + len(shares[rank]))
        model = DistributedDataParallel(model_of(case))
        results[case] = losses_and_gradients(model, pixel_values[mine], labels[mine])
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory, free_port):
    folder = tmp_path_factory.mktemp("ranks")
    os.environ["DETR_TEST_PORT"] = str(free_port)
    mp.spawn(run_process, args=(2, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_give_one_processs_loss_and_gradients(name, results):
    expected_losses, expected_gradients = losses_and_gradients(model_of(name), *global_batch(shares_of(name)))
    if name.endswith("frozen"):  # what is only logged is each process's own
        expected_losses = {part: expected_losses[part] for part in ("loss", "loss_mask", "loss_dice")}
    for part, expected in expected_losses.items():
        mean = torch.stack([rank[name][0][part] for rank in results]).mean()
        assert torch.allclose(mean, expected, rtol=1e-5, atol=1e-6), part
    for rank in results:
        gradients = rank[name][1]
        assert gradients.keys() == expected_gradients.keys()
        for parameter, expected in expected_gradients.items():
            scale = expected.abs().max().clamp(min=1e-3)
            assert (gradients[parameter] - expected).abs().max() <= 1e-5 * scale + 1e-7, parameter


def test_a_process_that_evaluates_alone_does_not_wait_for_the_others(free_port):
    """Without gradients the criterion makes no collective call: rank 0 may evaluate while the others do not."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{free_port}", rank=0, world_size=1)
    try:
        calls = []
        original, dist.all_reduce = dist.all_reduce, lambda *a, **k: calls.append(a)
        model = tiny_model()
        with torch.no_grad():
            model(torch.randn(1, 3, 64, 64), labels=some_labels(1))
        assert not calls
        model(torch.randn(1, 3, 64, 64), labels=some_labels(1))
        assert len(calls) == 1
    finally:
        dist.all_reduce = original
        dist.destroy_process_group()
