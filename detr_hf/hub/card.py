"""Renders a model card from facts: the metadata that the Hub reads, and the text that people read.

Nothing in a card is written by hand: what is not in the facts is not in the card. The template is `card_template.md`
beside this module. Texts that come from data (names of classes, data sets, models) are escaped, because a card is
shown as a page.
"""

import math
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from ..errors import install_hint
from ..model.heads_detr import MODEL_CLASSES

WRITTEN_HERE = "<!-- Written by detr_hf from facts.json. -->"
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100")
METRIC_TITLES = {"APs": "AP small", "APm": "AP medium", "APl": "AP large"}
QUALITIES = ("PQ", "SQ", "RQ")
SHOWN_LABELS = 100


def render_card(facts: Mapping[str, Any]) -> str:
    """Returns the whole README.md.

    Raises:
        ValueError: the facts lack the name or the model.
        ImportError: jinja2 is not installed (torch brings it along).
    """
    missing = [key for key in ("name", "model") if not facts.get(key)]
    if missing:
        raise ValueError(
            f"The facts of a card need {' and '.join(missing)}; they have {', '.join(facts) or 'nothing'}."
        )
    return f"---\n{metadata(facts)}\n---\n\n{WRITTEN_HERE}\n\n{_body(facts)}"


def metadata(facts: Mapping[str, Any]) -> str:
    """Returns the metadata as YAML: licence, task, tags, and results as the Hub's `model-index`."""
    from huggingface_hub import ModelCardData

    data = facts.get("data") or {}
    tags = ["detr", "detr_hf", "vision", task_of(facts), *(facts.get("tags") or [])]
    card = ModelCardData(
        license=facts.get("license"),
        library_name="transformers",
        pipeline_tag=task_of(facts),
        base_model=facts.get("base_model"),
        datasets=[data["hub_id"]] if data.get("hub_id") else None,
        tags=list(dict.fromkeys(tags)),
        model_name=facts["name"],
        eval_results=_results(facts) or None,
    )
    return card.to_yaml(line_break="\n").strip()


def task_of(facts: Mapping[str, Any]) -> str:
    """Returns the Hub's name of what the model does."""
    if facts.get("task"):
        return facts["task"]
    auto_class = facts["model"].get("auto_class")
    tasks = {model.auto_class: model.task for model in MODEL_CLASSES}
    return tasks.get(auto_class) or "object-detection"


def _results(facts: Mapping[str, Any]) -> list[Any]:
    """Returns the numbers as `EvalResult`: measured ones, then published ones with their source, all in [0, 1]."""
    from huggingface_hub import EvalResult

    measured, published = facts.get("evaluation") or {}, facts.get("published") or {}
    rows: list[tuple[Any, str, Any, str]] = [
        (measured, name, measured.get(name), "mean_average_precision") for name in ("AP", "AP50", "AP75")
    ]
    rows.append((measured, "mask AP", (measured.get("masks") or {}).get("AP"), "mean_average_precision"))
    rows.append((measured, "PQ", (measured.get("panoptic") or {}).get("PQ"), "panoptic_quality"))
    rows = [row for row in rows if _is_number(row[2])]
    for name, percent, kind in published.get("rows", []):
        rows.append((published, f"{name} (published)", percent / 100, kind))
    return [
        EvalResult(
            task_type=task_of(facts),
            dataset_type=whose["type"],
            dataset_name=whose["dataset"],
            metric_type=kind,
            metric_name=name,
            metric_value=round(value, 4),
            source_name=whose.get("source"),
            source_url=whose.get("url"),
        )
        for whose, name, value, kind in rows
    ]


def _body(facts: Mapping[str, Any]) -> str:
    with install_hint("A model card is rendered with jinja2: pip install jinja2"):
        from jinja2 import Environment
    environment = Environment(trim_blocks=True, lstrip_blocks=True)  # what is not in the facts is empty
    environment.filters |= {"cell": cell, "number": number, "code": code}
    template = environment.from_string(files(__package__).joinpath("card_template.md").read_text(encoding="utf-8"))
    constants = {"metrics": METRICS, "titles": METRIC_TITLES, "qualities": QUALITIES, "shown_labels": SHOWN_LABELS}
    constants["has_masks"] = task_of(facts) == "image-segmentation"
    text = template.render({"pictures": [], **facts, **constants})
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def cell(value: Any) -> str:
    """Returns a text for a table or a sentence: on one line, with nothing that Markdown or HTML reads."""
    text = " ".join(str(value).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", text)


def code(value: Any) -> str:
    """Returns a text as inline code."""
    text = " ".join(str(value).split()).replace("`", "'").replace("|", "\\|")
    return f"`{text}`"


def number(value: Any, digits: int = 3) -> str:
    """Returns a number with fixed digits, and a dash where there is none."""
    return f"{value:.{digits}f}" if _is_number(value) else "–"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not math.isnan(value)
