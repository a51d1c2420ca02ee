"""Masks beside transformers' `DetrForSegmentation`, with the same random weights: what comes after the decoder, a
whole forward, a training step, and masks read as segments.

transformers runs its mask head on all queries and holds them at once; here it runs on those that are kept, in groups.
Both sides of a comparison run in turn in one process; the peak of memory is what a call adds to it.
"""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.detr import DetrImageProcessor

from detr_hf.inference.timing import timed
from detr_hf.model.outputs_detr import Decoded
from detr_hf.model.segmentation_detr import predict_masks
from detr_hf.processing.image_processing_detr import DETRImageProcessor

from .forward import TOLERANCE, tolerance_in_float32
from .mask_faults import OFF, ON, outputs_of
from .measuring import check_device, differences, environment, in_turn, of_pairs, peak_memory, require_agreement
from .models import dtype_named, random_pair, random_pixels, random_targets
from .train_step import Step

TRAIN_HW, TRAIN_BATCH, OBJECTS = (320, 416), 2, 7
PICTURE_HW, MAP_HW, SEGMENTS = (480, 640), (200, 267), 10  # of the pictures that are read as segments
LARGE_HW, LARGE_QUERIES = (1200, 1800), 300


def compare_masks(
    device: str, dtype: str, size_hw: tuple[int, int], kept: int, pictures: int, runs: int, **config: Any
) -> dict[str, Any]:
    """Returns the record: time and memory of all four, with masks of all queries and of the `kept` best.

    transformers is timed once for both in every round: a pass takes it long.

    Raises:
        ValueError: for a device that is not there, or sides that do not agree.
    """
    check_device(device)
    settings = {"device": device, "dtype": dtype, "size_hw": list(size_hw), "kept": kept, "pictures": pictures}
    settings |= {"train": [TRAIN_BATCH, *TRAIN_HW], "objects": OBJECTS, "picture_hw": list(PICTURE_HW), **config}
    record = {"environment": environment(device), "settings": settings}
    record |= _inference(device, dtype, size_hw, kept, runs, **config)
    record["train_step"] = _training(device, dtype, runs, **config)
    record |= _reading(pictures, runs)
    return record


