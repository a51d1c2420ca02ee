"""The page as users start it, in a process of its own, and what a browser saw of it."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHOTS = ROOT / "out" / "page"
LOOKS = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]


class Server:
    """A running page: its address, its process, the folder for what is sent, the seconds until it listened."""

    def __init__(self, *arguments: str, temporary: Path):
        self.temporary, start = temporary, time.perf_counter()
        temporary.mkdir(exist_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "detr_hf", "app", "--port", "0", *arguments],
            cwd=ROOT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TMPDIR": str(temporary)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            line = self.process.stdout.readline()
            self.seconds = time.perf_counter() - start
            found = re.search(r"http://127\.0\.0\.1:\d+/", line)
            assert found, line + self.process.stderr.read()
        except BaseException:  # also a time-out of pytest
            self.process.kill()
            raise
        self.url = found[0]

    def files(self) -> list[Path]:
        """What lies in the server's folder for temporary files."""
        return [path for path in self.temporary.rglob("*") if path.is_file()]

    def memory_mb(self) -> float:
        """The resident memory of the server."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def end(self) -> str:
        """Returns what the server said on stderr, after asking it to end."""
        self.process.terminate()
        _, said = self.process.communicate(timeout=60)
        return said


@contextmanager
def serving(temporary: Path, *arguments: str) -> Iterator[Server]:
    """Within it the page is served; afterwards it has ended by itself, left no file and complained of nothing."""
    server = Server(*arguments, temporary=temporary)
    try:
        yield server
    finally:
        said = server.end()
    refused = said.count("InvalidPathError: ")  # gradio tells its log where a file that nobody sent was asked for
    assert server.process.returncode == 0 and said.count("Traceback (most") == refused, said
    assert server.files() == []


class Visit:
    """A page of a browser, with all that should not happen there."""

    def __init__(self, browser, url: str, width: int, scheme: str, **options):
        self.url, self.faults, self.requests = url, [], []
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, accept_downloads=True, **options
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.faults.append(f"error in the page: {error}"))
        self.page.on("request", self._asked)
        self.page.goto(url)
        self.page.wait_for_selector("[data-choose]")

    def _heard(self, message) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(f"{message.type} in the console: {message.text}")

    def _asked(self, request) -> None:
        self.requests.append(request.url)
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.faults.append(f"asked elsewhere: {request.url}")

    def give(self, *files: tuple[str, bytes]) -> None:
        """Chooses files, as (name, content)."""
        self.page.set_input_files(
            "[data-files]",
            [{"name": name, "mimeType": "application/octet-stream", "buffer": content} for name, content in files],
        )

    def waits_for(self, text: str) -> None:
        """Waits until the line on what is shown has this text."""
        self.page.locator("[data-count]").filter(has_text=text).wait_for()

    def says(self, text: str) -> str:
        """Returns the page's message, after waiting until it has this text."""
        line = self.page.locator("[data-says]").filter(has_text=text)
        line.wait_for()
        return line.inner_text()

    def close(self, temporary: Path) -> None:
        """Leaves, and fails where something happened or a place of the server can be read."""
        text = self.page.content()
        self.context.close()
        assert self.faults == []
        for place in (str(temporary), str(ROOT), str(Path.home()) + "/", sys.prefix):
            assert place not in text, place
