"""What the tests of training share."""

import pytest
from transformers.utils import logging

from detr_hf.training import checkpointing

logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def unflushed(monkeypatch):
    """Waiting for the disk takes most of a small checkpoint's time, and no test can cut the power."""
    monkeypatch.setattr(checkpointing, "flush", lambda path: None)
