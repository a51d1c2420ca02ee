"""How fast a model runs on this machine, by runtime and precision: each in a process of its own, all of them in turn.

In a process of its own a runtime has its own peak of memory, and nothing that another loads or keeps weighs on it.
Taking turns, all meet the same load of the machine. What is timed is the model, from pixels that lie ready to logits
and boxes, and masks where it has them; reading and resizing pictures is the same for all. Masks of some queries cost a
part of all: `mask_queries` says of how many.
"""

import logging
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoints.embedded import embedded_model_path, shipped
from ..export.artefact import find_artefact
from ..export.runtimes import load_runtime
from .detector import Detector
from .timing import VERSIONS, environment, peak_bytes, spread, timed

logger = logging.getLogger(__name__)

# What a checkpoint can run as. An exported model runs as what it is.
RUNTIMES = ("torch", "bfloat16", "compiled", "onnx", "openvino")
EXPORTED = {"onnx": "model.onnx", "openvino": "model-openvino"}
USUAL_PICTURE_HW = (480, 640)
FAILURES = (ImportError, OSError, RuntimeError, ValueError)


def benchmark(
    model: str | Path | None = None,
    runtimes: Sequence[str] | None = None,
    *,
    size_hw: tuple[int, int] | None = None,
    batch: int | None = None,
    runs: int = 10,
    threads: int | None = None,
    device: str | None = None,
    mask_queries: int | None = None,
    announce: Callable[[str], None] = logger.info,
) -> dict[str, Any]:
    """Returns `environment`, `settings`, `rows` and `left_out`: why a runtime has no row.

    A row has milliseconds of a batch (median and quartiles), pictures a second, and the peak of its process's memory.

    Args:
        model: what `Detector.from_pretrained` takes, exported models included; None is the shipped digit detector.
        runtimes: of `RUNTIMES`; by default all that this machine can run at speed.
        size_hw: of the pixels that the model gets; by default what its processor makes of a usual picture.
        batch: pictures at a time; 1 unless an exported model has another.
        runs: timings of each.
        threads: that the model may use; the runtime's choice by default.
        device: "cpu" or "cuda"; by default as `Detector` chooses.
        mask_queries: of a model with masks, how many queries of a picture get one; 0 for boxes alone, None for all.
        announce: is told what is being prepared.

    Raises:
        ValueError, OSError, RuntimeError: for a model that does not load, and when there is no row.
    """
    import torch

    source = embedded_model_path() if model is None else shipped(model)
    detector = Detector.from_pretrained(source, device="cpu", task=_task(mask_queries))
    artefact = find_artefact(source)
    info = detector.model.info if artefact is not None else None
    if mask_queries and (info or detector.task == "detection"):
        raise ValueError(
            f"mask_queries={mask_queries} (--mask-queries) is for a checkpoint with masks, and {source} is "
            f"{'exported: it has the masks that it was exported with' if info else 'a detector'}. Leave it out."
        )
    device = device or ("cuda" if artefact is None and torch.cuda.is_available() else "cpu")
    if size_hw is None:
        pixels, _ = detector.backend.processed(np.zeros((*USUAL_PICTURE_HW, 3), np.uint8))
        size_hw = (info and info.size_hw) or tuple(pixels.shape[-2:])
    channels = info.num_channels if info else detector.model.config.num_channels
    shape = (batch or (info and info.batch) or 1, channels, *size_hw)
    own = (info.format,) if info else RUNTIMES
    workers: dict[str, _Worker] = {}
    left_out: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as at_the_end:
        for runtime in runtimes or dict.fromkeys((*own, *RUNTIMES)):
            try:
                if runtime not in own:
                    raise ValueError(f"the model is exported already, to {own[0]}")
                if runtime == "bfloat16" and runtimes is None and not has_bfloat16(device):
                    raise ValueError(
                        "this machine has no bfloat16 arithmetic; --runtimes bfloat16 measures it none the less"
                    )
                announce(f"Preparing {runtime} ...")
                path = artefact or source
                if artefact is None and runtime in EXPORTED:
                    path = _export(detector, runtime, Path(folder), mask_queries)
                workers[runtime] = _Worker(runtime, path, artefact is not None, shape, device, threads, mask_queries)
                at_the_end.callback(workers[runtime].close)
            except FAILURES as error:
                left_out[runtime] = str(error).strip().partition("\n")[0] or type(error).__name__
        if not workers:
            raise RuntimeError("; ".join(f"{name}: {reason}" for name, reason in left_out.items()))
        announce("Measuring ...")
        rows = _measure_in_turn(workers, shape[0], runs)
    settings = {"model": str(model or "the shipped digit detector"), "device": device, "threads": threads}
    settings |= {"batch": shape[0], "size_hw": list(size_hw), "runs": runs}
    if detector.task != "detection":
        of_artefact = getattr(info, "mask_queries", None)
        settings["mask_queries"] = mask_queries or of_artefact or "all"
    versions = (*VERSIONS, "onnxruntime", "openvino")
    return {"environment": environment(device, versions), "settings": settings, "rows": rows, "left_out": left_out}


