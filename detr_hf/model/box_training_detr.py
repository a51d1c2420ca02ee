"""How the head learns that chooses box queries: every object wants the token that fits it best.

Which one is decided by what the tokens say already (task alignment, TOOD, Feng et al., 2021): score and overlap
together, among the tokens inside the object's box. Nothing is matched as a set, so that a token far away is never
asked for an object. More tokens an object learn no faster, and fill the queries with copies of what is easy.
"""

import torch
from torch import Tensor, nn

from .box_ops_detr import box_cxcywh_to_xyxy, box_iou
from .loss_detr import KnownObjects, SetCriterion
from .matcher_detr import PackedTargets
from .predictions_detr import Predictions
from .queries_detr import FoundQueries, Memory

TOKENS = 1  # of an object
SCORE_POWER, OVERLAP_POWER = 0.5, 3.0  # of the alignment: score^a * IoU^b
LEAST = 1e-3  # added to both, so that the other decides where one is 0
OUTSIDE = 1e-9  # an object with too few cells inside takes the nearest


@torch.no_grad()
def align_tokens(predictions: Predictions, memory: Memory, targets: PackedTargets) -> KnownObjects:
    """Returns the object of each of the S tokens, K for none: an object has `TOKENS`, unless another wants the same.

    Args:
        predictions: what the tokens say, (B, S, K + 1) and (B, S, 4).
        memory: where they lie.
        targets: the objects of the B images.
    """
    scores = predictions.logits.float().softmax(dim=-1)
    num_classes = scores.shape[-1] - 1
    classes = torch.full(scores.shape[:2], num_classes, dtype=torch.int64, device=scores.device)
    boxes = torch.full((*scores.shape[:2], 4), 0.5, device=scores.device)
    valid = torch.ones_like(classes, dtype=torch.bool) if memory.valid is None else memory.valid
    most = targets.labels.shape[1]
    if not most:
        return KnownObjects(classes, boxes, valid)
    labels, wanted = targets.labels.clamp(0, num_classes - 1), targets.boxes_cxcywh_norm
    counts = torch.tensor(targets.counts).to(labels.device, non_blocking=True)
    real = torch.arange(most, device=labels.device) < counts[:, None]  # (B, N)

    offset = (memory.centres[:, :, None] - wanted[:, None, :, :2]).abs()
    depth = (offset / (wanted[:, None, :, 2:] / 2).clamp(min=1e-6)).amax(dim=-1)  # (B, S, N); 1 at the border
    iou, _ = box_iou(
        box_cxcywh_to_xyxy(predictions.boxes_cxcywh_norm.float())[:, :, None], box_cxcywh_to_xyxy(wanted)[:, None]
    )
    score = scores.gather(2, labels[:, None].expand(-1, scores.shape[1], -1))  # (B, S, N)
    alignment = (score + LEAST) ** SCORE_POWER * (iou + LEAST) ** OVERLAP_POWER * (depth < 1)
    alignment = alignment + OUTSIDE / (1 + depth)
    alignment = alignment.masked_fill(~(real[:, None] & valid[..., None]), 0.0)
    best = alignment.topk(min(TOKENS, alignment.shape[1]), dim=1).indices  # (B, k, N)
    alignment = torch.zeros_like(alignment).scatter(1, best, alignment.gather(1, best))
    highest, owner = alignment.max(dim=2)
    return KnownObjects(
        classes=torch.where(highest > 0, labels.gather(1, owner), classes),
        boxes_cxcywh_norm=wanted.gather(1, owner[..., None].expand(-1, -1, 4)),
        valid=valid,
    )


def proposal_loss(
    box_queries: nn.Module, criterion: SetCriterion, found: FoundQueries, labels: list[dict[str, Tensor]]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the weighted total and its parts (`loss_ce_enc`, ...) of the head that chooses box queries.

    Args:
        box_queries: the module that has that head.
        criterion: with the weights of the losses.
        found: what the head said of a batch.
        labels: the objects of each image.
    """
    tokens = box_queries.read(found.memory) if found.tokens is None else found.tokens
    proposals = Predictions(found.logits, box_queries.boxes_of(tokens, found.memory))
    targets = PackedTargets.from_list(labels, len(found.logits), found.logits.device)
    known = align_tokens(proposals, found.memory, targets)
    stacked = Predictions(proposals.logits[None], proposals.boxes_cxcywh_norm[None])
    loss, parts = criterion.known_assignment(stacked, known)
    return loss, {f"{name}_enc": value for name, value in parts.items()}
