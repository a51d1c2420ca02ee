"""Which pictures a command line names, each once, and what is said of all else that a search meets."""

import os
from pathlib import Path

import pytest
from PIL import Image

from detr_hf.inference.sources.searching import LeftOut, PictureSearch
from detr_hf.processing.image_opening_detr import PICTURE_SUFFIXES
from detr_hf.visualize.saving import save_drawing


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a.PNG", "sub/c.webp", "sub/deeper/d.tiff", ".hidden.jpg", ".cache/e.jpg", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def relative_names(*paths, **options) -> list[str]:
    return [relative.as_posix() for _, relative in PictureSearch(paths, **options)]


def test_a_folder_is_searched_in_order_without_hidden_and_other_files(folder):
    assert relative_names(folder) == ["a.PNG", "b.jpg", "sub/c.webp", "sub/deeper/d.tiff"]


def test_patterns(folder):
    assert relative_names(f"{folder}/*.PNG") == ["a.PNG"]
    assert relative_names(f"{folder}/[ab].*") == ["a.PNG", "b.jpg"]
    assert relative_names(f"{folder}/**/*.tiff") == ["sub/deeper/d.tiff"]
    assert relative_names(f"{folder}/s*") == ["c.webp", "deeper/d.tiff"]
    assert relative_names(f"{folder}/*.bmp") == []
    assert relative_names(f"{folder}/sub/*/../../b.jpg") == ["b.jpg"]


def test_a_named_file_is_taken_as_it_is_even_if_missing(folder):
    assert relative_names(folder / "notes.txt", folder / "missing.jpg") == ["notes.txt", "missing.jpg"]


def test_a_picture_comes_once(folder):
    assert relative_names(folder / "b.jpg", folder, f"{folder}/b*") == [
        "b.jpg",
        "a.PNG",
        "sub/c.webp",
        "sub/deeper/d.tiff",
    ]


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tmp_path):
    (tmp_path / "a[1].jpg").write_bytes(b"")
    assert relative_names(tmp_path / "a[1].jpg") == ["a[1].jpg"]


def test_the_folder_of_results_is_not_searched(folder):
    assert relative_names(folder, results=folder / "sub") == ["a.PNG", "b.jpg"]
    assert len(relative_names(folder, results=folder)) == 4
    assert relative_names(folder / "sub" / "c.webp", results=folder / "sub") == ["c.webp"]


def search(*paths, **options) -> tuple[list[str], str]:
    """What is found, and what is said of the rest."""
    searched = PictureSearch(paths, **options)
    return [relative.as_posix() for _, relative in searched], str(searched.left_out)


def test_the_endings_are_those_of_the_formats_of_photographs_that_pillow_opens():
    Image.init()
    for kind in ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "TGA", "TIFF", "WEBP", "QOI", "PCX"):
        first = next(ending for ending, format in Image.EXTENSION.items() if format == kind)
        assert first in PICTURE_SUFFIXES, kind
    assert not PICTURE_SUFFIXES & {".pdf", ".eps", ".ps", ".ico", ".dds", ".mpg", ".h5", ".pcd", ".pfm", ".wmf"}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("labels.txt", "1 .txt (labels.txt)"),
        ("IMG.HEIC", "1 .heic (IMG.HEIC)"),
        ("clip.mp4", "1 .mp4 (clip.mp4)"),
        ("README", "1 without an ending (README)"),
        (".secret.jpg", "1 hidden (.secret.jpg)"),
        (".git/a.jpg", "1 hidden (.git)"),
        ("sub/notes.md", "1 .md (sub/notes.md)"),
        ("._a.jpg", ""),
        ("__MACOSX/._a.jpg", ""),
        ("Thumbs.db", ""),
        (".DS_Store", ""),
    ],
)
def test_what_is_left_out_is_counted_and_named(tmp_path, caplog, name, said):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    assert search(tmp_path) == (["a.png"], said)
    assert [record.getMessage() for record in caplog.records] == ([f"Left out of the search: {said}."] if said else [])
    (tmp_path / "a.png").unlink()
    empty = PictureSearch([tmp_path])
    assert list(empty) == [] and said in empty.nothing() and str(tmp_path) in empty.nothing()


