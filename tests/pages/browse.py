"""Opens every page of the built site in headless Chromium: python tests/pages/browse.py

At two widths, without a network. What must hold: no request leaves this machine, no message in the console, no link
or picture that leads nowhere, nothing wider than a phone, and the search finds words in English and in Chinese.
`--shots FOLDER` keeps pictures of the beginning of each page. Chromium comes by apt: chromium-headless-shell
fonts-wqy-microhei.
"""

import shutil
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urlsplit

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "build" / "site"
WIDTHS = (1280, 390)
APT = "apt-get install -y --no-install-recommends chromium-headless-shell fonts-wqy-microhei"
SEARCHED = {"位置编码": "docs/zh/parts.html", "Joiner": "docs/parts.html"}
LINKS = """() => [...document.querySelectorAll('a[href], img[src], script[src], link[href]')]
    .map(one => one.href || one.src)"""
WIDER = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
BROKEN = "() => [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"


class Quiet(SimpleHTTPRequestHandler):
    """Serves the site and says nothing."""

    def log_message(self, *args: Any) -> None:
        """Says nothing."""


class Look:
    """One browser on the site, and the faults that it found."""

    def __init__(self, browser: Any, address: str, shots: Path | None):
        self.browser, self.address, self.shots = browser, address, shots
        self.faults: list[str] = []
        self.anchors: dict[str, set[str]] = {}
        self.links: list[tuple[str, str]] = []

    def open(self, page: Any, path: str) -> None:
        """Opens a page, and notes what it links to and what is broken."""
        page.goto(f"{self.address}/{path}", wait_until="load", timeout=90000)
        self.links += [(path, link) for link in page.evaluate(LINKS)]
        ids = page.evaluate("() => [...document.querySelectorAll('[id]')].map(one => one.id)")
        self.anchors[path] = set(ids)
        self.faults += [f"{path}: the picture {source} is broken" for source in page.evaluate(BROKEN)]
        if (wider := page.evaluate(WIDER)) > 0:
            self.faults.append(f"{path}: {wider} pixels wider than the window of {page.viewport_size['width']}")

    def pages(self, width: int) -> None:
        """Opens every page at a width."""
        context = self.browser.new_context(viewport={"width": width, "height": 1600}, reduced_motion="reduce")
        page = context.new_page()
        page.on("request", lambda request: self.asked(request.url))
        page.on("console", lambda message: self.said(page.url, message))
        page.on("pageerror", lambda error: self.faults.append(f"{page.url}: {error}"))
        for file in sorted(SITE.rglob("*.html")):
            path = file.relative_to(SITE).as_posix()
            self.open(page, path)
            if self.shots:
                name = path.replace("/", "_").removesuffix(".html")
                page.screenshot(path=self.shots / f"{name}_{width}.png", timeout=90000)
        context.close()

    def asked(self, url: str) -> None:
        """Notes a request that leaves the machine."""
        if not url.startswith((self.address, "data:", "blob:")):
            self.faults.append(f"asked for {url}")

    def said(self, url: str, message: Any) -> None:
        """Notes what the console holds."""
        if message.type in ("error", "warning"):
            self.faults.append(f"{url}: {message.type}: {message.text}")

    def check_links(self) -> None:
        """Notes links into the site that lead nowhere, also to a heading."""
        for path, link in set(self.links):
            if not link.startswith(self.address):
                continue
            plain, fragment = urldefrag(link)
            target = unquote(urlsplit(plain).path).lstrip("/") or "index.html"
            target = target + "index.html" if target.endswith("/") else target
            if not (SITE / target).is_file():
                self.faults.append(f"{path}: dead link {link}")
            elif fragment and unquote(fragment) not in self.anchors.get(target, {unquote(fragment)}):
                self.faults.append(f"{path}: no heading {link}")

    def search(self) -> None:
        """Types words into the search of the first page, and looks for their pages among the results."""
        page = self.browser.new_context(viewport={"width": WIDTHS[0], "height": 900}).new_page()
        page.goto(f"{self.address}/index.html", wait_until="networkidle")
        page.locator(".md-search__button").click()
        for word, wanted in SEARCHED.items():
            page.wait_for_timeout(1000)
            page.keyboard.press("Control+a")
            page.keyboard.type(word)
            try:
                page.wait_for_selector(f"a[href*='{wanted}?h=']", timeout=60000)
            except Exception as error:
                self.faults.append(f"the search for {word} does not find {wanted} ({type(error).__name__})")
            if self.shots:
                page.screenshot(path=self.shots / f"search_{wanted.replace('/', '_')}.png")


def main(shots: Path | None = None) -> int:
    """Returns the exit code: 1 where anything is wrong."""
    chromium = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    if chromium is None:
        sys.exit(f"There is no Chromium here: {APT}")
    from playwright.sync_api import sync_playwright

    if not (SITE / "index.html").is_file():
        sys.exit("There is no site in build/site: make docs")
    if shots:
        shots.mkdir(parents=True, exist_ok=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        look = Look(browser, f"http://127.0.0.1:{server.server_address[1]}", shots)
        for width in WIDTHS:
            look.pages(width)
        look.check_links()
        look.search()
        browser.close()
    for fault in sorted(set(look.faults)):
        print(fault)
    seen = f"{len(look.anchors)} pages at {WIDTHS} pixels, {len(set(look.links))} links"
    print(f"{seen}, {len(set(look.faults))} faults")
    return 1 if look.faults else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[2]) if "--shots" in sys.argv else None))
