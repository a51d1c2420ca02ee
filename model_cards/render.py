"""Renders every card of this folder from its facts: python model_cards/render.py

The facts of a checkpoint that the project trained are written by the code that measured it; those of the original's
checkpoints hold what its authors published, and where.
"""

import json
from pathlib import Path

from detr_hf.hub.card import render_card

FOLDER = Path(__file__).parent


def render_all() -> dict[Path, str]:
    """The text of each card by its path."""
    return {
        FOLDER / f"{facts.stem}.md": render_card(json.loads(facts.read_text(encoding="utf-8")))
        for facts in sorted((FOLDER / "facts").glob("*.json"))
    }


if __name__ == "__main__":
    for path, card in render_all().items():
        path.write_text(card, encoding="utf-8")
