"""The SVG: well-formed, alone in the world, every object within reach, and no name over another."""

from base64 import b64decode
from io import BytesIO
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from detr_hf.visualize.saving import is_marked_svg
from detr_hf.visualize.vector import html_page, objects_svg, segments_svg

SVG = "{http://www.w3.org/2000/svg}"
NAMES = {
    "a tag": "<script>alert(1)</script>",
    "quotes": "\"a'b&c",
    "Chinese": "猫",
    "Arabic": "قطة",
    "emoji": "🐱",
    "controls": "a\x00b\u202ec\ud800",
    "200 letters": "long " * 40,
    "nothing": "",
}


def grey(width: int = 320, height: int = 240) -> Image.Image:
    return Image.new("RGB", (width, height), (128, 128, 128))


def groups(svg: str) -> list[ElementTree.Element]:
    found = [each for each in ElementTree.fromstring(svg).iter(f"{SVG}g") if "object" in each.get("class", "").split()]
    return sorted(found, key=lambda each: int(each.get("data-index")))


def names(svg: str) -> dict[str, ElementTree.Element]:
    """The names that stand there always, by the number of the object."""
    return {each.get("data-of"): each for each in ElementTree.fromstring(svg).iter(f"{SVG}g") if each.get("data-of")}


def picture_in(svg: str) -> Image.Image:
    (element,) = ElementTree.fromstring(svg).iter(f"{SVG}image")
    return Image.open(BytesIO(b64decode(element.get("href").partition("base64,")[2])))


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_any_name_is_text(name, tmp_path):
    svg = objects_svg(grey(), [[10, 40, 100, 90.5]], [name], labels=[3], scores=[0.625], title=name)
    for written in (svg, html_page(svg, name)):
        assert written.encode().count(b"<script") == 0 and written.count("http") == 1  # the name of SVG itself
        (tmp_path / "a").write_text(written, encoding="utf-8")
        assert is_marked_svg(tmp_path / "a")
    (group,) = groups(svg)
    data = {key.removeprefix("data-"): value for key, value in group.items() if key.startswith("data-")}
    box = {"x0": "10", "y0": "40", "x1": "100", "y1": "90.5"}
    assert data == {"index": "0", "label": "3", "score": "0.625", **box}
    assert group.get("tabindex") == "0" and group.get("role") == "img"
    said = name.replace("\x00", "[0]").replace("\u202e", "[202E]").replace("\ud800", "[D800]")
    assert group.get("aria-label") == f"{' '.join(said.split())} 0.62".strip()
    assert group.find(f"{SVG}title").text.split("\n") == [group.get("aria-label"), "[10, 40, 100, 90.5]"]
    (text,) = group.iter(f"{SVG}text")
    shown = text.text.removesuffix("\u200e  0.62")
    assert (shown and said.startswith(shown[:10])) or not name
    left, length = float(text.get("x")), float(text.get("textLength"))
    assert left >= 0 and left + length <= 320


def test_names_that_would_cover_better_ones_wait_and_do_not_change_with_what_is_hidden():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 200, (80, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(10, 60, (80, 2))], axis=1)
    scores = rng.permutation(80) / 80

    def named(kept: np.ndarray, **options) -> set[float]:
        svg = objects_svg(grey(), boxes[kept], ["cat"] * len(kept), labels=[0] * len(kept), scores=scores[kept])
        rectangles = []
        for name in names(svg).values():
            (ground,) = name.iter(f"{SVG}rect")
            x, y, width, height = (float(ground.get(key)) for key in ("x", "y", "width", "height"))
            rectangles.append((x, y, x + width, y + height))
        for i, one in enumerate(rectangles):
            for other in rectangles[:i]:
                assert one[0] >= other[2] or other[0] >= one[2] or one[1] >= other[3] or other[1] >= one[3]
        return {float(group.get("data-score")) for group in groups(svg) if group.get("data-index") in names(svg)}

    whole = named(np.arange(80))
    assert 10 < len(whole) < 80
    for threshold in (0.3, 0.8):
        alone = named(np.flatnonzero(scores > threshold))
        assert alone == {score for score in whole if score > threshold} != set()
    svg = objects_svg(grey(), boxes, ["cat"] * 80, labels=[0] * 80, scores=scores, shown_names="all")
    assert len(names(svg)) == 80


