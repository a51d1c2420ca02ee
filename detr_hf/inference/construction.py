"""The steps of a DETR in the order in which its construction is taught, and which modules begin and end them.

A forward pass goes from step to step: the call of a module, or its return, says which comes next, and whatever runs
until then is a part of the step, so that no operation is left out or counted twice. `query_embed` alone is read before
its turn.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from ..model.modeling_detr import DETRForObjectDetection


@dataclass(eq=False)
class Step:
    """One step of a forward pass: what it is, and what was seen of it.

    Attributes:
        part: of the construction, outermost first, as ("Transformer", "encoder layer 1").
        name: of the step within it.
        letters: its output's shape, as "B, S, D", with "." for a side of a map; "" for what does not run in inference.
        file: that holds it.
        shape: of its output, as a hook saw it; None for what did not run.
        trainable, frozen: numbers of parameters that are its own.
        flop, seconds: that it took; a multiplication and an addition are two.
    """

    part: tuple[str, ...]
    name: str
    letters: str
    file: str
    shape: tuple[int, ...] | None = None
    trainable: int = 0
    frozen: int = 0
    flop: int = 0
    seconds: float = 0.0


@dataclass
class Mark:
    """What a module's call within another one means: the steps that it begins with and leaves behind, if any.

    `shown` is the step whose output it gives, found in what it returns by `pick`.
    """

    begins: Step | None = None
    leaves: Step | None = None
    shown: Step | None = None
    pick: Callable[[Any], Any] = field(default=lambda output: output[0] if isinstance(output, tuple) else output)


class Construction:
    """The steps of a model, and the marks in it, by a module and the marked one within which it is called."""

    def __init__(self, model: "DETRForObjectDetection"):
        self.model = model
        self.steps: list[Step] = []
        self.marks: dict[tuple[nn.Module, nn.Module], Mark] = {}
        self._counted: set[int] = set()
        self._of_backbone()
        self._of_encoder()
        if hasattr(model, "box_queries"):
            self._of_box_queries()
        self._of_queries()
        self._of_decoder()
        self._of_heads()
        if hasattr(model, "mask_head"):
            self._of_masks()
        for name, child in model.named_children():  # of training alone, or a user's own
            left_over = Step(("besides",), name, "", _file(child, model))
            if self._count(left_over, child):
                self.steps.append(left_over)

    def _step(self, part: tuple[str, ...], name: str, letters: str, *owners: nn.Module, of: nn.Module) -> Step:
        """Adds a step with the parameters of its `owners`, held by the file of the first or, if torch's, of `of`."""
        step = Step(part, name, letters, _file(owners[0] if owners else of, of))
        self.steps.append(step)
        for owner in owners:
            self._count(step, owner)
        return step

    def _count(self, step: Step, owner: nn.Module) -> int:
        """Returns how many parameters of `owner` are counted now, and nowhere before."""
        new = {id(parameter): parameter for parameter in owner.parameters() if id(parameter) not in self._counted}
        self._counted |= new.keys()
        step.trainable += sum(parameter.numel() for parameter in new.values() if parameter.requires_grad)
        step.frozen += sum(parameter.numel() for parameter in new.values() if not parameter.requires_grad)
        return len(new)

    def _mark(self, module: nn.Module, within: nn.Module, begins: Step | None, **rest: Any) -> None:
        self.marks[module, within] = Mark(begins, **rest)

    def _of_backbone(self) -> None:
        model, part = self.model, ("build_backbone",)
        joiner, (backbone, position) = model.backbone, model.backbone
        letters, last = ("B, ., ., C", "B, h, w, C") if backbone.channels_come_last else ("B, C, ., .", "B, C, h, w")
        for name, modules in stages(backbone.body):
            step = self._step(part, name, letters, *modules, of=backbone)
            for module in modules:
                self._mark(module, backbone.body, step, shown=step)
        step.letters = last
        self._count(step, backbone)
        self.body = Step(part, "body", last, _file(backbone.body, backbone))
        self._mark(backbone.body, joiner, None, shown=self.body, pick=lambda maps: maps[-1])
        encoding = self._step(part, "position encoding", "B or 1, D, h, w", position, of=joiner)
        joined = self._step(part, "Joiner", "B, C, h, w", joiner, of=joiner)
        self._mark(position, joiner, encoding, leaves=joined, shown=encoding)
        self._mark(joiner, model, self.steps[0], leaves=joined, shown=joined, pick=lambda output: output[0][-1][0])
        projected = self._step(("input_proj",), "input_proj", "B, D, h, w", model.input_proj, of=model)
        self._mark(model.input_proj, model, projected, shown=projected)

    def _of_encoder(self) -> None:
        encoder = self.model.transformer.encoder
        self._mark(encoder, self.model, None)
        for number, layer in enumerate(encoder.layers, start=1):
            self._of_layer(("Transformer", f"encoder layer {number}"), layer, encoder, "B, S, D")
        if encoder.norm is not None:
            norm = self._step(("Transformer",), "norm of the encoder", "B, S, D", encoder.norm, of=encoder)
            self._mark(encoder.norm, encoder, norm, shown=norm)

    def _of_layer(self, part: tuple[str, ...], layer: nn.Module, within: nn.Module, letters: str) -> None:
        """Adds the blocks of a layer, each followed by its residual sum with the norm, as the order of both is."""
        blocks = [("attention", layer.self_attn, layer.self_attn)]
        if hasattr(layer, "multihead_attn"):
            blocks.append(("cross-attention", layer.multihead_attn, layer.multihead_attn))
        blocks.append(("feed-forward", layer.linear1, layer.linear2))
        norms = [getattr(layer, f"norm{number}") for number in range(1, len(blocks) + 1)]
        first = None
        if layer.pre_norm:
            first = self._step(part, "norm", letters, norms[0], of=layer)
            self._mark(norms[0], layer, first, shown=first)
            norms = [*norms[1:], None]
        for (name, entry, end), norm in zip(blocks, norms, strict=True):
            block = self._step(part, name, letters, *dict.fromkeys((entry, end)), of=layer)
            first = first or block
            own = () if norm is None else (norm,)
            after = self._step(part, "add & norm" if own else "add", letters, *own, of=layer)
            if entry is not end:
                self._mark(entry, layer, block)
                self._mark(end, layer, None, leaves=after, shown=block)
            else:
                self._mark(entry, layer, block, leaves=after, shown=block)
            if own:
                self._mark(norm, layer, after, shown=after)
        self._mark(layer, within, first, shown=after)
        self._count(after, layer)

    def _of_box_queries(self) -> None:
        model, found, part = self.model, self.model.box_queries, ("Transformer", "box queries")
        laying_out = (found.levels.level_embed, found.levels.border_proj)
        fusing = [part for part in found.levels.children() if part not in laying_out]
        levels = self._step(part, "levels", "B, D, ., .", *fusing, of=found.levels)
        tokens = self._step(part, "tokens of all levels", "B, S, D", *laying_out, of=found.levels)
        choice = self._step(part, "choice of queries", "B, Q, 4", found, of=found)
        self._mark(found.levels, model, levels, leaves=tokens, shown=levels, pick=lambda maps: maps[0])
        self._mark(found, model, choice, shown=choice, pick=lambda output: output.boxes_cxcywh_norm)
        self._mark(found.token_proj[1], found, None, shown=tokens)

    def _of_queries(self) -> None:
        model = self.model
        for name, letters in (("query_embed", "Q, D"), ("refpoint_embed", "Q, 2")):
            if hasattr(model, name):
                embedding = getattr(model, name)
                step = self._step(("Transformer",), name, letters, embedding, of=model)
                self._mark(embedding, model, step, leaves=self.steps[0], shown=step)

    def _of_decoder(self) -> None:
        model, decoder = self.model, self.model.transformer.decoder
        has_boxes, part = hasattr(decoder, "box_embed"), ("Transformer",)
        if has_boxes:
            codes = self._step(part, "positions of boxes", "B, Q, D", decoder.box_embed, of=decoder)
            self._mark(decoder.box_embed, decoder, codes, shown=codes)
        first = len(self.steps)
        for number, layer in enumerate(decoder.layers, start=1):
            self._of_layer((*part, f"decoder layer {number}"), layer, decoder, "B, Q, D")
        self._mark(decoder, model, codes if has_boxes else self.steps[first])
        if has_boxes:
            moved = self._step(part, "moves of boxes", "B, Q, 4", decoder.borders, of=decoder)
            for layer in decoder.layers:
                self.marks[layer, decoder].leaves = moved
            self._mark(model.bbox_embed, decoder, None, shown=moved)
        norm = self._step(part, "norm of the decoder", "B, Q, D", decoder.norm, of=decoder)
        self._mark(decoder.norm, model, norm, shown=norm)

    def _of_heads(self) -> None:
        model = self.model
        heads = [("class_embed", "1, B, Q, K + 1"), ("bbox_embed", "1, B, Q, 4")]
        steps = [self._step((name,), name, letters, getattr(model, name), of=model) for name, letters in heads]
        self.boxes = self._step(("boxes",), "boxes", "B, Q, 4", of=model)
        for step in steps:
            self._mark(getattr(model, step.name), model, step, leaves=self.boxes, shown=step)

    def _of_masks(self) -> None:
        model, head, part = self.model, self.model.mask_head, ("mask head",)
        adapters = (head.adapter1, head.adapter2, head.adapter3)
        steps = [
            self._step(part, "adapters", "B, D/8, ., .", *adapters, of=head),
            self._step(part, "bbox_attention", "1, n, M, h, w", model.bbox_attention, of=model),
            self._step(part, "mask_head", "n, ., .", head, of=model),
            self._step(part, "masks", "B, Q, ., .", of=head),
        ]
        for adapter in adapters:
            self._mark(adapter, model, steps[0], shown=steps[0])
        self._mark(model.bbox_attention, model, steps[1], shown=steps[1], pick=lambda maps: maps)
        self._mark(head, model, steps[2], leaves=steps[3], shown=steps[2])

    def join_body(self) -> None:
        """Makes one step of the backbone's body where its parts were not called one by one, as in a ViT."""
        parts = self.steps[: next(place for place, step in enumerate(self.steps) if step.name == "position encoding")]
        if all(step.shape is not None for step in parts):
            return
        for name in ("trainable", "frozen", "flop", "seconds"):
            setattr(self.body, name, sum(getattr(step, name) for step in parts))
        self.steps[: len(parts)] = [self.body]


def stages(body: nn.Module) -> Iterator[tuple[str, list[nn.Module]]]:
    """Yields the parts of a timm body: all before its numbered stages as the stem, then each of these."""
    children = dict(body.named_children())
    name, last = list(children.items())[-1]
    if isinstance(last, nn.Sequential) and not isinstance(body, nn.ModuleDict):  # blocks, as EfficientNets have them
        del children[name]
        children |= {f"{name}.{number}": stage for number, stage in last.named_children()}
    numbered = re.compile(re.escape(list(children)[-1].rstrip("0123456789")) + r"\d+")
    first = next((place for place, name in enumerate(children) if numbered.fullmatch(name)), 0)
    if first:
        yield "stem", list(children.values())[:first]
    for name, child in list(children.items())[first:]:
        yield name, [child]


def _file(module: nn.Module, owner: nn.Module) -> str:
    """Returns the file of the class of `module`, or of the first inside it, that is not torch's; else of `owner`."""
    classes = (type(each) for each in (*module.modules(), owner))
    found = next((kind for kind in classes if kind.__module__.partition(".")[0] != "torch"), type(owner))
    return found.__module__.replace(".", "/") + ".py"
