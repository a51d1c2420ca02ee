"""The loopback Hub, and a process beside the tests whose `huggingface_hub` talks to it.

The client reads its settings when it is imported, and the test process has it set offline. So what pushes and loads
runs in a process of its own, started once, by plain functions (`actions.py`) that take and return plain data.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from .server import HubServer


def client_environment(endpoint: str, home: Path, **changes: str | None) -> dict[str, str]:
    """The environment of a process whose Hub is `endpoint`; None takes a variable away."""
    settings = {
        "HF_ENDPOINT": endpoint,
        "HF_TOKEN": "hf_me",
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parent.parent.parent),
    }
    merged = {**os.environ, **settings, **changes}
    return {name: value for name, value in merged.items() if value is not None}


class Client:
    """Calls functions of `actions.py` in a process of its own: `client(actions.load, "me/a")`."""

    def __init__(self, environment: dict[str, str]):
        before = dict(os.environ)
        os.environ.clear()
        os.environ.update(environment)
        try:  # the process inherits the environment when it starts, with its first task
            self.pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
            self.pid = self.pool.submit(os.getpid).result()
        finally:
            os.environ.clear()
            os.environ.update(before)

    def __call__(self, action: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        return self.pool.submit(action, *arguments, **options).result()


@pytest.fixture(scope="session")
def running_hub() -> Iterator[HubServer]:
    """The server, for the whole session."""
    server = HubServer().start()
    yield server
    server.stop()


@pytest.fixture
def hub(running_hub) -> Iterator[HubServer]:
    """The server without any repository or fault."""
    running_hub.forget()
    yield running_hub
    running_hub.forget()


@pytest.fixture(scope="session")
def client(running_hub, tmp_path_factory) -> Iterator[Client]:
    """A process that is logged in as `me`."""
    client = Client(client_environment(running_hub.endpoint, tmp_path_factory.mktemp("hf_home")))
    yield client
    client.pool.shutdown()
