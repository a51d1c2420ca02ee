"""What a process of a pool does first; this module imports nothing that is slow to import."""

import logging
import os
from multiprocessing import parent_process
from threading import Thread


def end_with_parent() -> None:
    """Logs as the parent does, and ends when the parent is no more: a killed benchmark must not train on."""
    logging.basicConfig(level=logging.INFO)

    def follow_parent() -> None:
        parent_process().join()
        os._exit(1)

    Thread(target=follow_parent, daemon=True).start()


__all__ = ["end_with_parent"]
