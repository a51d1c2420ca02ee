"""Stage 2: DETR on the pre-trained backbone, with two training-only aids around it."""

import copy
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from detr_hf.configuration_detr import DETRConfig
from detr_hf.image_processing_detr import DETRImageProcessor
from detr_hf.modeling_detr import DETRForObjectDetection

from .backbone import assign_cells, cell_centres, dense_loss
from .batches import loader, normalise
from .recipe import DETECT_LOG, Recipe, RunLog, rank_and_world_size, save_atomically, set_lr
from .report import evaluate


def build_detector(recipe: Recipe, backbone_weights: Path | None) -> DETRForObjectDetection:
    """A plain DETR on the thin ResNet."""
    names = {label: str(label) for label in range(10)}
    config = DETRConfig(
        backbone=recipe.backbone,
        backbone_kwargs=recipe.backbone_kwargs,
        backbone_weights=None if backbone_weights is None else str(backbone_weights),
        dilation=recipe.stride == 16,
        hidden_dim=recipe.hidden_dim,
        nheads=recipe.nheads,
        enc_layers=recipe.enc_layers,
        dec_layers=recipe.dec_layers,
        dim_feedforward=recipe.dim_feedforward,
        dropout=0.0,
        num_queries=recipe.num_queries,
        id2label=names,
        label2id={name: label for label, name in names.items()},
    )
    return DETRForObjectDetection(config)


class GroupedDETR(nn.Module):
    """DETR with training-only aids around it; what is saved is `self.detr`, unchanged in structure.

    Two aids, both of which only add losses: (1) `query_groups - 1` more sets of object queries go through the same
    decoder, each matched on its own (Group DETR, Chen et al., 2023: queries of different groups do not attend to each
    other); (2) the output heads are also applied to the encoder's output at every cell in the middle of an object. A
    cell must give the box in the frame of the whole picture, so the encoder learns to write positions into its states,
    which DETR otherwise only adds to queries and keys.
    """

    def __init__(self, detr: DETRForObjectDetection, recipe: Recipe):
        super().__init__()
        self.detr = detr
        self.recipe = recipe
        self.more_queries = nn.Embedding((recipe.query_groups - 1) * recipe.num_queries, recipe.hidden_dim)

    def forward(self, pixel_values: Tensor, targets: list[dict[str, Tensor]]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and its parts for the log."""
        detr, groups = self.detr, self.recipe.query_groups
        features, pos = detr.backbone(pixel_values, None)
        feature_map = features[-1][0]
        src = detr.input_proj(feature_map).flatten(2).transpose(1, 2)  # (B, S, D)
        pos = pos.flatten(2).transpose(1, 2)
        memory = detr.transformer.encoder(src, pos)[0]
        states = self.decode(memory, pos)  # (L, B, groups * Q, D)
        logits, boxes = detr.class_embed(states), detr.bbox_embed(states).sigmoid()
        # (L, B * groups, Q, .): each group is matched as if it were a picture of its own
        by_group = [values.unflatten(2, (groups, -1)).flatten(1, 2) for values in (logits, boxes)]
        loss, parts = detr.loss_function(*by_group, [target for target in targets for _ in range(groups)])
        parts = {name: parts[name] for name in ("loss_ce", "loss_bbox", "loss_giou", "class_error")}
        if self.recipe.dense_weight:
            assigned = assign_cells(cell_centres(*feature_map.shape[-2:]), targets)
            dense = dense_loss(
                detr.class_embed(memory), detr.bbox_embed(memory).sigmoid(), assigned, self.recipe.background_weight
            )
            parts |= dense
            loss = loss + self.recipe.dense_weight * (dense["dense_ce"] + dense["dense_bbox"] + dense["dense_giou"])
        return loss, parts

    def decode(self, memory: Tensor, pos: Tensor) -> Tensor:
        """Normed output (L, B, groups * Q, D) of every decoder layer; self-attention stays within a group."""
        decoder, groups = self.detr.transformer.decoder, self.recipe.query_groups
        query_pos = torch.cat([self.detr.query_embed.weight, self.more_queries.weight])[None]
        tgt, key, states = torch.zeros(len(memory), *query_pos.shape[1:]), memory + pos, []

        def within_groups(values: Tensor) -> Tensor:
            return values.unflatten(1, (groups, -1)).flatten(0, 1)

        for layer in decoder.layers:
            query = within_groups(tgt + query_pos)
            attended = layer.self_attn(query, query, within_groups(tgt))[0].unflatten(0, (-1, groups)).flatten(1, 2)
            tgt = layer.norm1(tgt + attended)
            tgt = layer.norm2(tgt + layer.multihead_attn(tgt + query_pos, key, memory)[0])
            tgt = layer.norm3(tgt + layer._feed_forward(tgt))
            states.append(tgt)
        return decoder.norm(torch.stack(states))


def learning_rate_factor(step: int, recipe: Recipe) -> float:
    """Linear warm-up, constant, then linear to zero over the last part; steps can be added until the decay begins."""
    decay = recipe.steps * recipe.decay_fraction
    return min((step + 1) / recipe.warmup, 1.0, (recipe.steps - step) / decay)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Moves the exponential moving average of the weights; it follows faster in the beginning."""
    decay = min(decay, (1 + step) / (10 + step))
    for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
        slow.lerp_(fast, 1 - decay)


def average_gradients(net: nn.Module) -> None:
    """Makes every process's gradients the mean of all, in one message; nothing to do in a single process."""
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return
    gradients = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient) / world_size)


