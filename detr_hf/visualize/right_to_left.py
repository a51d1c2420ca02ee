"""Hebrew and Arabic where Pillow has no raqm, as on Windows and macOS without fribidi: in order, and joined.

Without raqm Pillow sets letters from left to right and each alone, which nobody can read. What is done here is less
than raqm does: stretches of one direction, as names are, and the forms of Arabic letters that Unicode has numbers for.
"""

import unicodedata
from collections.abc import Callable
from functools import lru_cache
from itertools import groupby

FORMS = range(0xFB50, 0xFEFD)  # Arabic Presentation Forms A and B


def visual_order(text: str, has: Callable[[str], bool]) -> str:
    """Returns the text as letters from left to right, those of Arabic in the forms that `has` says can be drawn."""
    if not any(is_right_to_left(letter) for letter in text):
        return text
    clusters: list[str] = []
    for letter in _joined(text, has):
        if clusters and unicodedata.combining(letter):
            clusters[-1] += letter  # stays behind the letter that it is drawn on
        else:
            clusters.append(letter)
    kinds = [_kind(cluster) for cluster in clusters]
    first, last = kinds.index("R"), len(kinds) - kinds[::-1].index("R")
    if next(kind for kind in kinds if kind) == "R":  # then the whole text runs so
        first, last = 0, len(kinds)
    # What lies between two stretches of one direction goes with them; numbers keep theirs.
    inner = [
        (kind == "L", list(part)) for kind, part in groupby(clusters[first:last], key=lambda cluster: _kind(cluster))
    ]
    turned = [cluster for is_ltr, part in reversed(inner) for cluster in (part if is_ltr else reversed(part))]
    return "".join([*clusters[:first], *turned, *clusters[last:]]).replace("\u200e", "")  # which has done its work


def is_right_to_left(letter: str) -> bool:
    """Whether a letter is of a script that runs from right to left."""
    return unicodedata.bidirectional(letter) in ("R", "AL")


def _kind(cluster: str) -> str:
    """Returns "R" or "L" for a letter or a number, "" for what has no direction of its own."""
    kind = unicodedata.bidirectional(cluster[0])
    return "R" if kind in ("R", "AL") else "L" if kind in ("L", "EN", "AN") else ""


def _joined(text: str, has: Callable[[str], bool]) -> str:
    """Returns the text with its Arabic letters in the forms that they have beside their neighbours."""
    joined, at, joins_on = [], 0, False
    while at < len(text):
        pair, letter = text[at : at + 2], text[at]
        if unicodedata.combining(letter):
            joined.append(letter)
            at += 1
            continue
        whole = pair if len(pair) == 2 and pair in _forms() else letter
        forms = _forms().get(whole, {})
        following = next((other for other in text[at + len(whole) :] if not unicodedata.combining(other)), "")
        joins_next = "<initial>" in forms and "<final>" in _forms().get(following, {})
        joins_last = joins_on and "<final>" in forms
        name = {(True, True): "<medial>", (True, False): "<final>", (False, True): "<initial>"}.get(
            (joins_last, joins_next), "<isolated>"
        )
        form = forms.get(name, whole)
        joined.append(form if has(form) else whole)
        joins_on, at = joins_next, at + len(whole)
    return "".join(joined)


@lru_cache(maxsize=1)
def _forms() -> dict[str, dict[str, str]]:
    """Returns the forms of each letter, and of lam with alef, by their names in Unicode."""
    forms: dict[str, dict[str, str]] = {}
    for number in FORMS:
        kind, _, numbers = unicodedata.decomposition(chr(number)).partition(" ")
        letters = "".join(chr(int(each, 16)) for each in numbers.split())
        is_lam_alef = len(letters) == 2 and letters[0] == "\u0644" and letters[1] in "\u0622\u0623\u0625\u0627"
        if kind in ("<isolated>", "<final>", "<initial>", "<medial>") and (len(letters) == 1 or is_lam_alef):
            forms.setdefault(letters, {}).setdefault(kind, chr(number))
    return forms
