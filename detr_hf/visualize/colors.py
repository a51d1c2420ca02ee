"""The colour and the line of a class, the same in every drawing: twelve colours, and tones and dashes beyond them.

The twelve keep a distance of 29 in CIELAB (76) from each other for people with normal sight, with protanopia and with
deuteranopia, as Machado, Oliveira and Fernandes (2009) simulate them at severity 1 (`tests/visualize/test_colors.py`
measures it). They were searched for: of all colours with a chroma of 38 and a lightness from 28 to 93, so that they
show on photographs, those twelve whose least distance is largest. After them come their tones, whose lines are dashed.
"""

from functools import lru_cache

PALETTE = (
    (255, 60, 90),
    (0, 135, 255),
    (225, 240, 0),
    (135, 0, 165),
    (225, 120, 0),
    (150, 255, 210),
    (0, 0, 255),
    (255, 15, 165),
    (60, 195, 240),
    (135, 30, 75),
    (255, 225, 135),
    (75, 75, 0),
)
# What a round through the palette is mixed with, and how much of that: nothing, white or black.
TONES = ((0, 0.0), (255, 0.4), (0, 0.4), (255, 0.65), (0, 0.6), (255, 0.2), (0, 0.2), (255, 0.52), (0, 0.5))
# Of a round: lengths of dashes and gaps in widths of the line; no gaps in the first.
DASHES: tuple[tuple[int, ...], ...] = ((), (7, 4), (2, 3), (9, 3, 2, 3))
LEAST_WHITE_CONTRAST = 4.0
WHITE, BLACK = (255, 255, 255), (0, 0, 0)

Color = tuple[int, int, int]


@lru_cache(maxsize=1024)
def class_color(label: int) -> Color:
    """Returns the RGB colour of a class, the same in every drawing and every process."""
    tone, share = TONES[label // len(PALETTE) % len(TONES)]
    return mixed(PALETTE[label % len(PALETTE)], (tone, tone, tone), share)


def class_dashes(label: int) -> tuple[int, ...]:
    """Returns dashes and gaps of a class's line, in widths of it; none is a line without gaps."""
    return DASHES[label // len(PALETTE) % len(DASHES)]


@lru_cache(maxsize=1024)
def text_color(ground: Color) -> Color:
    """Returns white where its contrast ratio (WCAG 2) on `ground` is good, else black, whose ratio then is above 5."""
    return WHITE if 1.05 / (relative_luminance(ground) + 0.05) >= LEAST_WHITE_CONTRAST else BLACK


@lru_cache(maxsize=1024)
def rim_color(color: Color) -> Color:
    """Returns what rims a line of this colour, so that it shows on any ground: a dark tone of it, or a light one."""
    return mixed(color, text_color(color), 0.75)


def mixed(color: Color, other: Color, share: float) -> Color:
    """Returns a colour of which `share` is another."""
    return tuple(round(one * (1 - share) + two * share) for one, two in zip(color, other, strict=True))


def hex_color(color: Color) -> str:
    """Returns a colour as HTML and SVG write it: #rrggbb."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def relative_luminance(color: Color) -> float:
    """Returns how light a colour is, in [0, 1], as WCAG 2 defines it."""
    linear = [part / 255 / 12.92 if part <= 10 else ((part / 255 + 0.055) / 1.055) ** 2.4 for part in color]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
