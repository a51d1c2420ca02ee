"""One side of `python -m benchmarks commits`: the package of one checkout, timed call by call on its parent's word.

It runs as a file of its own with the checkout first on PYTHONPATH, and knows nothing of the package but its public
names: the checkout may be older than everything else in this folder. Requests are JSON lines on standard input,
answers JSON lines on standard output.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import detr_hf

MAX_GRAD_NORM = 0.1


def forward(model: nn.Module, inputs: dict[str, Any]) -> Callable[[], dict[str, Tensor]]:
    """Returns a call: pixels to logits and boxes."""
    model.eval()

    @torch.no_grad()
    def run() -> dict[str, Tensor]:
        outputs = model(**inputs)
        return {"logits": outputs.logits, "boxes": outputs.pred_boxes}

    return run


def criterion(model: nn.Module, inputs: dict[str, Any]) -> Callable[[], dict[str, Tensor]]:
    """Returns a call: the loss of given outputs of all decoder layers, and its gradients."""
    logits, pred_boxes = inputs["logits"].requires_grad_(), inputs["pred_boxes"].requires_grad_()

    def run() -> dict[str, Tensor]:
        loss = model.loss_function(logits, pred_boxes, inputs["labels"])[0]
        of_logits, of_boxes = torch.autograd.grad(loss, (logits, pred_boxes))
        return {"loss": loss.detach(), "gradients_of_logits": of_logits, "gradients_of_boxes": of_boxes}

    return run


def train_step(model: nn.Module, inputs: dict[str, Any]) -> Callable[[], dict[str, Tensor]]:
    """Returns a call: forward, loss, backward, clipping and AdamW."""
    model.train()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-6, weight_decay=1e-4, fused=True)

    def run() -> dict[str, Tensor]:
        loss = model(**inputs).loss
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        return {"loss": loss.detach(), "gradient_norm": norm}

    return run


PARTS = {"forward": forward, "forward_padded": forward, "criterion": criterion, "train_step": train_step}


def prepare(part: str, folder: Path) -> Callable[[], Any]:
    """Returns the call of a part, on a model of its own with the weights and inputs that lie in a folder."""
    given = torch.load(folder / "model.pt", weights_only=True)
    model = detr_hf.DETRForObjectDetection(detr_hf.DETRConfig(**given["config"]))
    model.load_state_dict(given["weights"])
    return PARTS[part](model, torch.load(folder / f"{part}.pt", weights_only=True))


def timed(run: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Returns wall time and this process's processor time of one call, in seconds."""
    start, start_cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        run()
    return {
        "wall": (time.perf_counter() - start) / repeats,
        "processor": (time.process_time() - start_cpu) / repeats,
    }


def serve(folder: Path) -> None:
    """Answers requests until there are no more: {"prepare": PART, "outputs": FILE} or {"repeats": N}."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is no answer
    print(json.dumps({"package": detr_hf.__file__}), file=answers, flush=True)
    run = None
    for line in sys.stdin:
        request = json.loads(line)
        if "prepare" in request:
            run = None  # two models of two parts need not lie in memory together
            run = prepare(request["prepare"], folder)
            torch.save(run(), request["outputs"])
            answer = {"prepared": request["prepare"]}
        else:
            answer = timed(run, request["repeats"])
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