def test_names_lie_over_the_lines_of_all_objects_and_are_those_of_their_own():
    boxes, labels = [[50, 50, 60, 60], [0, 0, 300, 200]], [0, 1]
    svg = objects_svg(grey(), boxes, ["a", "b"], labels=labels, scores=[0.5, 0.9])
    objects, over = [each for each in ElementTree.fromstring(svg) if each.tag == f"{SVG}g"]
    assert (objects.get("class"), over.get("class"), over.get("aria-hidden")) == ("objects", "names", "true")
    for index, name in names(svg).items():
        own = groups(svg)[int(index)]
        assert ElementTree.tostring(own.find(f"{SVG}g")) == ElementTree.tostring(name.find(f"{SVG}g"))
        assert own.get("fill") == name.get("fill")
    assert names(svg).keys() == {"0", "1"}


def test_small_objects_lie_over_large_ones_so_that_the_pointer_reaches_both():
    boxes = [[50, 50, 60, 60], [0, 0, 300, 200], [40, 40, 90, 90]]
    svg = objects_svg(grey(), boxes, list("abc"), labels=[0, 1, 2])
    order = [each.get("data-index") for each in ElementTree.fromstring(svg).iter(f"{SVG}g") if each.get("tabindex")]
    assert order == ["1", "2", "0"]


@pytest.mark.parametrize(
    ("size", "inside", "shown"), [((40, 20), 40, 480), ((900, 700), 900, 900), ((4, 3000), 2, 1280)]
)
def test_the_picture_is_inside_and_bounded(size, inside, shown):
    image = Image.effect_noise(size, 90).convert("RGB")
    svg = objects_svg(image, [], [], labels=[])
    root = ElementTree.fromstring(svg)
    assert root.get("viewBox") == f"0 0 {size[0]} {size[1]}" and picture_in(svg).width == inside
    assert max(int(root.get("width")), int(root.get("height"))) == shown
    small = objects_svg(image, [], [], labels=[], max_side=30)
    assert max(picture_in(small).size) <= 30 and ElementTree.fromstring(small).get("viewBox") == root.get("viewBox")


def test_masks_and_segments_are_paths_in_pixels_of_the_picture():
    mask = np.ones((10, 20), dtype=bool)
    svg = objects_svg(
        grey(160, 120), [[10, 20, 50, 60]], ["a"], labels=[0], masks=[(12, 24, mask)], size_hw=(240, 320)
    )
    (group,) = groups(svg)
    assert group.find(f"{SVG}path").get("d") == "M12 24l20 0 0 10 -20 0z"
    assert ElementTree.fromstring(svg).get("viewBox") == "0 0 320 240"
    ids = np.zeros((240, 320), dtype=np.int32)
    ids[100:] = 7
    segments = [
        {"id": 7, "label_id": 2, "name": "sea", "score": 0.5},
        {"id": 8, "label_id": 1, "name": "without a pixel"},
    ]
    sea, none = groups(segments_svg(grey(), ids, segments))
    assert sea.find(f"{SVG}path").get("d") == "M0 100l320 0 0 140 -320 0z" and sea.find(f"{SVG}rect") is None
    assert sea.get("data-score") == "0.5" and names(segments_svg(grey(), ids, segments)).keys() == {"0"}
    assert none.find(f"{SVG}path") is None and none.find(f"{SVG}g") is None


def test_the_same_twice_and_a_caption():
    one, other = (objects_svg(grey(), [[1, 2, 30, 40]], ["a"], labels=[0], caption="<nothing>") for _ in range(2))
    assert one == other
    (caption,) = [each for each in ElementTree.fromstring(one).iter(f"{SVG}g") if "caption" in each.get("class", "")]
    assert next(caption.iter(f"{SVG}text")).text == "<nothing>"


def test_a_segments_name_stands_in_it_where_there_is_room():
    ids = np.zeros((240, 320), dtype=np.int32)
    ids[:, 160:] = ids[120:] = 1  # without the left upper quarter, where a box's name would go
    (group,) = groups(segments_svg(grey(), ids, [{"id": 1, "label_id": 2, "name": "sea"}]))
    (ground,) = group.find(f"{SVG}g").iter(f"{SVG}rect")
    x, y, width, height = (float(ground.get(key)) for key in ("x", "y", "width", "height"))
    assert (ids[int(y) : int(y + height), int(x) : int(x + width)] == 1).all()
