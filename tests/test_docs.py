"""What README, docs, CONTRIBUTING and CHANGELOG say is there: links, paths, commands, tests, figures, code."""

import ast
import contextlib
import io
import re
import shlex
import xml.etree.ElementTree as ElementTree
from argparse import ArgumentParser
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from transformers import HfArgumentParser
from typer.testing import CliRunner

from benchmarks.__main__ import app as benchmarks_app
from benchmarks.tables import BLOCKS, MARKED, write_tables
from detr_hf.cli.main import app as cli_app
from detr_hf.cli.reading import Reading
from detr_hf.cli.train import DataArguments
from detr_hf.training.arguments import DETRTrainingArguments
from docs.build_site import in_nav, pages
from docs.draw_rooms import PICTURE, arrows, drawing, shortest
from docs.show_sources import shown
from examples import finetune

from .test_architecture import ARROWS

ROOT = Path(__file__).parent.parent
README, DOCS = ROOT / "README.md", ROOT / "docs"
WITH_CODE = [README, ROOT / "README.zh-CN.md", *sorted(DOCS.rglob("*.md"))]
PAGES = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *WITH_CODE]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def fenced(text: str, language: str = r"\w*") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(path: Path) -> list[str]:
    """The commands of a page: inline code, and lines of its shell blocks, without comments."""
    text = text_of(path)
    lines = [line for block in fenced(text, "bash") for line in block.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [re.sub(r"(^|\s)#.*", "", line).strip() for line in [*lines, *re.findall(r"`([^`\n]+)`", prose)]]


def named(pattern: str) -> list[pytest.param]:
    """The commands of all pages that match, with what the pattern takes out of them; those awaited must fail."""
    found = {
        (match[0].strip(), *match.groups()): None
        for path in PAGES
        for command in commands(path)
        for match in re.finditer(pattern, command)
    }
    return [pytest.param(*groups, id=groups[0]) for groups in found]


# ------------------------------------------------------------------------------------------------------------- README


def test_the_readme_is_short_and_begins_with_two_commands():
    lines = text_of(README).splitlines()
    assert len(lines) <= 120
    assert [line for line in lines if len(line) > 160] == []
    first = fenced(text_of(README))[0].splitlines()
    assert [line.split("#")[0].strip() for line in first] == ["make demo", "make test"]


def test_the_picture_of_the_readme_is_what_the_demo_draws(tmp_path):
    shown = re.search(r'src="(\S+\.png)"', "\n".join(text_of(README).splitlines()[:30]))[1]
    assert f"detr-hf demo --out {shown}" in text_of(README)
    assert (ROOT / shown).stat().st_size < 200_000
    done = CliRunner().invoke(cli_app, ["demo", "--out", str(tmp_path / "boxes.png")])
    assert done.exit_code == 0, done.output
    drawn, kept = (
        np.asarray(Image.open(path).convert("RGB"), dtype=float) for path in (tmp_path / "boxes.png", ROOT / shown)
    )
    assert drawn.shape == kept.shape
    assert np.abs(drawn - kept).mean() < 1  # processors differ in the last digit of a score


# -------------------------------------------------------------------------------------------------- links and paths


def links() -> list[tuple[str, str]]:
    found = []
    for path in PAGES:
        prose = re.sub(r"^```.*?^```", "", text_of(path), flags=re.DOTALL | re.MULTILINE)
        targets = re.findall(r"\]\(([^)\s]+)\)", prose) + re.findall(r'(?:src|href)="([^"]+)"', prose)
        found += [(name_of(path), target) for target in targets if not re.match(r"[a-z]+:", target)]
    return found


@pytest.mark.parametrize(("page", "target"), links())
def test_every_relative_link_leads_somewhere(page, target):
    path, _, heading = target.partition("#")
    goal = (ROOT / page).parent / path if path else ROOT / page
    assert goal.exists(), f"{page} links to {target}"
    if heading:
        headings = re.findall(r"^#+ (.*)$", text_of(goal), re.MULTILINE)
        assert heading in {re.sub(r"[^\w\- ]", "", line).lower().replace(" ", "-") for line in headings}


def test_every_page_can_be_reached_from_the_index():
    index = text_of(DOCS / "index.md")
    for page in {path.name for path in DOCS.glob("*.md")} - {"index.md"}:
        assert f"]({page})" in index and f"](docs/{page})" in text_of(README)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_path_that_is_named_exists(page):
    rooms = "detr_hf|tests|benchmarks|docs|examples|model_cards"
    for command in commands(page):
        for path in re.findall(rf"(?:^|\s)((?:{rooms})/[\w./-]+)(?=\s|$)", command):
            if not any(word in path for word in ("MACHINE", "NAME")):
                assert (ROOT / path).exists(), f"{name_of(page)} names {path}"


# ----------------------------------------------------------------------------------------------------------- commands


@cache
def options_of(app: typer.Typer) -> dict[str, set[str]]:
    """The options of each verb."""
    verbs = typer.main.get_command(app).commands
    found = {
        name: {option for parameter in verb.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for name, verb in verbs.items()
    }
    if "train" in found:
        found["train"] = flags_of(HfArgumentParser([DataArguments, Reading, DETRTrainingArguments]))
    return found


def flags_of(parser: ArgumentParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings}


def options_in(arguments: str) -> set[str]:
    return {word.partition("=")[0] for word in shlex.split(arguments) if re.match(r"--?[a-z]", word)}


@pytest.mark.parametrize(("command", "verb", "arguments"), named(r"(?:detr-hf|-m detr_hf) ([a-z][\w-]*)(.*)"))
def test_every_verb_and_option_of_the_command_exists(command, verb, arguments):
    known = options_of(cli_app)
    assert verb in known, f"{command}: there are {', '.join(known)}"
    assert options_in(arguments) <= known[verb], command


@pytest.mark.parametrize(("command", "name", "arguments"), named(r"python -m benchmarks ([a-z][\w-]*)(.*)"))
def test_every_benchmark_and_option_exists(command, name, arguments):
    known = options_of(benchmarks_app)
    assert name in known, f"{command}: there are {', '.join(known)}"
    assert options_in(arguments) <= known[name], command


@pytest.mark.parametrize(("command", "arguments"), named(r"examples/finetune\.py(.*)"))
def test_every_option_of_the_example_exists(command, arguments):
    assert options_in(arguments) <= flags_of(HfArgumentParser([finetune.Start, DETRTrainingArguments])), command


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_option_that_stands_alone_belongs_to_some_command(page):
    known = set().union(*options_of(cli_app).values(), *options_of(benchmarks_app).values())
    known |= {"--no-deps", "--cpu", "--node-rank"}  # of pip, accelerate and torchrun
    known |= {"--help-all"}  # of train, whose help is its own
    for command in commands(page):
        if command.startswith("--"):
            assert options_in(command) <= known, f"{name_of(page)}: {command}"


@pytest.mark.parametrize(("command", "target"), named(r"^make ([a-z-]+)"))
def test_every_target_of_make_exists(command, target):
    assert re.search(rf"^{target}:", text_of(ROOT / "Makefile"), re.MULTILINE), command


@pytest.mark.parametrize(
    ("command", "path", "words"), named(r"^pytest (?:-m slow )?(\S+)(?: -q)?(?: -k \"?([^\"]+)\"?)?$")
)
def test_every_test_that_is_named_exists(command, path, words):
    files = [ROOT / path] if path.endswith(".py") else list((ROOT / path).rglob("test_*.py"))
    names = [
        node.name
        for file in files
        for node in ast.walk(ast.parse(text_of(file)))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    for word in words.split(" or ") if words else [""]:
        assert any(word in name for name in names), f"no test in {path} is called *{word}*"


def test_the_table_against_transformers_has_a_command_in_every_line():
    rows = [line for line in text_of(DOCS / "against_transformers.md").splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 5 and all("`pytest tests" in row for row in rows)


def test_tests_that_are_named_in_the_text_exist():
    for page in PAGES:
        for name in re.findall(r"`(test_\w+)`", text_of(page)):
            assert any(f"def {name}(" in text_of(path) for path in (ROOT / "tests").rglob("test_*.py")), name


# ------------------------------------------------------------------------------------------------------------ figures


def test_every_figure_is_what_the_records_say():
    """After a new record: python -m benchmarks tables"""
    assert write_tables(DOCS, check=True) == []


def test_every_block_has_its_place():
    placed = [name for path in DOCS.glob("*.md") for _, name, _, _ in MARKED.findall(text_of(path))]
    assert sorted(placed) == sorted(BLOCKS)
    marks = sum(len(re.findall("<!-- (?:begin|end):", text_of(path))) for path in DOCS.glob("*.md"))
    assert marks == 2 * len(placed), "a mark has no partner"


def test_a_stale_block_is_found_and_rendered_anew(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n\n<!-- begin: export-ap -->\n| 99 |\n<!-- end: export-ap -->\n\nafter\n")
    assert write_tables(tmp_path, check=True) == [page] and "| 99 |" in page.read_text()
    check = ["tables", "--docs", str(tmp_path), "--check"]
    assert CliRunner().invoke(benchmarks_app, check).exit_code == 1
    assert write_tables(tmp_path) == [page] and "| 99 |" not in page.read_text()
    assert page.read_text().startswith("before\n\n<!-- begin") and page.read_text().endswith("-->\n\nafter\n")
    assert CliRunner().invoke(benchmarks_app, check).exit_code == 0


def test_a_block_that_is_not_known_is_an_error(tmp_path):
    (tmp_path / "page.md").write_text("<!-- begin: speed-abacus -->\n<!-- end: speed-abacus -->\n")
    with pytest.raises(ValueError, match=r"no block 'speed-abacus'; there are machines"):
        write_tables(tmp_path)


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_no_measured_figure_stands_in_the_prose(page):
    prose = MARKED.sub("", text_of(page))
    prose = re.sub(r"^```.*?^```|`[^`\n]+`|\]\([^)]+\)", "", prose, flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"(transformers|torch|timm|Python|and|和|Apache-?) ?\d+(\.\d+)+", "", prose)  # versions
    assert re.findall(r"\d+\.\d+|\d+ ?%", prose) == []


# --------------------------------------------------------------------------------------------------------------- code


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_python_in_the_pages_compiles_and_imports_what_there_is(page):
    others = {name for name in re.findall(r"`pip install ([\w-]+)`", text_of(page)) if find_spec(name) is None}
    for block in fenced(text_of(page), "python"):
        imports = [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Import | ast.ImportFrom)]
        if page.name == "app.md":
            pytest.importorskip("gradio_client", reason="gradio is not installed: make test-page runs that block")
        here = [node for node in imports if getattr(node, "module", None) not in others]
        exec(compile(ast.Module(here, []), name_of(page), "exec"), {})


def test_the_parts_print_what_the_page_says():
    namespace: dict = {}
    for block in fenced(text_of(DOCS / "parts.md"), "python"):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, "docs/parts.md", "exec"), namespace)
        assert printed.getvalue().splitlines() == re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE)


def test_the_parts_are_built_in_chinese_as_in_english():
    """The same code and the same numbers; only the comments that are no output are translated."""

    def code(path: Path) -> list[str]:
        blocks = fenced(text_of(path), "python")
        printed = [re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE) for block in blocks]
        return [ast.unparse(ast.parse(block)) + repr(lines) for block, lines in zip(blocks, printed, strict=True)]

    assert code(DOCS / "zh" / "parts.md") == code(DOCS / "parts.md")


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_the_code_of_the_package_that_a_page_shows_is_that_of_today(page):
    """After a change: python docs/show_sources.py"""
    assert shown(text_of(page)) == text_of(page)