def test_many_reasons_stay_one_short_text():
    left_out = LeftOut()
    for number in range(2000):
        left_out.add(".txt", f"{number}.txt")
    for number in range(30):
        left_out.add(f".{number}", f"x.{number}")
    assert str(left_out).startswith("2,000 .txt (0.txt, 1.txt, 2.txt, ...), 1 .0 (x.0)")
    assert str(left_out).endswith("19 of 19 other kinds") and len(left_out) == 2030


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
class TestLinks:
    """Links are followed, and a picture comes once, by its own road where that is searched."""

    @pytest.fixture(autouse=True)
    def folders(self, tmp_path):
        self.root, self.store = tmp_path / "photos", tmp_path / "store"
        for name in ("photos/a.png", "photos/z/c.png", "store/b.png", "store/deep/d.png"):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    @pytest.mark.parametrize(
        ("links", "found", "said"),
        [
            ({"2024": "../store"}, ["2024/b.png", "2024/deep/d.png", "a.png", "z/c.png"], ""),
            ({"b.png": "../store/b.png"}, ["a.png", "b.png", "z/c.png"], ""),
            ({"loop": ".."}, ["a.png", "z/c.png"], "1 linked to a folder above (loop)"),
            ({"loop": "."}, ["a.png", "z/c.png"], "1 known by another path (loop)"),
            ({"z/loop": "../z"}, ["a.png", "z/c.png"], "1 known by another path (z/loop)"),
            ({"0": "z", "1.png": "a.png"}, ["a.png", "z/c.png"], "2 known by another path (0, 1.png)"),
            (
                {"1": "../store", "2": "../store/deep", "3.png": "../store/b.png"},
                ["1/b.png", "1/deep/d.png", "a.png", "z/c.png"],
                "2 known by another path (2, 3.png)",
            ),
            (
                {"0": "../store/deep", "1": "../store"},
                ["0/d.png", "1/b.png", "a.png", "z/c.png"],
                "1 known by another path",
            ),
            ({"gone.png": "nothing.png"}, ["a.png", "z/c.png"], "1 linked to nothing (gone.png)"),
            ({"self.png": "self.png"}, ["a.png", "z/c.png"], "1 linked to nothing (self.png)"),
            ({"notes.txt": "../store/b.png"}, ["a.png", "z/c.png"], "1 .txt (notes.txt)"),
        ],
    )
    def test_below_a_folder(self, links, found, said):
        for name, target in links.items():
            (self.root / name).symlink_to(target)
        names, left_out = search(self.root)
        assert names == found and (left_out == said or (said and left_out.startswith(said)))

    def test_a_link_to_what_is_hidden_or_has_no_ending_is_the_only_road_to_it(self):
        (self.root / ".blobs").mkdir()
        (self.root / ".blobs" / "5f").touch()
        (self.root / "b.png").symlink_to(".blobs/5f")
        assert search(self.root) == (["a.png", "b.png", "z/c.png"], "1 hidden (.blobs)")

    def test_what_is_named_twice_comes_once(self):
        (self.root / "2024").symlink_to(self.store)
        names, left_out = search(self.root, self.store, self.root / "a.png", self.root / "z")
        assert sorted(names) == ["a.png", "b.png", "deep/d.png", "z/c.png"] and left_out.startswith(
            "3 known by another"
        )

    def test_patterns_go_through_links_and_end(self):
        (self.root / "2024").symlink_to(self.store)
        (self.store / "deep" / "loop").symlink_to(self.root)
        (self.root / ".hidden.png").touch()
        found = ["2024/b.png", "2024/deep/d.png", "a.png", "z/c.png"]
        assert sorted(search(f"{self.root}/**/*.png")[0]) == found
        assert sorted(search(f"{self.root}/**")[0]) == found
        assert search(f"{self.root}/*/deep/*.png")[0] == ["2024/deep/d.png"]
        assert search(self.root / "a.png", f"{self.root}/*.jpg")[1].startswith("1 of patterns that match nothing")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_may_not_be_read_is_named(tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    (tmp_path / "a.png").touch()
    assert search(tmp_path) == (["a.png"], f"1 of folders that cannot be read ({tmp_path / 'closed'})")


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.png").touch()
    scandir = os.scandir

    def refusing(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert search(tmp_path) == (["a.png"], f"1 of folders that cannot be read ({tmp_path / 'closed'})")


@pytest.mark.parametrize("name", ["a_boxes.png", "a_boxes_2.jpg", "demo_boxes.webp", "preview.png", "Boxes.tiff"])
def test_our_drawings_are_no_pictures_and_those_of_others_are(tmp_path, name):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "their_boxes.png")
    drawing = save_drawing(Image.new("RGB", (4, 4)), tmp_path / name)
    assert search(tmp_path) == (["a.png", "their_boxes.png"], f"1 drawn by detr-hf ({drawing})")
    # as a shell writes out *.png
    assert search(*sorted(tmp_path.iterdir())) == (["a.png", "their_boxes.png"], f"1 drawn by detr-hf ({drawing})")
    assert search(drawing) == ([name], "")  # named alone, it is meant


def test_results_of_an_earlier_run_are_no_tables_of_pictures(tmp_path):
    for name in ("run1/run.json", "run1/part-00000-of-00001.parquet", "run1/unfinished/x", "a.png", "run.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found, said = search(tmp_path, suffixes=(".png", ".parquet"))
    assert found == ["a.png"] and said == f"1 .json (run.json), 1 of results ({tmp_path / 'run1'})"
