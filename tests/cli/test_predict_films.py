"""`detr-hf predict --save` with films: what is drawn, said and refused, and the exit code."""

import json
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from detr_hf.cli import predict as verb
from detr_hf.inference.sources.video import is_drawn_film

from ..inference.film_making import make_film, noise
from ..inference.stand_in import StandIn
from .test_predict import predict

pytest.importorskip("av")


@pytest.fixture
def films(tmp_path, monkeypatch) -> Path:
    """A folder with a picture and two films, one of them of odd sides, and a detector that is quickly there."""
    monkeypatch.setattr(verb, "load_detector", lambda *_, **__: StandIn())
    folder = tmp_path / "films"
    (folder / "sub").mkdir(parents=True)
    make_film(folder / "a.mp4", 6)
    make_film(folder / "sub" / "b.mkv", 6, (31, 47), codec="ffv1")
    Image.new("RGB", (32, 24), "white").save(folder / "c.png")
    return folder


def test_films_are_drawn_beside_pictures_and_are_no_films_of_the_next_run(films):
    for _ in range(2):
        done = predict("--model", "x", films, "--threshold", 0, "--save", films)
        assert done.exit_code == 0, done.output
        assert done.stdout.splitlines()[1:] == [
            f"{films / 'a.mp4'}: 6 frames; thing in 6",
            f"{films / 'sub' / 'b.mkv'}: 6 frames; thing in 6",
        ]
        assert "b_boxes.mp4: 31x47 pixels are 32x48" in done.stderr
    drawn = ["a_boxes.mp4", "c_boxes.png", "sub/b_boxes.mp4"]
    assert [path.relative_to(films).as_posix() for path in sorted(films.rglob("*_boxes.*"))] == drawn
    make_film(films / "a_boxes.mp4", 3)  # the user's own
    assert predict("--model", "x", films / "a.mp4", "--limit", 2, "--save", films).exit_code == 0
    assert not is_drawn_film(films / "a_boxes.mp4") and is_drawn_film(films / "a_boxes_2.mp4")


def test_where_no_frame_has_anything_the_line_says_what_came_nearest(films, tmp_path, monkeypatch):
    detect = StandIn.detect
    monkeypatch.setattr(StandIn, "detect", lambda *given: [one.filter(threshold=0.9) for one in detect(*given)])
    done = predict("--model", "x", films / "a.mp4", "--save", tmp_path / "out")
    assert re.search(r"6 frames; nothing over 0\.90; the best is 0\.\d\d thing", done.stdout), done.output


def test_a_damaged_film_is_said_and_the_exit_code_is_1(films, tmp_path):
    content = make_film(films / "a.mp4", picture=noise).read_bytes()
    (films / "a.mp4").write_bytes(content[: len(content) // 2])
    (films / "d.mp4").write_bytes(b"no film")
    done = predict("--model", "x", films, "--threshold", 0, "--save", tmp_path / "out")
    assert done.exit_code == 1
    assert f"{films / 'a.mp4'} is damaged here" in done.stderr and "1 of the films are damaged" in done.stderr
    assert f"Left out {films / 'd.mp4'}: " in done.stderr and "1 of 4 pictures could not be read" in done.stderr
    drawn = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert drawn == ["a_boxes.mp4", "c_boxes.png", "sub/b_boxes.mp4"]


def test_films_of_a_folder_stop_no_pictures(films, tmp_path, monkeypatch):
    save = ("--save", tmp_path / "out")
    done = predict("--model", "x", films, "-t", 0, *save, "--json", tmp_path / "x.json")
    assert done.exit_code == 0 and "2 films are drawn without it" in done.stderr
    assert len(json.loads((tmp_path / "x.json").read_text())["pictures"]) == 1
    monkeypatch.setitem(sys.modules, "av", None)
    done = predict("--model", "x", films, "-t", 0, *save)
    assert done.exit_code == 0 and "2 films are left out. Videos need PyAV" in done.stderr
    assert done.stdout.count("\n") == 1


def test_what_no_film_can_have_is_refused_before_the_model_is_loaded(films, tmp_path, monkeypatch):
    monkeypatch.setattr(verb, "load_detector", lambda *_, **__: pytest.fail("the model was loaded first"))
    save = ("--save", tmp_path / "out")
    for option in (("--json", tmp_path / "x.json"), ("--attention",), ("--every", 2)):
        done = predict("--model", "x", films / "a.mp4", *save, *option)
        assert done.exit_code == 2 and option[0] in done.stderr and "a.mp4" in done.stderr
    done = predict("--model", "x", films / "a.mp4")
    assert done.exit_code == 2 and "--out" in done.stderr and "--save" in done.stderr
    monkeypatch.setitem(sys.modules, "av", None)
    done = predict("--model", "x", films / "a.mp4", *save)
    assert done.exit_code == 1 and "pip install 'av>=14.1'" in str(done.exception)
    assert not (tmp_path / "out").exists()
