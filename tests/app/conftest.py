"""A served page and a browser to visit it with; skipped where gradio, playwright or Chromium is not installed."""

import shutil

import pytest

from .inputs import MAX_MB, MAX_MEGAPIXELS
from .serving import LOOKS, Visit, serving

CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    pytest.importorskip("gradio", reason="gradio is not installed: make test-page")
    limits = ("--max-mb", str(MAX_MB), "--max-megapixels", str(MAX_MEGAPIXELS))
    with serving(tmp_path_factory.mktemp("served") / "tmp", *limits) as server:
        yield server


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-page")
    chromium = shutil.which("chromium-headless-shell")
    if chromium is None:
        pytest.skip("no Chromium: apt-get install chromium-headless-shell")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium, args=["--no-sandbox", *CAMERA])
        yield opened
        opened.close()


@pytest.fixture
def visit(served, browser, request):
    width, scheme = getattr(request, "param", LOOKS[0])
    made = Visit(browser, served.url, width, scheme, permissions=["clipboard-read", "clipboard-write", "camera"])
    yield made
    made.close(served.temporary)
