"""Names in any script: legible where a font has them, told apart where none has, and harmless in any case."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont, features

from detr_hf.visualize import lettering
from detr_hf.visualize.boxes import draw_boxes
from detr_hf.visualize.grids import grid
from detr_hf.visualize.lettering import Line, beside_text, fitting_line

PAIRS = {
    "Latin": ("Käfer", "Köfer"),
    "Polish": ("żółw", "źółw"),
    "Vietnamese": ("mèo", "méo"),
    "Cyrillic": ("кот", "пёс"),
    "Greek": ("γάτα", "ψάρι"),
    "Hebrew": ("חתול", "כלב"),
    "Arabic": ("قطة", "كلب"),
    "Armenian": ("կատու", "շուն"),
    "Devanagari": ("बिल्ली", "कुत्ता"),
    "Thai": ("แมว", "หมา"),
    "Hangul": ("고양이", "강아지"),
    "Kana": ("ねこ", "いぬ"),
    "Han": ("猫", "狗"),
    "emoji": ("🐱", "🐶"),
    "a zero-width space": ("a\u200bb", "ab"),
    "a bell": ("a\x07b", "a\x08b"),
    "bytes of a file name": ("a\udc80", "a\udc81"),
    "private use": ("\ue000", "\ue001"),
    "one letter in another script": ("cat猫", "cat狗"),
}


@pytest.fixture(params=["fonts of this machine", "Pillow's font alone"], autouse=True)
def fonts(request, monkeypatch):
    def forget():
        lettering._runs.cache_clear()
        lettering._files.cache_clear()
        lettering._FONTS_OF_SCRIPT.clear()

    forget()
    if request.param != "fonts of this machine":
        monkeypatch.setattr(lettering, "find_spec", lambda name: None)
        monkeypatch.setattr(lettering, "_from_fontconfig", lambda: iter(()))
        monkeypatch.setattr(lettering, "_from_folders", lambda: iter(()))
    yield request.param
    forget()


def drawn(name: str, **options) -> np.ndarray:
    return np.array(
        draw_boxes(Image.new("RGB", (260, 80), "white"), [[10, 40, 150, 70]], [name], labels=[0], **options)
    )


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_two_names_never_look_alike(pair):
    one, other = map(drawn, pair)
    assert not np.array_equal(one, other)
    captions = [np.array(grid([Image.new("RGB", (200, 5))], captions=[name])) for name in pair]
    assert not np.array_equal(*captions)


def test_letters_come_from_a_font_that_has_them(fonts):
    pytest.importorskip("matplotlib")
    runs = lettering._runs("γάτα", 3, lettering.BUNDLED)
    if fonts == "Pillow's font alone":
        assert runs == (("3 ", ""), ("[3B3 3AC 3C4 3B1]", ""))
    else:
        ((text, file),) = runs
        assert text == "γάτα" and "DejaVuSans" in file  # matplotlib's


def test_ascii_is_drawn_in_the_font_of_pillow_and_nothing_is_looked_for(monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(lettering, "_files", lambda: pytest.fail("looked for fonts"))
        assert lettering._runs("traffic light", 9, lettering.BUNDLED) == (("traffic light", ""),)
    font = ImageFont.load_default(12)
    assert Line("traffic light", 12).length == font.getlength("traffic light")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("line\nbreak\ttab", "line break tab"),
        ("  cat\r\n", "cat"),
        ("a\x00b", "7 a[0]b"),
        ("a\u202eb\ufeff", "7 a[202E]b[FEFF]"),
        ("\U000e0041", "7 [E0041]"),
    ],
)
def test_what_has_no_ink_is_spelled_and_white_space_is_one_space(name, text):
    assert "".join(part for part, _ in lettering._runs(name, 7, lettering.BUNDLED)) == text


def test_one_letter_in_two_normal_forms_is_one_letter():
    assert np.array_equal(drawn(unicodedata.normalize("NFD", "Käfer")), drawn("Käfer"))


def test_a_script_without_a_font_is_warned_of_once(fonts, caplog):
    for name in ("\U00012000\U00012001", "\U00012002", "cat"):  # cuneiform
        drawn(name)
    if not lettering._FONTS_OF_SCRIPT["CUNEIFORM"]:
        (record,) = caplog.records
        assert "CUNEIFORM" in record.message and "install" in record.message.lower() and "font=" in record.message


def test_a_font_that_is_named_is_the_one_that_is_used(caplog):
    matplotlib = pytest.importorskip("matplotlib")
    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSerif.ttf"
    assert not np.array_equal(drawn("cat"), drawn("cat", font=file))
    assert lettering._runs("γ猫", 0, str(file)) == (("0 ", str(file)), ("γ", str(file)), ("[732B]", str(file)))
    cells = [Image.new("RGB", (200, 100))]
    plain, serif = (np.array(grid(cells, captions=["cat"], font=font)) for font in (None, file))
    assert not np.array_equal(plain, serif)
    with pytest.raises(OSError):
        drawn("cat", font="gone.ttf")


def test_a_line_too_long_is_cut_as_late_as_it_fits():
    for text in ("a name that is far too long", "γάτα " * 9, "猫" * 40):
        line = fitting_line(text, 90, 12)
        assert line.length <= 90 < fitting_line(text, 10_000, 12).length
        spelled = "".join(part for part, _ in lettering._runs(text, None, lettering.BUNDLED))
        kept = len("".join(part for part, _ in line._runs)) - 1
        assert Line(spelled[: kept + 1] + "…", 12).length > 90


def test_fonts_are_ranked_for_small_letters():
    files = [
        "/f/NotoSerifCJK-Bold.ttc",
        "/f/NotoSansCJK-Bold.ttc",
        "/f/NotoSansCJK-Regular.ttc",
        "/f/Arial Italic.ttf",
    ]
    assert sorted(files, key=lettering._rank)[:2] == ["/f/NotoSansCJK-Regular.ttc", "/f/NotoSansCJK-Bold.ttc"]
    assert not lettering._is_usable("/System/Library/Fonts/LastResort.otf")  # has every letter, all alike
    assert not lettering._is_usable("/f/readme.txt") and lettering._is_usable("/f/A.TTF")


def test_a_font_may_be_one_that_is_loaded():
    matplotlib = pytest.importorskip("matplotlib")
    file = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSerif.ttf")
    assert np.array_equal(drawn("cat", font=ImageFont.truetype(file, 40)), drawn("cat", font=file))
    with pytest.raises(ValueError, match="give a font's file"):
        drawn("cat", font=ImageFont.load_default(12))


def test_a_sign_as_emoji_is_the_sign():
    assert np.array_equal(drawn("☀\ufe0f"), drawn("☀"))


def test_without_raqm_arabic_and_hebrew_look_as_with_it(monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    if not features.check("raqm"):
        pytest.skip("no raqm to compare with")
    file = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
    plain, raqm = (ImageFont.truetype(file, 60, layout_engine=engine) for engine in ImageFont.Layout)
    monkeypatch.setattr(lettering.features, "check", lambda name: False)
    names = ["قطة", "كلب صغير", "سلامة", "مدرسة 42", "חתול", "כלב 12 קטן", "cat قطة"]
    for name in [*names, f"{beside_text('قطة')}  0.62", f"{beside_text('חתול')} 7: x"]:
        images = []
        for text, font in ((lettering._as_drawn(name, file), plain), (name, raqm)):
            image = Image.new("L", (500, 120))
            ImageDraw.Draw(image).text((10, 20), text, fill=255, font=font)
            images.append(np.asarray(image) > 127)
        same = (images[0] & images[1]).sum() / (images[0] | images[1]).sum()
        assert same > 0.8, (name, same)


def test_a_name_from_right_to_left_does_not_turn_the_text_beside_it():
    matplotlib = pytest.importorskip("matplotlib")
    if not features.check("raqm"):
        pytest.skip("no raqm that would turn it")
    file = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
    ends = []
    for name in ("cat", beside_text("قطة"), "قطة"):
        image = Image.new("L", (400, 40))
        Line(f"{name}  0.62: iiiiiiiiiiii", 20, font=file).draw(ImageDraw.Draw(image), 0, 30, 255)
        right = np.flatnonzero(np.asarray(image).any(axis=0))[-1] + 1
        ends.append(np.asarray(image.crop((right - 40, 0, right, 40)).resize((10, 10))).astype(int))
    turned = np.abs(ends[2] - ends[0]).sum()
    assert np.abs(ends[1] - ends[0]).sum() < turned / 2 and beside_text("cat") == "cat"
