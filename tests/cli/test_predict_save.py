"""`detr-hf predict --save FILE`: a picture or film into a file by its ending, and what is refused before any work."""

from pathlib import Path

import pytest
from PIL import Image

from detr_hf.cli import predict as verb
from detr_hf.inference.runs.drawings import is_drawn

from ..inference.film_making import make_film
from ..inference.stand_in import StandIn
from .test_predict import predict


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    """Two pictures, and a detector that is quickly there."""
    monkeypatch.setattr(verb, "load_detector", lambda *_, **__: StandIn())
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (32, 24), "white").save(folder / name)
    return folder


@pytest.mark.parametrize("name", ["x.svg", "new/x.html", "x.PNG", "x.webp"])
def test_one_picture_becomes_a_file_by_its_ending_also_again(photos, tmp_path, name):
    path = tmp_path / name
    for _ in range(2):
        done = predict("--model", "x", photos, "--limit", 1, "-t", 0, "--save", path)
        assert done.exit_code == 0 and f"Drawn pictures: {path}" in done.stderr, done.output
    assert is_drawn(path) and [one.name for one in path.parent.glob("x*")] == [path.name]
    if path.suffix in (".svg", ".html"):
        assert 'class="object' in path.read_text() and "thing" in path.read_text()
    else:
        assert Image.open(path).size == (32, 24)


def test_one_film_becomes_a_file(photos, tmp_path):
    pytest.importorskip("av")
    film = make_film(tmp_path / "film.mp4", 3)
    for _ in range(2):
        done = predict("--model", "x", film, "-t", 0, "--save", tmp_path / "x.mp4")
        assert done.exit_code == 0 and is_drawn(tmp_path / "x.mp4"), done.output
    wrong = predict("--model", "x", film, "--save", tmp_path / "x.svg")
    assert wrong.exit_code == 2 and "end it in .mp4" in " ".join(wrong.stderr.replace("│", " ").split())


def test_a_folder_may_have_a_dot_in_its_name(photos, tmp_path):
    (tmp_path / "v1.2").mkdir()
    assert predict("--model", "x", photos, "-t", 0, "--save", tmp_path / "v1.2").exit_code == 0
    assert len(list((tmp_path / "v1.2").iterdir())) == 2


WRONG = {
    "an unknown ending": (("a.png", "--save", "new.txt"), "end it in .png, .jpg or .webp, or .svg or .html. Or make"),
    "several pictures": ((".", "--save", "x.svg"), "there are 2 pictures: name a folder, --save x"),
    "a picture as a film": (("a.png", "--save", "x.mp4"), "end it in .png, .svg or .html"),
    "the source": (("a.png", "--save", "a.png"), "is one of the files looked at"),
    "the source by a link": (("a.png", "--save", "linked.png"), "is one of the files looked at"),
    "another picture of the user's": (("a.png", "--save", "b.png"), "is not written over"),
    "a file without an ending": (("a.png", "--save", "README"), "README is not a folder"),
    "the file of --json": (("a.png", "--json", "x.svg", "--save", "x.svg"), "give each one of its own"),
    "attention": (("a.png", "--save", "x.png", "--attention"), "needs a folder: --save DIR"),
    "a font for an SVG": (("a.png", "--save", "x.svg", "--font", "README"), "the fonts of whoever looks"),
    "a file for a folder": (("a.png", "--save", "a.png/x.svg"), "cannot be written"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_cannot_be_is_refused_before_the_model_is_loaded(photos, monkeypatch, kind):
    monkeypatch.chdir(photos)
    monkeypatch.setattr(verb, "load_detector", lambda *_, **__: pytest.fail("the model was loaded first"))
    Path("README").touch()
    Path("linked.png").symlink_to("a.png") if kind == "the source by a link" else None
    before = {path: path.read_bytes() for path in sorted(photos.iterdir())}
    arguments, said = WRONG[kind]
    done = predict("--model", "x", *arguments)
    told = " ".join(done.stderr.replace("│", " ").split()) + str(done.exception)
    assert done.exit_code in (1, 2) and said in told, told
    assert {path: path.read_bytes() for path in sorted(photos.iterdir())} == before
