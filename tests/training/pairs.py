"""Two processes that train together, as torchrun starts them."""

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as mp
from accelerate.state import AcceleratorState, GradientState, PartialState


def run_pair(process: Callable[..., None], *args: Any) -> None:
    """Runs `process(rank, port, *args)` twice at once; each calls `join_pair(rank, port)` first."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.start_processes(process, args=(port, *args), nprocs=2, start_method="spawn")


def join_pair(rank: int, port: int) -> None:
    """Makes this process one of two, with one thread."""
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2"
    )
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    torch.set_num_threads(1)
