"""What a process does that was forked from one in which torch has computed.

Of the threads that compute (OpenMP's) only the one that forks is there afterwards, and the first parallel operation
waits for the others for ever: in torch, so too without this package. With one thread nothing waits. DataLoader's
workers set that themselves.
"""

import logging
import os
import sys

logger = logging.getLogger(__name__)

_process = os.getpid()  # that this module was loaded in; a process that was spawned loads it anew


def mind_fork() -> None:
    """Sets torch to one thread, once, in a process that was forked since the package was loaded, and says so."""
    global _process
    if os.getpid() == _process:
        return
    _process = os.getpid()
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() > 1:
        torch.set_num_threads(1)
        logger.warning(
            "This process was forked from one that has torch loaded, where more than one thread can wait for ever: it "
            "runs with one. For more, start processes with 'spawn' (multiprocessing.set_start_method), or load the "
            "model after the fork and call torch.set_num_threads after the first picture."
        )