def has_bfloat16(device: str) -> bool:
    """Whether the device computes bfloat16 itself, and not by way of float32."""
    import torch

    from ..model.compiling_detr import bfloat16_hardware

    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bfloat16_hardware()


def _task(mask_queries: int | None) -> str | None:
    return "detection" if mask_queries == 0 else None


def _export(detector: Detector, runtime: str, folder: Path, mask_queries: int | None) -> Path:
    from ..export.exporting import export_model

    options = {"mask_queries": mask_queries} if mask_queries else {}
    return export_model(detector.model, detector.image_processor, folder / EXPORTED[runtime], runtime, **options)[0]


def _measure_in_turn(workers: "dict[str, _Worker]", batch: int, runs: int) -> list[dict[str, Any]]:
    names, times = list(workers), {name: [] for name in workers}
    for index in range(runs):
        first = index % len(names)  # the one that comes first is another each time
        for name in names[first:] + names[:first]:
            times[name].append(workers[name].ask("time")[0] * 1e3)
    found = {name: spread(values) for name, values in times.items()}
    return [
        {
            "runtime": name,
            "milliseconds": found[name],
            "pictures_per_second": batch * 1e3 / found[name]["median"],
            "peak_memory_bytes": workers[name].ask("peak"),
        }
        for name in names
    ]


class _Worker:
    """A process that has one runtime loaded and waits to be asked for a timing."""

    def __init__(self, runtime: str, *arguments: Any):
        self.runtime = runtime
        context = get_context("spawn")
        self._channel, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, runtime, *arguments), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self._answer()
        except RuntimeError:
            self.close()
            raise

    def ask(self, question: str) -> Any:
        """Returns the answer to "time", (wall, processor) in seconds, or to "peak", in bytes."""
        self._channel.send(question)
        return self._answer()

    def _answer(self) -> Any:
        try:
            answer = self._channel.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(
                f"the process of {self.runtime} ended with code {self._process.exitcode}; is there memory enough?"
            ) from None
        if isinstance(answer, RuntimeError):
            raise answer
        return answer

    def close(self) -> None:
        """Ends the process."""
        self._channel.close()
        self._process.join()


def _work(
    channel: Connection,
    runtime: str,
    source: Path,
    is_artefact: bool,
    shape: tuple,
    device: str,
    threads: int | None,
    mask_queries: int | None = None,
) -> None:
    """Loads a runtime, answers why if that fails, and else answers until the other end is closed."""
    pixels = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    try:
        if is_artefact or runtime in EXPORTED:
            call: Callable[[], Any] = partial(load_runtime(source, device, threads), pixels)
        else:
            call = _torch_call(runtime, source, pixels, device, threads, mask_queries)
        call(), call()
        channel.send(None)
    except Exception as error:  # runtimes have errors of their own, derived from nothing else
        return channel.send(RuntimeError(str(error) or type(error).__name__))
    while True:
        try:
            question = channel.recv()
        except (EOFError, OSError):
            return
        channel.send(timed(call, device) if question == "time" else peak_bytes(device))


def _torch_call(
    runtime: str, source: Path, pixels: np.ndarray, device: str, threads: int | None, mask_queries: int | None
) -> Callable[[], Any]:
    import torch
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    if threads is not None:
        torch.set_num_threads(threads)
    dtype = torch.bfloat16 if runtime == "bfloat16" else torch.float32
    model = Detector.from_pretrained(source, device=device, dtype=dtype, task=_task(mask_queries)).model
    pixel_values = torch.from_numpy(pixels).to(device, dtype)
    asked = {}
    if mask_queries:
        with torch.inference_mode():
            logits = model(pixel_values, mask_score_threshold=1.0).logits
        asked["mask_score_threshold"] = _score_above_which(logits, mask_queries)
    model.optimize_for_inference(compile=runtime == "compiled")
    return torch.inference_mode()(partial(model, pixel_values, **asked))


def _score_above_which(logits: Any, count: int) -> float:
    """Returns a score that so many queries of an image have, on the average of the batch."""
    scores = logits.softmax(-1)[..., :-1].amax(-1).float().flatten().sort(descending=True).values
    wanted = count * len(logits)
    return float(scores[wanted - 1 : wanted + 1].mean()) if wanted < len(scores) else -1.0
