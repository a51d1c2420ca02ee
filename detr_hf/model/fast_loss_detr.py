"""The matching cost and the cross-entropy in few passes over memory, from one softmax; nothing here is in the paper.

`matching_cost` is eq. 1 and 4 of the paper, and its test is that formula; `ClassScores.cross_entropy` is
`F.cross_entropy`. On a CPU both spend their time in fresh memory, so results are written over what is not needed any
more.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

UNMATCHABLE = 1e6  # cost of a pair whose cost is not finite: taken only when nothing else is left


@dataclass
class ClassScores:
    """The softmax of logits (L, B, Q, K + 1) before its division; no gradient flows through it.

    Attributes:
        highest: (L, B, Q, 1), the largest logit of each query.
        exponentials: (L, B, Q, K + 1), exp(logits - highest), float32.
        sums: (L, B, Q, 1), of the exponentials.
        found: (L, B, Q) bool, whether a class is at least as likely as no-object.
    """

    highest: Tensor
    exponentials: Tensor
    sums: Tensor
    found: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, logits: Tensor) -> "ClassScores":
        """Returns the scores of `logits`."""
        logits = logits.float()
        no_object = logits[..., -1:]
        highest = logits[..., :-1].amax(dim=-1, keepdim=True)
        found = (highest >= no_object).squeeze(-1)
        highest = torch.maximum(highest, no_object)
        exponentials = (logits - highest).exp_()
        return cls(highest, exponentials, exponentials.sum(dim=-1, keepdim=True), found)

    def cross_entropy(self, logits: Tensor, classes: Tensor) -> Tensor:
        """Returns the cross-entropy (L, B, Q) of the logits that these scores are of, with `classes` (L, B, Q)."""
        return _CrossEntropy.apply(logits, self, classes)


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy (L, B, Q) of logits (L, B, Q, K + 1) whose scores are known.

    Its gradient, the softmax minus 1 at the wanted class, is written into one new tensor.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, scores: ClassScores, classes: Tensor) -> Tensor:
        classes = classes[..., None]
        entropy = scores.sums.log() - (logits.gather(-1, classes) - scores.highest)
        ctx.save_for_backward(scores.exponentials, scores.sums, entropy, classes)
        return entropy.squeeze(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        exponentials, sums, entropy, classes = ctx.saved_tensors
        gradient = gradient[..., None]
        return (exponentials * (gradient / sums)).scatter_(-1, classes, gradient * entropy.neg().expm1()), None, None


@torch.no_grad()
def matching_cost(
    logits: Tensor,
    pred_boxes: Tensor,
    labels: Tensor,
    boxes_cxcywh_norm: Tensor,
    weights: tuple[float, float, float],
) -> tuple[Tensor, ClassScores]:
    """Returns the finite cost (B, N, L, Q) of giving each object of an image to each of its queries, and the scores.

    The cost is w0 * -p(label) + w1 * |b - b'|_1 + w2 * -GIoU(b, b'). The objects come before layers and queries, so
    that whatever combines a coordinate of an object with those of all queries runs along one piece of memory.

    Args:
        logits: (L, B, Q, K + 1), the last class is no-object.
        pred_boxes: (L, B, Q, 4), cxcywh.
        labels: (B, N) in [0, K).
        boxes_cxcywh_norm: (B, N, 4), in the same frame.
        weights: of the class, the L1 distance and the generalised IoU.
    """
    cost_class, cost_bbox, cost_giou = weights
    scores = ClassScores.of(logits)
    images = torch.arange(len(labels), device=labels.device)[:, None]
    cost = scores.exponentials.permute(1, 3, 0, 2)[images, labels]  # (B, N, L, Q)
    cost.mul_((-cost_class / scores.sums).permute(1, 3, 0, 2))
    center, size = _planar(pred_boxes.float()).transpose(1, 2)[:, :, None].split(2)  # (2, B, 1, L, Q)
    wanted_center, wanted_size = _planar(boxes_cxcywh_norm)[..., None, None].split(2)  # (2, B, N, 1, 1)
    half, wanted_half = size / 2, wanted_size / 2
    # the L1 distance and the generalised IoU are both of these two, (2, B, N, L, Q) for x and y
    apart, differ = (center - wanted_center).abs_(), (half - wanted_half).abs_()
    for between_centers, between_halves in zip(apart, differ, strict=True):
        cost.add_(between_centers, alpha=cost_bbox).add_(between_halves, alpha=2 * cost_bbox)
    # two intervals share h1 + h2 - max(|c1 - c2|, |h1 - h2|), and their hull has h1 + h2 + that maximum
    longest = torch.maximum(apart, differ, out=apart)
    together = torch.add(half, wanted_half, out=differ)
    hull_width, hull_height = together + longest
    shared_width, shared_height = together.sub_(longest).clamp_(min=0)
    intersection, hull = shared_width.mul_(shared_height), hull_width.mul_(hull_height)
    tiny = torch.finfo(hull.dtype).tiny
    union = torch.add(_area(size), _area(wanted_size), out=shared_height).sub_(intersection).clamp_(min=tiny)
    # minus the generalised IoU, which is IoU + union / hull - 1
    cost.addcdiv_(intersection, union, value=-cost_giou)
    cost.addcdiv_(union, hull.clamp_(min=tiny), value=-cost_giou).add_(cost_giou)
    return cost.nan_to_num_(UNMATCHABLE, UNMATCHABLE, UNMATCHABLE), scores


def _planar(boxes: Tensor) -> Tensor:
    """Returns boxes (..., 4) as (4, ...), with each coordinate in one piece of memory."""
    return boxes.movedim(-1, 0).contiguous()


def _area(size: Tensor) -> Tensor:
    width, height = size
    return width * height
