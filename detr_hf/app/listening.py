"""Where the page listens, where what is sent lies meanwhile, and how it ends."""

import errno
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

HOST, PORT = "127.0.0.1", 7860
TRIED_PORTS = 100  # after one that is taken


def free_port(host: str, port: int) -> int:
    """Returns the port, or any free one for 0.

    Raises:
        OSError: it is taken, or the host is not this machine's; the message names what is free.
    """
    try:
        return _bound(host, port)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise OSError(f"--host {host}: this machine cannot listen there ({error.strerror or error}).") from error
        why = "is taken, perhaps by another page" if error.errno == errno.EADDRINUSE else "is not yours to open"
    for other in range(port + 1, min(port + TRIED_PORTS, 65536)):
        try:
            raise OSError(f"Port {port} of {host} {why}: name another, --port {_bound(host, other)}.")
        except OSError as error:
            if error.errno is None:
                raise
    raise OSError(f"Port {port} of {host} {why}: name another, --port 0 for any that is free.")


def _bound(host: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tried.bind((host, port))
        return tried.getsockname()[1]


@contextmanager
def sent_files() -> Iterator[None]:
    """Within it gradio writes what visitors send to a folder of its own, which is gone afterwards."""
    name = "GRADIO_TEMP_DIR"
    before = os.environ.get(name)
    with tempfile.TemporaryDirectory(prefix="detr-hf-app-", ignore_cleanup_errors=True) as folder:
        os.environ[name] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within it, and in the main thread, a polite end of the process is what Ctrl+C is; both end the block."""
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if is_main else None
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before)
