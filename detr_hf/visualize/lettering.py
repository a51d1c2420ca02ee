"""Lines of text in any script: each letter in a font that has it, and spelled by its number where none has.

Pillow's own font has ASCII alone and draws an empty box for everything else. Letters that it lacks come from the first
font that has them: matplotlib's DejaVu Sans where it is installed, then the system's. What is in no font, or has no
ink of its own (control and zero-width characters), stands as `[732B]`, so that two names never look alike.
"""

import logging
import os
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from PIL import ImageDraw, ImageFont, features

from .right_to_left import is_right_to_left, visual_order

logger = logging.getLogger(__name__)

BUNDLED = ""  # in place of the file of Pillow's own font
FONT_SUFFIXES = (".ttf", ".otf", ".ttc", ".otc")
FONT_FOLDERS = {
    "darwin": ("/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts"),
    "win32": (r"%WINDIR%\Fonts", r"%LOCALAPPDATA%\Microsoft\Windows\Fonts"),
}
UNIX_FONT_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts")
# Fonts whose glyphs stand for a block or for nothing: they have every letter and tell none from another.
PLACEHOLDERS = ("lastresort", "adobeblank", "notdef")
STYLES = ("bold", "italic", "oblique", "light", "thin", "black", "heavy", "condensed", "mono", "serif")
# A script is looked for until so many fonts have its first letter.
FONTS_A_SCRIPT = 8
PROBE_PX = 16
LEFT_TO_RIGHT = "\u200e"  # without ink: keeps a number beside a name of Hebrew or Arabic where it was written
# Without ink, but letters of Arabic and of India are shaped by them, or ordered.
JOINERS = "\u200c\u200d" + LEFT_TO_RIGHT
AS_EMOJI = "\ufe0f"  # without ink: asks for the coloured form of a sign, which is drawn in one colour here
# What `font=` takes, everywhere that draws names.
Font = str | Path | ImageFont.FreeTypeFont


class Line:
    """A line of text, set in one or several fonts of `px` pixels.

    Args:
        text: white space counts as one space.
        px: the size of the letters.
        number: what stands before a text of which letters have to be spelled by their numbers, as a class's label.
        font: the file of the font to use instead of those that are found (`font_file`).
        after: what follows the text, in ASCII.
    """

    def __init__(self, text: str, px: int, number: int | None = None, font: str = BUNDLED, after: str = ""):
        runs = [run for run in (*_runs(text, number, font), (after, font)) if run[0]] or [("", font)]
        self._runs = [
            (_as_drawn("".join(part for part, _ in parts), file), file)
            for file, parts in groupby(runs, key=lambda run: run[1])
        ]
        self._px = px

    @property
    def length(self) -> float:
        """How far the line reaches, in pixels."""
        return sum(_measured(text, file, self._px)[0] for text, file in self._runs)

    def bbox(self) -> tuple[float, float, float, float]:
        """Returns left, top, right and bottom of the ink, from the start of the base line."""
        boxes, x = [], 0.0
        for text, file in self._runs:
            length, (left, top, right, bottom) = _measured(text, file, self._px)
            boxes.append((x + left, top, x + right, bottom))
            x += length
        lefts, tops, rights, bottoms = zip(*boxes, strict=True)
        return min(lefts), min(tops), max(rights), max(bottoms)

    def draw(self, draw: ImageDraw.ImageDraw, x: float, base_y: float, fill: object) -> None:
        """Draws the line from (x, base_y) on, its base line there."""
        for text, file in self._runs:
            draw.text((x, base_y), text, fill=fill, font=_loaded(file, self._px), anchor="ls")
            x += _measured(text, file, self._px)[0]


