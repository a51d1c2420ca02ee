"""Versions of what is installed, and of what is not."""

from importlib import metadata

from detr_hf.version import __version__, version_of


def test_versions():
    assert version_of("detr_hf") == version_of("detr-hf") == __version__
    assert version_of("numpy") == metadata.version("numpy")
    assert version_of("no-such-package") is None