def train_detector(
    recipe: Recipe, backbone_weights: Path, work: Path, processor: DETRImageProcessor
) -> DETRForObjectDetection:
    """Trains the detector and returns the average of its weights; goes on from the last state in `work`, if any."""
    torch.manual_seed(recipe.seed)
    detr = build_detector(recipe, backbone_weights).to(memory_format=torch.channels_last)
    detr.config.backbone_weights = None  # a file of this machine; the checkpoint holds the weights
    detr.set_attn_implementation("eager")  # its backward is faster than sdpa's on a CPU
    net, average = GroupedDETR(detr, recipe).train(), copy.deepcopy(detr).eval()
    optimizer = make_optimizer(net, recipe)
    state_path, first = work / "detect_state.pt", 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        net.load_state_dict(state["net"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    log = RunLog(work / DETECT_LOG, processes=rank_and_world_size()[1])
    for step, (pixels, targets) in enumerate(loader(recipe, "detect", first, recipe.steps), start=first):
        set_lr(optimizer, learning_rate_factor(step, recipe))
        if step == max(first, recipe.late_step):
            detr.backbone[0].body.layer1.requires_grad_(True)
        loss, parts = net(normalise(pixels), targets)
        optimizer.zero_grad()
        loss.backward()
        average_gradients(net)
        nn.utils.clip_grad_norm_(net.parameters(), recipe.clip)
        optimizer.step()
        if rank_and_world_size()[0] != 0:
            continue
        update_average(average, detr, step, recipe.ema_decay)
        log.add(step, loss, parts)
        if (step + 1) % 200 == 0 or step + 1 == recipe.steps:
            states = {"net": net.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
            save_atomically({**states, "step": step + 1}, state_path)
            average.save_pretrained(work / "checkpoint")
            processor.save_pretrained(work / "checkpoint")
            summary = evaluate(average, processor, num_scenes=128).metrics.summary
            log.note(step=step + 1, AP=round(summary["AP"], 4), AP50=round(summary["AP50"], 4))
    return average


def make_optimizer(net: GroupedDETR, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW with the backbone's own learning rate."""
    others, backbone, first_stage = [], [], []
    for name, parameter in net.named_parameters():
        if "backbone" not in name:
            others.append(parameter)
        elif "layer1" in name:
            first_stage.append(parameter)  # without a gradient, and so left alone, until `late_step`
        elif parameter.requires_grad:
            backbone.append(parameter)
    rates = ((others, recipe.lr), (backbone, recipe.lr_backbone), (first_stage, recipe.lr_backbone))
    groups = [{"params": parameters, "base_lr": rate} for parameters, rate in rates]
    return torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)