def fitting_line(
    text: str, room: float, px: int, number: int | None = None, font: str = BUNDLED, after: str = ""
) -> Line:
    """Returns the text as far as it is no wider than `room` pixels with `after`, and an ellipsis where it is cut."""
    line = Line(text, px, number, font, after)
    if line.length <= room:
        return line
    spelled = "".join(part for part, _ in _runs(text, number, font))
    least, most = 1, max(len(spelled) - 1, 1)
    while least < most:
        middle = (least + most + 1) // 2
        fits = Line(spelled[:middle] + "…", px, font=font, after=after).length <= room
        least, most = (middle, most) if fits else (least, middle - 1)
    return Line(spelled[:least] + "…", px, font=font, after=after)


def beside_text(name: str) -> str:
    """Returns a name as it is put beside other text in one line, so that one of Hebrew or Arabic does not turn it."""
    return f"{LEFT_TO_RIGHT}{name}{LEFT_TO_RIGHT}" if any(map(is_right_to_left, name)) else name


def font_file(font: Font | None) -> str:
    """Returns the file of what `font=` names, with which letters of any size are loaded.

    Raises:
        ValueError: it is an `ImageFont` that was not loaded from a file.
    """
    file = getattr(font, "path", font) or BUNDLED
    if not isinstance(file, str | Path):
        raise ValueError("font is an ImageFont without a file, and names come in several sizes: give a font's file.")
    return str(file)


def _as_drawn(text: str, file: str) -> str:
    """Returns the text in the order and the forms in which Pillow has to be given it."""
    return text if features.check("raqm") else visual_order(text, lambda letter: _has(file, letter))


def files_with_letters(text: str) -> list[str]:
    """Returns the files of the fonts with which the letters of a text are drawn that Pillow's own font lacks."""
    return [file for file in dict.fromkeys(file for _, file in _runs(text, None, BUNDLED)) if file != BUNDLED]


class _Probe(NamedTuple):
    font: ImageFont.FreeTypeFont
    missing: tuple[tuple[int, int], bytes]  # what it draws for a letter that it lacks


@lru_cache(maxsize=4096)
def _runs(text: str, number: int | None, font: str) -> tuple[tuple[str, str], ...]:
    """Returns the text in parts, each with the file of a font that has all of it."""
    text = " ".join(unicodedata.normalize("NFC", text).replace(AS_EMOJI, "").split())
    shaped = any("\u0590" <= letter < "\u1100" for letter in text)
    letters = set(text.replace(" ", "")) - set(JOINERS if shaped else "")
    lacking = sorted(letter for letter in letters if not _has(font, letter))
    found = [] if font else [file for letter in lacking for file in _fonts_of(letter, text)]
    for file in (font, *dict.fromkeys(found)):
        if all(_has(file, letter) for letter in letters):
            return ((text, file),)
    if font and lacking:
        _warn_of_font(font)
    parts: list[tuple[str, str | None]] = []
    for letter in text:
        if letter == " " or (shaped and letter in JOINERS):
            choice = parts[-1][1] if parts else font
        else:
            last = [parts[-1][1]] if parts and unicodedata.category(letter).startswith("M") else []
            choice = next((file for file in (*last, font, *found) if file is not None and _has(file, letter)), None)
        parts.append((letter, choice))
    runs = [("".join(letter for letter, _ in run), file) for file, run in groupby(parts, key=lambda part: part[1])]
    codes = number is not None and any(file is None for _, file in runs)
    spelled = [(part, file) if file is not None else (_spelled(part), font) for part, file in runs]
    return tuple([(f"{number} ", font)] * codes + spelled)


def _spelled(letters: str) -> str:
    """Returns `[732B 72D7]`."""
    return f"[{' '.join(f'{ord(letter):X}' for letter in letters.strip() or letters)}]{' ' * letters.endswith(' ')}"


@lru_cache(maxsize=16384)
def _has(file: str, letter: str) -> bool:
    """Whether a font draws the letter, and as something else than what it lacks."""
    if unicodedata.category(letter) in ("Cc", "Cf", "Cn", "Cs", "Zl", "Zp"):
        return False
    probe = _probe(file)
    if probe is None:
        return False
    size, ink = _ink(probe.font, letter)
    return any(ink) and (size, ink) != probe.missing