@torch.no_grad()  # a model made or converted in inference mode is not folded
def _inference(
    device: str, dtype: str, size_hw: tuple[int, int], kept: int, runs: int, **config: Any
) -> dict[str, Any]:
    """Returns what is `after_decoder`, with `all` queries and those `kept`, and whole forwards (`forward`, `kept`).

    That both sides agree is seen on an image with a quarter of the sides.
    """
    ours, peer = (model.to(dtype_named(dtype)) for model in random_pair(device, masks=True, **config))
    small, pixel_values = (
        random_pixels(1, size, device)[0].to(dtype_named(dtype))
        for size in (tuple(side // 4 for side in size_hw), size_hw)
    )
    tolerance = tolerance_in_float32(device) if dtype == "float32" else TOLERANCE[dtype]
    head, whole, chosen = _calls(ours, peer, small, kept)
    found, expected = whole["kept"](), whole["peer"]()
    moved = differences(found, expected) | {"masks": _largest(found, expected, chosen)}
    masks = {name: SimpleNamespace(pred_masks=run()) for name, run in head.items()}
    moved["masks_of_all"] = _largest(masks["all"], masks["peer"], slice(None))
    moved["masks_of_kept"] = _largest(masks["kept"], masks["peer"], chosen)
    record: dict[str, Any] = {"difference": require_agreement(moved, tolerance)}
    head, whole, chosen = _calls(ours, peer, pixel_values, kept)
    record["kept_queries"] = int(chosen.sum())
    record["after_decoder"] = _sides(head, runs, device)
    ours.backbone[0].inference_body.memory.release()  # what it keeps between calls counts too
    record["forward"] = _sides(whole, runs, device)
    return record


def _calls(ours: nn.Module, peer: nn.Module, pixel_values: Tensor, kept: int) -> tuple[dict, dict, Tensor]:
    """Returns the calls after the decoder and of whole forwards, by name, and which queries are kept (Q,) bool."""
    decoded, predictions, *_ = ours.detect(pixel_values, None, None, None, None)
    scores = predictions.logits[-1, 0].softmax(dim=-1)[:, :-1].amax(dim=-1)
    threshold = float(scores.sort(descending=True).values[kept - 1 : kept + 1].float().mean())
    head = {
        "all": partial(predict_masks, ours, decoded, predictions, None),
        "kept": partial(predict_masks, ours, decoded, predictions, threshold),
        "peer": partial(_masks_of_peer, peer, decoded),
    }
    whole = {
        "kept": partial(ours, pixel_values=pixel_values, mask_score_threshold=threshold),
        "peer": partial(peer, pixel_values=pixel_values),
    }
    return head, whole, scores > threshold


def _masks_of_peer(peer: nn.Module, decoded: Decoded) -> Tensor:
    """Returns transformers' mask logits (1, Q, h4, w4), from what its decoder and backbone would give it."""
    *finer, (feature_map, _) = decoded.features
    memory = decoded.output.encoder_last_hidden_state.transpose(1, 2).unflatten(-1, feature_map.shape[-2:])
    nothing_hidden = torch.zeros_like(memory[:, None, None, 0])
    attention = peer.bbox_attention(decoded.output.last_hidden_state, memory, attention_mask=nothing_hidden)
    maps = [finer_map.contiguous() for finer_map, _ in reversed(finer)]
    return peer.mask_head(decoded.projected.contiguous(), attention, maps).transpose(0, 1)


def _largest(ours: Any, peer: Any, queries: Tensor | slice) -> float:
    return (ours.pred_masks[:, queries].float() - peer.pred_masks[:, queries].float()).abs().max().item()


def _sides(calls: dict[str, Callable[[], Any]], runs: int, device: str) -> dict[str, Any]:
    """Returns the comparison of every call with the one that is called `peer`, and their peaks of memory.

    What memory is measured on is no timing, but makes every call warm.
    """
    memory = {name: peak_memory(call, device) for name, call in calls.items()}
    names = [name for name in calls if name != "peer"]
    rounds = in_turn([partial(timed, calls[name], device) for name in (*names, "peer")], runs)
    found = {}
    for index, name in enumerate(names):
        found[name] = of_pairs([(times[index], times[-1]) for times in rounds]) | _memory(memory[name], memory["peer"])
        if device != "cpu":
            del found[name]["cpu_ratio"]
    return found


def _memory(ours: int | None, peer: int | None) -> dict[str, int]:
    return {} if ours is None or peer is None else {"ours_peak_bytes": ours, "peer_peak_bytes": peer}


def _training(device: str, dtype: str, runs: int, **config: Any) -> dict[str, Any]:
    """Returns the comparison of training steps with masks, from the same weights and on the same batch."""
    ours, peer = random_pair(device, masks=True, dropout=0.0, **config)
    peer.config.auxiliary_loss = ours.config.aux_loss
    targets = random_targets(TRAIN_BATCH, OBJECTS, ours.config.num_labels, device)
    for target in targets:
        target["masks"] = torch.stack([_inside(box, TRAIN_HW) for box in target["boxes"].tolist()]).to(device)
    inputs = {"pixel_values": random_pixels(TRAIN_BATCH, TRAIN_HW, device)[0]}
    inputs["pixel_mask"] = torch.ones(TRAIN_BATCH, *TRAIN_HW, dtype=torch.int64, device=device)
    # transformers' forward changes the boxes of its labels in place in some versions: each side has its own
    batches = [inputs | {"labels": [dict(target) for target in targets]} for _ in range(2)]
    steps = [Step(model, batch, dtype_named(dtype)) for model, batch in zip((ours, peer), batches, strict=True)]
    losses = [step().item() for step in steps]  # the optimisers' states are made now
    tolerance = {"float32": 1e-4 if device == "cpu" else 1e-2}.get(dtype, 5e-2)
    difference = require_agreement({"difference": abs(losses[0] - losses[1]) / abs(losses[1])}, tolerance)
    return _sides(dict(zip(("ours", "peer"), steps, strict=True)), runs, device)["ours"] | difference


def _inside(box_cxcywh_norm: list[float], size_hw: tuple[int, int]) -> Tensor:
    """Returns the mask (H, W) bool of the ellipse in a box."""
    (height, width), (cx, cy, w, h) = size_hw, box_cxcywh_norm
    y = ((torch.arange(height) + 0.5) / height - cy) / (h / 2)
    x = ((torch.arange(width) + 0.5) / width - cx) / (w / 2)
    return y[:, None].square() + x.square() <= 1


def _reading(pictures: int, runs: int) -> dict[str, Any]:
    """Returns the comparison of reading masks as `panoptic` segments and as `instances`, and a `large_picture`.

    Every picture is divided among sure objects, for there both sides agree.
    """
    ours, peer = DETRImageProcessor(), DetrImageProcessor()
    several = [divided(seed, SEGMENTS, 100, MAP_HW) for seed in range(5)]
    record = {}
    for name, options in (("panoptic", {"label_ids_to_fuse": set()}), ("instance", {})):
        options |= {"threshold": 0.85, "target_sizes": [PICTURE_HW]}
        reads = [getattr(side, f"post_process_{name}_segmentation") for side in (ours, peer)]
        moved = max(_moved(*(read(outputs, **options)[0] for read in reads)) for outputs in several)
        require_agreement({"pixels": moved}, 0.01)
        calls = {
            side: partial(_read_all, read, several, pictures, options)
            for side, read in zip(("ours", "peer"), reads, strict=True)
        }
        record[f"{name}_segmentation"] = _sides(calls, runs, "cpu")["ours"] | {"difference": moved}
    large = divided(0, LARGE_QUERIES, LARGE_QUERIES, (300, 450))
    options = {"threshold": 0.85, "target_sizes": [LARGE_HW], "label_ids_to_fuse": set()}
    calls = {
        name: partial(side.post_process_panoptic_segmentation, large, **options)
        for name, side in (("ours", ours), ("peer", peer))
    }
    record["large_picture"] = {"queries": LARGE_QUERIES} | _sides(calls, runs, "cpu")["ours"]
    return record


def divided(seed: int, segments: int, queries: int, size_hw: tuple[int, int]) -> SimpleNamespace:
    """Returns outputs for an image that `segments` of its queries divide among them, each with a class of its own."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(segments, 2, generator=generator) * torch.tensor(size_hw)
    rows, columns = (torch.arange(count) for count in size_hw)
    distance = (rows[:, None, None] - centres[:, 0]).square() + (columns[:, None] - centres[:, 1]).square()
    nearest = distance.argmin(dim=-1)
    masks = [torch.where(nearest == number, ON, OFF) for number in range(segments)]
    masks += [torch.full(size_hw, OFF)] * (queries - segments)
    scores = [0.99] * segments + [0.01] * (queries - segments)
    return outputs_of(masks, [query % segments for query in range(queries)], scores, classes=segments)


def _read_all(read: Callable[..., Any], several: list[Any], pictures: int, options: dict[str, Any]) -> None:
    for index in range(pictures):
        read(several[index % len(several)], **options)


def _moved(ours: dict[str, Any], peer: dict[str, Any]) -> float:
    """Returns the part of the pixels that have another class on the other side."""
    return (_classes(ours) != _classes(peer)).float().mean().item()


def _classes(result: dict[str, Any]) -> Tensor:
    classes = torch.full(result["segmentation"].shape, -1)
    for segment in result["segments_info"]:
        classes[result["segmentation"] == segment["id"]] = segment["label_id"]
    return classes


__all__ = ["compare_masks", "divided"]
