"""What transformers' ports of detectors have lost beside the code of their authors, and is put back in a mended arm.

A `Mend` is a sentence for the record, what is done to the model that was built, and whether it holds: true of a mended
model, false of one as shipped (tests ask both, and a model in which one does not hold is not trained). What a
configuration can say is in `convergence_peers`, and has no `do`.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

PRIOR = 0.01  # the probability at which the focal losses start
PRIOR_BIAS = -math.log((1 - PRIOR) / PRIOR)
FIRST_SIZE_BIAS = -2.0  # Deformable DETR: the first boxes have a width and height of sigmoid(-2)
SAMPLING = ("sampling_offsets", "attention_weights")  # of deformable attention: these the ports draw as the originals
# RT-DETR and D-FINE: what the ports draw themselves, and rightly
DRAWN = (*SAMPLING, "value_proj", "output_proj", "class_embed", "enc_score_head", "gate", "reg_conf", "backbone")


@dataclass(frozen=True)
class Mend:
    """One thing that is put back: `what` for the record, `do` to a peer's model, `holds` of one."""

    what: str
    holds: Callable[[nn.Module], bool]
    do: Callable[[nn.Module], None] = lambda model: None


def xavier(*modules: nn.Module, skip: Iterable[str] = ()) -> None:
    """Draws every matrix anew, Xavier-uniform, but for parameters with a part of `skip` in their name."""
    for module in modules:
        for name, value in module.named_parameters():
            if value.dim() > 1 and not any(part in name for part in skip):
                nn.init.xavier_uniform_(value)


def as_torch_makes_them(head: nn.Module) -> None:
    """Draws the layers of an MLP as `nn.Linear` does, the last one zero."""
    for layer in head.layers:
        layer.reset_parameters()
    nn.init.zeros_(head.layers[-1].weight)
    nn.init.zeros_(head.layers[-1].bias)


def is_zero(*tensors: torch.Tensor) -> bool:
    """Whether all are zero everywhere."""
    return all(not bool(tensor.detach().any()) for tensor in tensors)


def looks_uniform(matrix: torch.Tensor, bound: float) -> bool:
    """Whether a matrix can have been drawn between `-bound` and `bound`: none outside, and the largest is near it."""
    return 0.8 * bound < float(matrix.detach().abs().max()) <= bound


def _xavier_bound(matrix: torch.Tensor) -> float:
    return math.sqrt(6 / sum(matrix.shape))


def _biases(heads: Iterable[nn.Module]) -> list[float]:
    return [value for head in heads for value in head.bias.tolist()]


def _set_biases(heads: Iterable[nn.Module]) -> None:
    for head in heads:
        nn.init.constant_(head.bias, PRIOR_BIAS)


def _starts_at_the_prior(heads: Iterable[nn.Module]) -> bool:
    return all(math.isclose(value, PRIOR_BIAS, rel_tol=1e-5) for value in _biases(heads))


AUXILIARY = Mend("losses after every decoder layer (auxiliary_loss)", lambda model: model.config.auxiliary_loss)
PRIOR_WORDS = f"class heads start at a probability of {PRIOR}, as their focal loss needs"
BOX_WORDS = "the box heads' last layers start at zero"


def _conditional_matrices(model: nn.Module) -> None:
    xavier(model.model.encoder, model.model.decoder)
    model.model.input_projection.reset_parameters()
    model.class_labels_classifier.reset_parameters()
    nn.init.normal_(model.model.query_position_embeddings.weight)


def _encoder_is_xavier(model: nn.Module) -> bool:
    matrix = model.model.encoder.layers[0].mlp.fc1.weight
    return looks_uniform(matrix, _xavier_bound(matrix))


def _unit_queries(model: nn.Module) -> bool:
    return 0.8 < float(model.model.query_position_embeddings.weight.detach().std()) < 1.2


CONDITIONAL = (
    AUXILIARY,
    Mend(
        "encoder and decoder start Xavier-uniform, the input's projection and heads as torch makes them, object "
        "queries from N(0, 1)",
        lambda model: _encoder_is_xavier(model) and _unit_queries(model),
        _conditional_matrices,
    ),
    Mend(
        PRIOR_WORDS,
        lambda model: _starts_at_the_prior([model.class_labels_classifier]),
        lambda model: _set_biases([model.class_labels_classifier]),
    ),
    Mend(
        BOX_WORDS,
        lambda model: is_zero(*model.bbox_predictor.layers[-1].parameters()),
        lambda model: as_torch_makes_them(model.bbox_predictor),
    ),
)


