"""What is drawn of an evaluation, and what is left out and said; the numbers of plots are those of the table."""

import json

import numpy as np
import pytest
from datasets import Dataset, Features, Image as ImageFeature, List, Value
from PIL import Image

from detr_hf.evaluation import plotting
from detr_hf.evaluation.plotting import save_plots
from detr_hf.evaluation.report import Evaluation
from detr_hf.visualize import plots

BOX = [10.0, 10.0, 40.0, 40.0]
FAR = [200.0, 10.0, 40.0, 40.0]
OF_OBJECTS = (
    "precision_recall.png",
    "confusion.png",
    "mistakes.png",
    "ap_by_class.png",
    "calibration.png",
    "report.pdf",
)


def evaluation(names, objects, found):
    """Of objects (image, class) at one place, and detections (image, class, score, box)."""
    annotations = [
        {"id": n, "image_id": image, "category_id": label, "bbox": BOX, "area": 1600.0, "iscrowd": 0}
        for n, (image, label) in enumerate(objects, 1)
    ]
    truth = {
        "images": [{"id": image, "width": 320, "height": 240} for image in range(12)],
        "categories": [{"id": label, "name": name} for label, name in enumerate(names)],
        "annotations": annotations,
    }
    rows = [[image, *box, score, label] for image, label, score, box in found]
    return Evaluation.of(truth, np.array(rows, dtype=float).reshape(-1, 7))


RIGHT_AND_WRONG = [(0, 0, 0.9, BOX), (1, 1, 0.8, BOX), (1, 0, 0.6, FAR), (2, 1, 0.7, BOX)]
OBJECTS = [(0, 0), (1, 1), (2, 0)]
MANY = [f"class {number}" for number in range(60)]
CASES = {
    "some": (("cat", "dog"), OBJECTS, RIGHT_AND_WRONG, {}, []),
    "one class": (("cat",), [(0, 0), (1, 0)], RIGHT_AND_WRONG[:1], {}, []),
    "no truth": (("cat", "dog"), [], RIGHT_AND_WRONG, dict.fromkeys(OF_OBJECTS, "no objects to measure on"), []),
    "nothing found": (
        ("cat", "dog"),
        OBJECTS,
        [],
        dict.fromkeys(("precision_recall.png", "mistakes.png", "ap_by_class.png", "calibration.png"), "was detected"),
        [],
    ),
    "nothing right": (
        ("cat", "dog"),
        OBJECTS,
        [(0, 0, 0.9, FAR)],
        {
            "precision_recall.png": "no detection is right",
            "ap_by_class.png": "AP of every class is 0",
            "mistakes.png": "one kind of mistake alone",
        },
        [],
    ),
    "a class without objects": (("cat", "dog", "猫"), OBJECTS, RIGHT_AND_WRONG, {}, ["1 of 3 classes have no obj"]),
    "many classes": (
        MANY,
        [(n % 12, n) for n in range(0, 60, 2)],
        [(n % 12, n, 0.5, BOX if n % 3 else FAR) for n in range(0, 60, 2)],
        {"mistakes.png": "one kind of mistake alone"},
        ["30 of 60 classes have no objects", "20 best and the 5 worst of 30", "25 most confused of 60"],
    ),
}


@pytest.fixture
def written(monkeypatch):
    """The plots that are drawn, which here takes no time."""
    drawn = {}
    for name in [name for name in vars(plotting.plots) if name.startswith("save_") and name != "save_drawing"]:
        monkeypatch.setattr(plotting.plots, name, lambda *given: drawn.update({given[-1].name: given[:-1]}))
    return drawn


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_drawn_is_left_out_and_said(case, written, tmp_path):
    names, objects, found, left_out, notes = CASES[case]
    (tmp_path / "mistakes.png").write_bytes(b"of an earlier evaluation")
    saved = save_plots(evaluation(names, objects, found), tmp_path / ".", about={"model": "mine"})
    others = {"query_slots.png": "nobody knows", "comparison.png": "not at hand"}
    assert saved.left_out.keys() == {*left_out, *others}
    assert set(written) == set(OF_OBJECTS) - set(left_out)
    for name, why in {**others, **left_out}.items():
        assert why in saved.left_out[name] or "was detected" in saved.left_out[name], name
    assert len(saved.notes) == len(notes) and all(map(str.__contains__, saved.notes, notes))
    assert all(name in saved.text() for name in OF_OBJECTS)
    assert not (tmp_path / "mistakes.png").exists()
    numbers = json.loads((tmp_path / "numbers.json").read_text(), parse_constant=pytest.fail)  # no NaN
    assert numbers["model"] == "mine" and set(numbers["per_class"]) == set(names)


