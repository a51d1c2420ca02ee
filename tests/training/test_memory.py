"""Evaluating ten times as many pictures takes the same memory."""

import os
import subprocess
import sys

import pytest

MEASURE = """
import resource, sys
import torch
torch.set_num_threads(1)
from tests.training.scenes import Scenes, micro_model, trainer

count = int(sys.argv[1])
run = trainer(sys.argv[2], micro_model(num_queries=100), evaluation=Scenes(count), per_device_eval_batch_size=10)
run.evaluate()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_kib(count: int, folder) -> int:
    command = [sys.executable, "-c", MEASURE, str(count), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
    return int(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak as Linux counts it")
def test_memory_of_2000_pictures_is_that_of_200(tmp_path):
    few, many = peak_kib(200, tmp_path), peak_kib(2000, tmp_path)
    print(f"200 pictures: {few / 1024:.0f} MiB, 2,000 pictures: {many / 1024:.0f} MiB")
    assert many <= 1.1 * few