def _own_heads(model: nn.Module) -> None:
    """Gives each decoder layer a class head and a box head; the port ties the class heads to the first."""
    width, classes = model.config.d_model, model.config.num_labels
    kind, layers = type(model.bbox_embed[0]), model.config.decoder_layers
    model.class_embed = nn.ModuleList(nn.Linear(width, classes) for _ in range(layers))
    model.bbox_embed = nn.ModuleList(
        kind(input_dim=width, hidden_dim=width, output_dim=4, num_layers=3) for _ in range(layers)
    )
    model.model.decoder.bbox_embed = model.bbox_embed


def _are_own(heads: nn.ModuleList) -> bool:
    parameters = [id(value) for head in heads for value in head.parameters()]
    return len(set(parameters)) == len(parameters)


def _deformable_matrices(model: nn.Module) -> None:
    inner = model.model
    xavier(inner.encoder, inner.decoder, skip=(*SAMPLING, "bbox_embed", "class_embed"))
    for projection in inner.input_proj:
        nn.init.xavier_uniform_(projection[0].weight)
        nn.init.zeros_(projection[0].bias)
    nn.init.normal_(inner.query_position_embeddings.weight)


def _zero_boxes(model: nn.Module) -> None:
    for head in model.bbox_embed:
        as_torch_makes_them(head)
    nn.init.constant_(model.bbox_embed[0].layers[-1].bias[2:], FIRST_SIZE_BIAS)


def _boxes_start_at_zero(model: nn.Module) -> bool:
    first, *rest = (head.layers[-1] for head in model.bbox_embed)
    biases = [first.bias[:2], first.bias[2:] - FIRST_SIZE_BIAS, *(layer.bias for layer in rest)]
    return is_zero(*(layer.weight for layer in (first, *rest)), *biases)


DEFORMABLE = (
    AUXILIARY,
    Mend(
        "each decoder layer refines the boxes of the one before (with_box_refine)",
        lambda model: model.config.with_box_refine,
    ),
    Mend("the class counts 2 in matching (class_cost)", lambda model: model.config.class_cost == 2),
    Mend(
        "each decoder layer has class and box heads of its own",
        lambda model: _are_own(model.class_embed) and _are_own(model.bbox_embed),
        _own_heads,
    ),
    Mend(
        "encoder, decoder and the maps' projections start Xavier-uniform, object queries from N(0, 1)",
        lambda model: _encoder_is_xavier(model) and _unit_queries(model),
        _deformable_matrices,
    ),
    Mend(
        PRIOR_WORDS,
        lambda model: _starts_at_the_prior(model.class_embed),
        lambda model: _set_biases(model.class_embed),
    ),
    Mend(f"{BOX_WORDS}, the first one's sizes at {FIRST_SIZE_BIAS:g}", _boxes_start_at_zero, _zero_boxes),
)


def _like_torch(model: nn.Module) -> None:
    """Draws convolutions and matrices as torch does; those that are zero on purpose stay so."""
    for name, module in model.named_modules():
        ours_to_draw = isinstance(module, (nn.Conv2d, nn.Linear)) and not any(part in name for part in DRAWN)
        if ours_to_draw and not is_zero(module.weight):
            module.reset_parameters()


def _is_like_torch(model: nn.Module) -> bool:
    decoder = model.model.decoder
    layers = (decoder.bbox_embed[0].layers[0], decoder.query_pos_head.layers[0], model.model.enc_output[0])
    return all(looks_uniform(layer.weight, 1 / math.sqrt(layer.in_features)) for layer in layers)


def _norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d) and "backbone" not in name
    ]


def _unit_norms(model: nn.Module) -> None:
    for norm in _norms(model):
        nn.init.ones_(norm.weight)


# Left as the ports have it, though the originals differ: class heads (Xavier-uniform, at a probability by the number
# of classes and not 0.01) and the first boxes' heads (not zero). With the originals', RT-DETR found fewer objects in
# the few steps of protocol A, and a mended arm is to be the better one.
DFINE = (
    Mend(
        "convolutions and matrices start as torch makes them and not from N(0, 0.01); class heads, sampling and what "
        "is zero stay as they are",
        _is_like_torch,
        _like_torch,
    ),
)
RTDETR = (
    Mend(
        "batch norms start at 1 and not from N(0, 0.01)",
        lambda model: all(bool((norm.weight == 1).all()) for norm in _norms(model)),
        _unit_norms,
    ),
    *DFINE,
)


__all__ = ["CONDITIONAL", "DEFORMABLE", "DFINE", "FIRST_SIZE_BIAS", "PRIOR_BIAS", "RTDETR", "Mend"]
