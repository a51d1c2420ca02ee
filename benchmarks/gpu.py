"""The table of a GPU, in bfloat16: inference at batch 1, 8 and 32, training, host syncs, and what matching costs.

Every section stands alone: its error goes into the record, and the record is written after each. The peer runs as
shipped (sdpa attention) and at its best: compiled, and replayed as a CUDA graph. Sections that compile come last, and
none starts after the time is up.
"""

import json
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detr_hf.model.fast_kernels_detr import fused_kernels

from .forward import TOLERANCE, tolerance_in_float32
from .measuring import check_device, compare, differences, environment, require_agreement, seconds, spread
from .models import random_pair, random_pixels
from .train_step import host_syncs, loss_difference, steps_of_both_sides, without_optimizer

SIZE_HW = (800, 1066)
TRAIN_SIZE_HW = (640, 640)
TRAIN_BATCH = 16
BATCHES = (1, 8, 32)
DEVICE = "cuda"
RUNS = 7

Section = Callable[[dict[str, Any]], Any]


def gpu_table(path: Path, seconds_in_all: float) -> Iterator[str]:
    """Measures and writes `path` after every section; yields a line for each.

    Raises:
        ValueError: without a GPU.
    """
    check_device(DEVICE)
    start = time.perf_counter()
    record: dict[str, Any] = {
        "environment": environment(DEVICE),
        "settings": {"dtype": "bfloat16", "size_hw": list(SIZE_HW), "train": [TRAIN_BATCH, *TRAIN_SIZE_HW]},
        "seconds": {},
    }
    kept: dict[str, Any] = {}
    for name, section in sections().items():
        passed = time.perf_counter() - start
        if passed > seconds_in_all:
            record[name] = {"not_measured": f"{passed:.0f} s had passed"}
        else:
            try:
                record[name] = section(kept)
            except Exception as error:  # whatever it is, the other sections are still worth having
                record[name] = {
                    "error": f"{type(error).__name__}: {error}",
                    "traceback": traceback.format_exc()[-3000:],
                }
        record["seconds"][name] = round(time.perf_counter() - start - passed, 1)
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        yield f"{name} ({record['seconds'][name]} s): {json.dumps(_short(record[name]))}"


def sections() -> dict[str, Section]:
    """Returns what is measured, in order; each is given a dict that carries models from one to the next."""
    table: dict[str, Section] = {"agreement": _agreement, "fused_kernels": _fused_kernels}
    for batch in BATCHES:
        table[f"eager_{batch}"] = partial(_eager, batch=batch)
    table["eager_graph_1"] = partial(_graphs, batch=1)
    table["host_syncs_forward"] = _forward_syncs
    table["train_step"] = _training
    table["matching"] = _matching
    table["compiled_8"] = partial(_compiled, batch=8)
    table["compiled_1"] = partial(_compiled, batch=1)
    table["compiled_32"] = partial(_compiled, batch=32)
    table["compiled_train_step"] = _compiled_training
    return table


def _agreement(kept: dict[str, Any]) -> dict[str, Any]:
    """Builds both models, and compares their outputs in float32 and in bfloat16."""
    ours, peer = random_pair(DEVICE)
    pixel_values, _ = random_pixels(2, SIZE_HW, DEVICE)
    with torch.inference_mode():
        found = differences(ours(pixel_values), peer(pixel_values))
    kept["ours"], kept["peer"] = ours.to(torch.bfloat16), peer.to(torch.bfloat16)
    low = pixel_values.to(torch.bfloat16)
    with torch.inference_mode():
        in_bfloat16 = differences(kept["ours"](low), kept["peer"](low))
    result = {"float32": found, "bfloat16": in_bfloat16}
    require_agreement(found, tolerance_in_float32(DEVICE))
    require_agreement(in_bfloat16, TOLERANCE["bfloat16"])
    return result


def _fused_kernels(kept: dict[str, Any]) -> dict[str, bool]:
    with torch.inference_mode():
        return {
            name: fused_kernels(torch.device("cuda", 0), dtype) is not None
            for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16))
        }


def _pixels(batch: int) -> torch.Tensor:
    return random_pixels(batch, SIZE_HW, DEVICE)[0].to(torch.bfloat16)


def _throughput(result: dict[str, Any], batch: int) -> dict[str, Any]:
    return result | {"ours_per_s": batch / result["ours_s"], "peer_per_s": batch / result["peer_s"]}