def test_table_numbers_and_plots_say_the_same(written, tmp_path):
    found = evaluation(("cat", "dog"), OBJECTS, RIGHT_AND_WRONG)
    save_plots(found, tmp_path)
    numbers, lost = json.loads((tmp_path / "numbers.json").read_text()), written["mistakes.png"][0]
    assert (
        written["confusion.png"][0].tolist() == numbers["mistakes"]["confusion"] == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    )
    assert lost == numbers["mistakes"]["ap50_lost"] and lost["class"] > 0
    line = next(line for line in found.table().splitlines() if line.endswith("  class"))
    assert line.split() == [str(numbers["mistakes"]["errors"]["class"]), f"{lost['class']:.3f}", "class"]
    best = numbers["thresholds"]["of_all"]
    assert f"at threshold {best['score']:g}: precision {best['precision']:.3f}, recall" in found.table()
    assert numbers["thresholds"]["per_class"]["cat"]["f1"] == pytest.approx(2 / 3)
    assert numbers["calibration"]["num_detections"] == 4


def test_names_are_short_and_differ(written, tmp_path):
    names = ["a" * 200, "a" * 201, "a\nb"]
    save_plots(evaluation(names, OBJECTS, RIGHT_AND_WRONG), tmp_path)
    shown = written["confusion.png"][1]
    assert len(set(shown)) == 3 and max(map(len, shown)) <= 30 and shown[2] == "a b"


def test_the_worst_the_middling_and_the_best_pictures_are_drawn_once_each(written, tmp_path, monkeypatch):
    objects = [(image, 0) for image in range(11)]  # the last picture is empty
    found = evaluation(["cat"], objects, [(image, 0, 0.9, BOX if image > 4 else FAR) for image in range(11)])
    picture = Image.new("RGB", (320, 240))
    one = {"bbox": List(List(Value("float32"))), "category": List(Value("int64"))}
    columns = {"image_id": Value("int64"), "width": Value("int64"), "height": Value("int64")}
    features = Features({**columns, "image": ImageFeature(), "objects": one})
    rows = [{"image_id": i, "width": 320, "height": 240, "image": picture} for i in range(12)]
    rows = Dataset.from_list([{**row, "objects": {"bbox": [], "category": []}} for row in rows], features)
    drawn, captions = [], []
    monkeypatch.setattr(plotting, "draw_boxes", lambda *args, **options: drawn.append((args[1], options["scores"])))
    monkeypatch.setattr(
        plotting, "grid", lambda cells, **options: captions.extend(options["captions"]) or Image.new("RGB", (9, 9))
    )
    assert "comparison.png" in save_plots(found, tmp_path, rows).files
    kinds = [caption.partition(",")[0] for caption in captions[::2]]
    assert kinds == ["worst"] * 3 + ["middling"] * 3 + ["best"] * 3
    assert "F1 0.00, 0 of 1 found, 1 wrong" in captions[0] and "F1 1.00, 1 of 1" in captions[-2]
    (truth, unscored), (_, scores) = drawn[:2]
    assert truth.tolist() == [[10, 10, 50, 50]] and unscored is None and scores == [0.9]


def test_a_missing_library_is_said_before_anything_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(plotting, "find_spec", lambda name: None if name == "matplotlib" else True)
    with pytest.raises(ImportError, match=r"Plots need matplotlib, .*pip install 'detr-hf\[viz\]'"):
        save_plots(evaluation(["cat"], [], []), tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.parametrize("case", ["one class", "a class without objects", "1,000 classes"])
def test_hotcoco_draws_it_with_ink_in_its_axes(case, tmp_path, monkeypatch):
    names, objects, found, left_out, _ = CASES.get(case) or CASES["many classes"]
    if case not in CASES:
        names = [f"class {number}" for number in range(1000)]
    figures, image = [], plots._image
    monkeypatch.setattr(plots, "_image", lambda figure, **options: figures.append(figure) or image(figure, **options))
    saved = save_plots(evaluation(names, objects, found), tmp_path)
    for axes in (figure.axes[0] for figure in figures if figure.get_suptitle() == "Precision by recall"):
        legend = axes.get_legend().get_window_extent()
        for line in axes.lines:
            xs, ys = line.get_data()
            dense = np.interp(np.linspace(0, 1, 2000), np.linspace(0, 1, len(xs)), xs)
            dense = np.stack([dense, np.interp(dense, xs, ys)], axis=1)
            assert not any(legend.contains(*point) for point in axes.transData.transform(dense)), "across a line"
    bars = next(figure.axes[0] for figure in figures if figure.axes[0].get_title().startswith("AP by class"))
    assert bars.patches[0].get_height() < abs(np.diff(bars.get_ylim())[0]) / 3, "a wall"
    assert set(OF_OBJECTS) - set(left_out) <= set(saved.files)
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    for path in tmp_path.glob("*.png"):
        pixels = np.asarray(Image.open(path).convert("L"))
        height, width = pixels.shape
        inner = pixels[height // 10 : -height // 10, width // 5 : -width // 20]
        assert (inner < 200).mean() > 0.002, path.name
