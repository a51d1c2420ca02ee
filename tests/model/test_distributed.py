"""Several processes give one process's loss and gradients, whatever share of the objects each of them has."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from ..conftest import some_labels, tiny_model

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


def global_batch(shares: list[list[int]]):
    counts = [count for share in shares for count in share]
    pixel_values = torch.randn(len(counts), 3, 64, 64, generator=torch.Generator().manual_seed(1))
    return pixel_values, some_labels(*counts)


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
    for name, shares in SHARES.items():
        pixel_values, labels = global_batch(shares)
        start = sum(len(share) for share in shares[:rank])
        mine = slice(start, start + len(shares[rank]))
        model = DistributedDataParallel(tiny_model(dropout=0.0).train())
        results[name] = losses_and_gradients(model, pixel_values[mine], labels[mine])
        if name in AIDED:
            aided = DistributedDataParallel(tiny_model(dropout=0.0, **AIDS).train())
            results[f"{name}, aided"] = losses_and_gradients(aided, pixel_values[mine], labels[mine])
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


@pytest.mark.parametrize("name", [*SHARES, *(f"{name}, aided" for name in AIDED)])
def test_two_processes_give_one_processs_loss_and_gradients(name, results):
    aids = AIDS if name.endswith(", aided") else {}
    expected_losses, expected_gradients = losses_and_gradients(
        tiny_model(dropout=0.0, **aids).train(), *global_batch(SHARES[name.removesuffix(", aided")])
    )
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