@torch.inference_mode()
def _eager(kept: dict[str, Any], batch: int) -> dict[str, Any]:
    pixel_values = _pixels(batch)
    ours, peer = partial(kept["ours"], pixel_values), partial(kept["peer"], pixel_values)
    repeats = max(1, 16 // batch)
    result = compare(ours, peer, RUNS, DEVICE, warmup=3, repeats=repeats)
    result["memory_bytes"] = {name: _peak_of(call) for name, call in (("ours", ours), ("peer", peer))}
    return _throughput(result, batch)


def _peak_of(call: Callable[[], Any]) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def captured(call: Callable[[], Any]) -> Callable[[], Any]:
    """Returns a function that replays the call as a CUDA graph, on the same inputs."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


@torch.inference_mode()
def _graphs(kept: dict[str, Any], batch: int) -> dict[str, Any]:
    """Both eager models, replayed as CUDA graphs; a side that cannot be captured says why."""
    pixel_values = _pixels(batch)
    return _graph_comparison(partial(kept["ours"], pixel_values), partial(kept["peer"], pixel_values), batch)


def _graph_comparison(ours: Callable[[], Any], peer: Callable[[], Any], batch: int) -> dict[str, Any]:
    replays, failed = {}, {}
    for name, call in (("ours", ours), ("peer", peer)):
        try:
            replays[name] = captured(call)
        except RuntimeError as error:
            failed[name] = str(error)[:300]
            torch.cuda.synchronize()
    if failed:
        return {"failed": failed} | {f"{name}_s": _median(run) for name, run in replays.items()}
    result = compare(replays["ours"], replays["peer"], RUNS, DEVICE, warmup=2, repeats=max(1, 16 // batch))
    return _throughput(result, batch)


def _median(run: Callable[[], Any]) -> float:
    run()
    return spread([seconds(run, DEVICE, 4) for _ in range(RUNS)])["median"]


def _forward_syncs(kept: dict[str, Any]) -> dict[str, Any]:
    """Host syncs of one inference with and without a mask, each side."""
    pixel_values = _pixels(2)
    mask = torch.ones(2, *SIZE_HW, dtype=torch.int64, device=DEVICE)
    with torch.inference_mode():
        return {
            f"{name}_{kind}": host_syncs(partial(kept[name], pixel_values, pixel_mask=given))
            for name in ("ours", "peer")
            for kind, given in (("unmasked", None), ("masked", mask))
        }


@torch.inference_mode()
def _compiled(kept: dict[str, Any], batch: int) -> dict[str, Any]:
    """Both sides compiled, as they are and replayed as CUDA graphs; and the peer's best beside our fastest form."""
    pixel_values = _pixels(batch)
    first_call = {}
    if "compiled_ours" not in kept:
        kept["compiled_ours"] = _compiled_copy_of(kept["ours"])
        kept["compiled_peer"] = torch.compile(kept["peer"])
    ours, peer = (partial(kept[name], pixel_values) for name in ("compiled_ours", "compiled_peer"))
    for name, call in (("ours_s", ours), ("peer_s", peer)):
        first_call[name] = seconds(call, DEVICE)
    found = require_agreement(differences(ours(), kept["peer"](pixel_values)), TOLERANCE["bfloat16"])
    repeats = max(1, 16 // batch)
    result = _throughput(compare(ours, peer, RUNS, DEVICE, warmup=2, repeats=repeats), batch)
    result |= {"first_call": first_call, "difference": found}
    eager = partial(kept["ours"], pixel_values)
    result["our_eager_beside_compiled_peer"] = compare(eager, peer, RUNS, DEVICE, warmup=1, repeats=repeats)
    if batch == 1:
        result["graphs"] = _graph_comparison(ours, peer, batch)
    return result


def _compiled_copy_of(model: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(model).optimize_for_inference(compile=True)


def _training(kept: dict[str, Any]) -> dict[str, Any]:
    steps = steps_of_both_sides(DEVICE, "bfloat16", TRAIN_BATCH, TRAIN_SIZE_HW, False, False)
    kept["steps"] = steps
    result: dict[str, Any] = {"difference": require_agreement(loss_difference(*steps), 2e-2)}
    result |= _throughput(compare(*steps, RUNS, DEVICE, warmup=2), TRAIN_BATCH)
    result["memory_bytes"] = {"ours": _peak_of(steps[0]), "peer": _peak_of(steps[1])}
    result["host_syncs"] = {"ours": host_syncs(steps[0]), "peer": host_syncs(steps[1])}
    return result


def _matching(kept: dict[str, Any]) -> dict[str, Any]:
    """How long a step takes, how long without its optimiser, and how long the host spends in matching.

    `hidden` is the part of the matching on the host during which the GPU still works on what was queued: the time of
    the matching less the time by which the step grows when the assignment is known.
    """
    from detr_hf.model import matcher_detr

    ours = kept["steps"][0]
    assign, known, spent = matcher_detr._assign, [], []

    def timed(*arguments: Any) -> Any:
        begin = time.perf_counter()
        known.append(assign(*arguments))
        spent.append(time.perf_counter() - begin)
        return known[-1]

    try:
        matcher_detr._assign = timed
        with_matching = [seconds(ours, DEVICE) for _ in range(RUNS)]
        answer = known[-1]
        matcher_detr._assign = lambda *arguments: answer
        without = [seconds(ours, DEVICE) for _ in range(RUNS)]
    finally:
        matcher_detr._assign = assign
    matching = spread(spent)["median"]
    growth = spread(with_matching)["median"] - spread(without)["median"]
    return {
        "step_s": spread(with_matching)["median"],
        "step_with_known_assignment_s": spread(without)["median"],
        "matching_s": matching,
        "hidden_s": min(matching, max(0.0, matching - growth)),
        "forward_backward_s": _median(without_optimizer(ours)),
    }


def _compiled_training(kept: dict[str, Any]) -> dict[str, Any]:
    ours, peer = kept["steps"]
    ours.call, peer.call = torch.compile(ours.model), torch.compile(peer.model)
    first_call = {"ours_s": seconds(ours, DEVICE), "peer_s": seconds(peer, DEVICE)}
    return _throughput(compare(ours, peer, RUNS, DEVICE, warmup=1), TRAIN_BATCH) | {"first_call": first_call}


def _short(value: Any) -> Any:
    """Returns a section's result without what is too long for a line."""
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items() if key != "traceback"}
    return round(value, 6) if isinstance(value, float) else value


__all__ = ["captured", "gpu_table", "sections"]
