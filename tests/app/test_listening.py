"""Ports, the folder for what is sent, and the polite end."""

import os
import signal
import socket
import tempfile
from pathlib import Path

import pytest

from detr_hf.app.listening import ended_by_signals, free_port, sent_files


def test_a_taken_port_is_named_with_one_that_is_free():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"Port {port} of 127\.0\.0\.1 is taken.*--port ") as caught:
            free_port("127.0.0.1", port)
        other = int(str(caught.value).rpartition(" ")[2].rstrip("."))
        assert free_port("127.0.0.1", other) == other != port
    assert free_port("127.0.0.1", 0) > 0


def test_a_host_that_is_not_this_machine_is_refused():
    with pytest.raises(OSError, match="this machine cannot listen there"):
        free_port("192.0.2.1", 7860)


def test_what_was_sent_is_gone_afterwards(monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "before")
    with sent_files():
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        (folder / "a.png").touch()
        assert folder.parent == Path(tempfile.gettempdir())
    assert not folder.exists() and os.environ["GRADIO_TEMP_DIR"] == "before"


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_the_block_alone(sign):
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell starts what runs in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with ended_by_signals():
        signal.raise_signal(sign)
        pytest.fail("the block went on")
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
