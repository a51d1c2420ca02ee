"""A detector in a forked process ends, and says what it does."""

import os
import signal
import subprocess
import sys

import pytest

from detr_hf.inference import forks

FORKED = """
import os, signal, sys, numpy, torch
from detr_hf import Detector
torch.set_num_threads(2)
detector = Detector.from_pretrained()
picture = numpy.random.default_rng(0).integers(0, 255, (600, 800, 3), dtype=numpy.uint8)
found = detector(picture, threshold=0.1).to_dict()
child = os.fork()
if not child:
    signal.alarm(60)
    os._exit(detector(picture, threshold=0.1).to_dict() != found)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


class Threads:
    """What stands for torch."""

    number = 2

    def get_num_threads(self) -> int:
        return self.number

    def set_num_threads(self, number: int) -> None:
        self.number = number


@pytest.mark.parametrize("forked", [True, False])
def test_a_forked_process_has_one_thread_and_says_so_once(forked, monkeypatch, caplog):
    threads = Threads()
    monkeypatch.setitem(sys.modules, "torch", threads)
    monkeypatch.setattr(forks, "_process", os.getpid() + forked)
    forks.mind_fork()
    assert threads.number == (1 if forked else 2) and ("forked" in caplog.text) == forked
    threads.number = 4  # whoever knows better
    forks.mind_fork()
    assert threads.number == 4


@pytest.mark.slow
def test_a_detector_answers_in_a_forked_process():
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode != -signal.SIGALRM, "it hung"
    assert done.returncode == 0 and "was forked from one" in done.stderr, done.stderr