@lru_cache(maxsize=16)
def _probe(file: str) -> _Probe | None:
    try:
        font = _loaded(file, PROBE_PX)
        return _Probe(font, _ink(font, "\uffff"))
    except (OSError, ValueError):  # no font, or one of pictures in a size of its own
        return None


def _ink(font: ImageFont.FreeTypeFont, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)


@lru_cache(maxsize=64)
def _loaded(file: str, px: int) -> ImageFont.FreeTypeFont:
    """Returns a font of this size, for which Pillow's own is unpacked once."""
    return ImageFont.truetype(file, px) if file else ImageFont.load_default(px)


@lru_cache(maxsize=4096)
def _measured(text: str, file: str, px: int) -> tuple[float, tuple[float, float, float, float]]:
    """Returns how far a text reaches, and left, top, right and bottom of its ink: pictures repeat names and scores."""
    font = _loaded(file, px)
    return font.getlength(text), font.getbbox(text, anchor="ls")


_FONTS_OF_SCRIPT: dict[str, list[str]] = {}


def _fonts_of(letter: str, text: str) -> list[str]:
    """Returns the fonts that have a letter's script, by the first letter of it that was asked for."""
    script = f"U+{ord(letter) >> 8:02X}00"
    if unicodedata.category(letter)[0] in "LMN":  # not a symbol, whose name does not begin with a script
        script = unicodedata.name(letter, script).replace("-", " ").split()[0]
    if script not in _FONTS_OF_SCRIPT:
        found: list[str] = []
        for file in _files():
            if _has(file, letter):
                found.append(file)
            if len(found) == FONTS_A_SCRIPT:
                break
        _FONTS_OF_SCRIPT[script] = found
        if not found and unicodedata.category(letter)[0] != "C":
            logger.warning(
                "No font of this machine has the letters of %r (%s): they are drawn as their Unicode numbers, after "
                "the number of the class. Install a font that has them (Debian, Ubuntu: apt install fonts-noto-core "
                "fonts-noto-cjk), or name the file of one with font= (detr-hf predict: --font).",
                text,
                script,
            )
    return _FONTS_OF_SCRIPT[script]


@lru_cache
def _warn_of_font(font: str) -> None:
    logger.warning("%s lacks letters of the names: they are drawn as their Unicode numbers.", font)


@lru_cache(maxsize=1)
def _files() -> tuple[str, ...]:
    """Returns the files of all fonts, those first that read best in a small size."""
    shipped = find_spec("matplotlib")  # not imported
    own = [] if shipped is None else [Path(shipped.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"]
    system = sorted({*_from_fontconfig(), *_from_folders()}, key=_rank)
    return tuple(dict.fromkeys([*(str(path) for path in own if path.is_file()), *system]))


def _rank(file: str) -> tuple[bool, int, str]:
    name = Path(file).stem.lower()
    return "sans" not in name, sum(style in name.replace("sans", "") for style in STYLES), name


def _from_fontconfig() -> Iterator[str]:
    program = shutil.which("fc-list")
    if program is None:
        return
    try:
        done = subprocess.run([program, "--format", "%{file}\n"], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return
    yield from filter(_is_usable, os.fsdecode(done.stdout).splitlines())


def _from_folders() -> Iterator[str]:
    for folder in FONT_FOLDERS.get(sys.platform, UNIX_FONT_FOLDERS):
        for parent, _, names in os.walk(os.path.expandvars(os.path.expanduser(folder))):
            yield from filter(_is_usable, (os.path.join(parent, name) for name in names))


def _is_usable(file: str) -> bool:
    name = Path(file).name.lower().replace("-", "").replace(" ", "")
    return name.endswith(FONT_SUFFIXES) and not name.startswith(PLACEHOLDERS)
