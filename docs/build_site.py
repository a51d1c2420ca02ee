"""Builds the site of the documentation into build/site (`make docs`); any complaint is an error.

The pages are those of the repository at their own places, so that a link means the same there and here. A link that
leads to what is no page or picture (a record, a folder) stays as its text.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "build" / "pages"
STAGED = ("README.md", "README.zh-CN.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**/*.md", "model_cards/*.md")
SHOWN = (".png", ".svg", ".jpg")
CONFIG = ROOT / "mkdocs.yml"
LINK = re.compile(r"(?<!!)\[([^\]\n]+)\]\(([^)\s]+)\)")
PICTURE = re.compile(r'!\[[^\]]*\]\(([^)\s]+)\)|src="([^"]+)"')
CODE = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)
COMPLAINT = re.compile(r"warning|error|not found|griffe:", re.IGNORECASE)


def pages() -> list[Path]:
    """Returns the pages of the site, in the repository."""
    return sorted({path for pattern in STAGED for path in ROOT.glob(pattern)})


def in_nav() -> list[Path]:
    """Returns the pages that mkdocs.yml leads to."""
    return [ROOT / path for path in re.findall(r"^ *- [^:\n]+: (\S+\.md)$", CONFIG.read_text("utf-8"), re.MULTILINE)]


def outside(page: Path, target: str) -> bool:
    """Whether a link leads to a place of the repository that is neither a page nor a picture of one."""
    if re.match(r"[a-z]+:|#", target):
        return False
    return (page.parent / target.partition("#")[0]).resolve() not in pages()


def staged(page: Path) -> str:
    """Returns the text of a page as the site has it."""
    parts = CODE.split(page.read_text(encoding="utf-8"))
    parts[::2] = [LINK.sub(lambda link: link[1] if outside(page, link[2]) else link[0], part) for part in parts[::2]]
    return "".join(parts)


def stage() -> None:
    """Writes the pages and the pictures on them to build/pages."""
    shutil.rmtree(PAGES, ignore_errors=True)
    for page in pages():
        goal = PAGES / page.relative_to(ROOT)
        goal.parent.mkdir(parents=True, exist_ok=True)
        goal.write_text(staged(page), encoding="utf-8")
        for first, second in PICTURE.findall(page.read_text(encoding="utf-8")):
            picture = (page.parent / (first or second)).resolve()
            if picture.suffix in SHOWN and picture.is_relative_to(ROOT):
                shown = PAGES / picture.relative_to(ROOT)
                shown.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(picture, shown)


def main() -> int:
    """Returns the exit code: 1 where zensical or mkdocstrings complain of anything."""
    stage()
    build = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    done = subprocess.run(build, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    print(done.stdout)
    complaints = [line for line in done.stdout.splitlines() if COMPLAINT.search(line)]
    print(f"{len(pages())} pages, {len(complaints)} complaints: build/site/index.html")
    return 1 if done.returncode or complaints else 0


if __name__ == "__main__":
    sys.exit(main())
