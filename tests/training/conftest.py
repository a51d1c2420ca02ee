"""What the tests of training share."""

import pytest
from transformers.utils import logging

from detr_hf.training import checkpointed, checkpointing
from detr_hf.training.keeping import Kept

logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def unflushed(monkeypatch):
    """Waiting for the disk takes most of a small checkpoint's time, and no test can cut the power."""
    monkeypatch.setattr(checkpointing, "flush", lambda path: None)


@pytest.fixture
def best_is_kept(monkeypatch):
    """What is kept is the best number, be it by noise."""
    monkeypatch.setattr(checkpointed, "choose", lambda values, best, *rest: Kept(best, "", len(values)))
