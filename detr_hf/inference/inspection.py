"""What was seen of a model's steps, as a table, as JSON and as a drawing."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from ..visualize.architecture import Block, Row, architecture_svg
from .construction import Step
from .timing import environment

OWN_FILES = "detr_hf/model/"
HEAD = ("step", "shape", "", "trainable", "frozen", "GFLOP", "ms", "file")
IS_NUMBER = (False, False, False, True, True, True, True, False)
ALPHABET = (
    "B batch, C channels, D hidden_dim, H W pixels, h w cells of the last map, S cells attended to, Q queries, "
    "n queries of one image, M heads, K classes."
)


@dataclass(frozen=True)
class Inspection:
    """The steps of one forward pass; `str` of it is a table.

    Attributes:
        settings: `model`, `class`, `backbone`, `shape` of the pixels, `padded`, `dtype`, `device`.
        steps: in the order of the construction. Their numbers add up to the model's.
        fused_attention_flop: of all operations, those that torch's own counter leaves out on a CPU.
    """

    settings: dict[str, Any]
    steps: tuple[Step, ...]
    fused_attention_flop: int

    @property
    def total(self) -> dict[str, Any]:
        """Sums over the steps: `trainable` and `frozen` parameters, `gflop`, `milliseconds`."""
        return sums(self.steps)

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it for JSON, with the machine and its versions."""
        steps = [
            {"part": list(step.part), "name": step.name, "letters": step.letters, "shape": step.shape}
            | sums([step])
            | {"file": step.file}
            for step in self.steps
        ]
        found = {"environment": environment(self.settings["device"]), "settings": self.settings, "steps": steps}
        return found | {"total": self.total, "fused_attention_gflop": self.fused_attention_flop / 1e9}

    def to_svg(self) -> str:
        """Returns the paper's figure 2 with this model's numbers: one file, without script or anything outside it."""
        return architecture_svg(self._title(), list(self._blocks()), [ALPHABET, *self._notes()])

    def __str__(self) -> str:
        lines = [HEAD, *self._lines(self.steps, 0), _cells("whole", None, self.total)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        rows = [
            "  ".join(
                text.rjust(width) if number else text.ljust(width)
                for text, width, number in zip(line, widths, IS_NUMBER, strict=True)
            ).rstrip()
            for line in lines
        ]
        return "\n".join([self._title(), "", *rows, "", ALPHABET, *self._notes()])

    def _lines(self, steps: Sequence[Step], depth: int) -> Iterator[tuple[str, ...]]:
        """Yields the cells of each step under the sum of its part; a layer like the one before is a sum alone."""
        before = None
        for name, inside in _parts(steps, depth):
            if name is None or (len(inside) == 1 and inside[0].name == name):
                yield from (_cells("  " * depth + step.name, step, sums([step])) for step in inside)
                continue
            is_like = before is not None and _signature(inside) == before
            yield _cells("  " * depth + name, inside[-1] if is_like else None, sums(inside))
            before = _signature(inside)
            if not is_like:
                yield from self._lines(inside, depth + 1)

    def _title(self) -> str:
        settings = self.settings
        padded = ", padded" if settings["padded"] else ""
        pixels = _numbers(settings["shape"])
        name = Path(settings["model"]).name if Path(settings["model"]).is_absolute() else settings["model"]
        return f"{name}: {settings['class']} on {settings['backbone']}, pixels {pixels}{padded}"

    def _notes(self) -> list[str]:
        notes = [
            "What runs between two steps counts with the one before. A multiplication and an addition are two "
            "operations, of which papers often count one.",
            f"Milliseconds of one watched pass of the plain modules ({self.settings['device']}, "
            f"{self.settings['dtype']}); detr-hf benchmark says how fast the model is.",
        ]
        if any(step.name == "moves of boxes" for step in self.steps):
            notes.append("Positions and moves of boxes are those before and after every decoder layer, in one line.")
        if self.fused_attention_flop:
            notes.append(
                f"{self.fused_attention_flop / 1e9:.3g} GFLOP of it are fused attention, which torch's own counter "
                "(FlopCounterMode) leaves out on a CPU."
            )
        return notes

    def _blocks(self) -> Iterator[Block]:
        """Yields what figure 2 shows as boxes, with the rows of every layer that is unlike the one before."""
        yield Block("image", "pixel_values", "", "", [Row("", "B, C, H, W", _numbers(self.settings["shape"]))])
        of_figure = [step for step in self.steps if step.letters]
        for (kind, title), group in groupby(of_figure, _box_of):
            steps = list(group)
            rows: list[Row] = []
            layers, before = 0, None
            for name, inside in _parts(steps, 1):
                is_layer = name is not None and "layer" in name
                layers += is_layer
                if is_layer and _signature(inside) == before:
                    continue
                before = _signature(inside) if is_layer else before
                rows += map(_row, inside)
            if layers:
                title += f", {layers} layer" + "s" * (layers > 1)
            files = dict.fromkeys(short(step.file) for step in steps)
            yield Block(kind, title, _figures(sums(steps)), ", ".join(files), rows, max(layers, 1))


SIGNS = {"position encoding": "waves", "query_embed": "queries", "choice of queries": "queries", "boxes": "queries"}
BOXES = {
    "build_backbone": ("backbone", "build_backbone"),
    "input_proj": ("projection", "input_proj"),
    "mask head": ("heads", "Mask head"),
}


def _box_of(step: Step) -> tuple[str, str]:
    """Returns the kind and the title of the box of figure 2 that a step is in."""
    if step.part[0] != "Transformer":
        return BOXES.get(step.part[0], ("heads", "Prediction heads"))
    where = step.part[-1] if len(step.part) > 1 else step.name
    if "encoder" in where:
        return "encoder", "Transformer: encoder"
    return ("encoder", "Transformer: box queries") if where == "box queries" else ("decoder", "Transformer: decoder")


def _parts(steps: Sequence[Step], depth: int) -> Iterator[tuple[str | None, list[Step]]]:
    """Yields the parts of this depth and their steps; None for steps that are in none."""
    for name, inside in groupby(steps, lambda step: step.part[depth] if len(step.part) > depth else None):
        yield name, list(inside)


def _signature(steps: Sequence[Step]) -> list[tuple]:
    return [(step.name, step.letters, step.shape, step.trainable, step.frozen, step.flop) for step in steps]


def sums(steps: Sequence[Step]) -> dict[str, Any]:
    """Returns the sums over steps that `Inspection.total` has of all."""
    return {
        "trainable": sum(step.trainable for step in steps),
        "frozen": sum(step.frozen for step in steps),
        "gflop": sum(step.flop for step in steps) / 1e9,
        "milliseconds": sum(step.seconds for step in steps) * 1e3,
    }


def short(file: str) -> str:
    """Returns a file's path without the folder that most of them are in."""
    return file.removeprefix(OWN_FILES)


def _row(step: Step) -> Row:
    return Row(step.name, step.letters, _numbers(step.shape), SIGNS.get(step.name, ""))


def _numbers(shape: Sequence[int] | None) -> str:
    return "" if shape is None else "×".join(map(str, shape))


def _cells(name: str, step: Step | None, found: dict[str, Any]) -> tuple[str, ...]:
    shape = ("", "") if step is None else (step.letters or "not run", _numbers(step.shape))
    counts = (f"{found['trainable']:,}", f"{found['frozen']:,}", f"{found['gflop']:.3f}")
    file = "" if step is None else short(step.file)
    return (name, *shape, *counts, f"{found['milliseconds']:.1f}", file)


def _figures(found: dict[str, Any]) -> str:
    whole = found["trainable"] + found["frozen"]
    frozen = f" ({_rounded(found['frozen'])} frozen)" if found["frozen"] else ""
    parameters = f"{_rounded(whole)} parameters{frozen}"
    return f"{parameters} · {found['gflop']:.2f} GFLOP · {found['milliseconds']:.0f} ms"


def _rounded(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e6 else re.sub(r"\.0$", "", f"{count / 1e3:.1f}") + " k"