# --------------------------------------------------------------------------------------------------------------- site


def test_the_site_leads_to_every_page():
    cards = {path for path in pages() if path.parent.name == "model_cards"}
    assert sorted(in_nav()) == sorted(set(pages()) - cards)


# -------------------------------------------------------------------------------------------------------------- rooms


def test_the_picture_of_the_rooms_is_drawn_from_the_arrows():
    """After a change: python docs/draw_rooms.py"""
    assert arrows() == ARROWS
    assert text_of(PICTURE) == drawing()


def test_the_picture_of_the_rooms_shows_every_room_and_leads_to_all_it_may_import():
    texts = [node.text for node in ElementTree.parse(PICTURE).iter("{http://www.w3.org/2000/svg}text")]
    assert {f"{room}/" for room in ARROWS} <= set(texts)
    drawn = shortest(ARROWS)
    assert len(ElementTree.parse(PICTURE).findall("{http://www.w3.org/2000/svg}path")) == len(drawn)

    def reached(room: str) -> set[str]:
        return {room}.union(*(reached(below) for above, below in drawn if above == room))

    for room, targets in ARROWS.items():
        assert set(targets) <= reached(room)


def test_the_table_of_exports_names_every_tool_that_a_test_writes():
    from .data.readers import test_exports_coco, test_exports_voc, test_exports_yolo

    text = (ROOT / "docs" / "reading.md").read_text(encoding="utf-8")
    tools = {line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")}
    tools = {name.strip() for tool in tools for name in tool.split(",")}
    known = ("CVAT", "Roboflow", "Label Studio", "FiftyOne", "makesense", "VoTT", "labelImg", "Kaggle", "Datumaro")
    for module in (test_exports_coco, test_exports_voc, test_exports_yolo):
        for export in map(str, module.EXPORTS):
            for tool in known:
                assert tool not in export or any(tool in name for name in tools), export
