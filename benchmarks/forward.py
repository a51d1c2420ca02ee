"""Times DETR-R50's forward pass beside transformers' own DETR, with the same random weights.

    make bench

Both run in one process, in turn, after their outputs were found equal; the result is the median of the ratios of
neighbouring runs, with the quartiles. fp32, eval, no gradients, sdpa attention, default allocator, both as they come.
"""

import argparse
import platform
import statistics
import time

import torch
import transformers

from detr_hf import DETRConfig, DETRForObjectDetection


def seconds(model: torch.nn.Module, pixel_values: torch.Tensor) -> float:
    """How long one forward pass takes."""
    start = time.perf_counter()
    model(pixel_values)
    return time.perf_counter() - start


@torch.inference_mode()
def main() -> None:
    """Prints the machine, the agreement of the outputs, both medians and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1066)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--runs", type=int, default=9)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    ours = DETRForObjectDetection(DETRConfig(backbone="resnet50")).eval()
    theirs = ours.to_transformers().eval()
    pixel_values = torch.randn(arguments.batch_size, 3, arguments.height, arguments.width)
    got, expected = ours(pixel_values), theirs(pixel_values)
    difference = max(
        (got.logits - expected.logits).abs().max().item(), (got.pred_boxes - expected.pred_boxes).abs().max().item()
    )
    if difference > 1e-4:
        raise SystemExit(f"The outputs differ by {difference:.1e}: nothing to compare.")

    pairs = [(seconds(ours, pixel_values), seconds(theirs, pixel_values)) for _ in range(arguments.runs)]
    ratios = sorted(their_time / our_time for our_time, their_time in pairs)
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print(
        f"DETR-R50, {arguments.batch_size} x {arguments.height} x {arguments.width}; outputs within {difference:.1e}"
    )
    our_time, their_time = (statistics.median(times) for times in zip(*pairs, strict=True))
    print(f"detr_hf {our_time:.3f} s, transformers {transformers.__version__} (sdpa) {their_time:.3f} s")
    print(f"ratio {middle:.2f} (quartiles {low:.2f} to {high:.2f}, {arguments.runs} pairs)")


if __name__ == "__main__":
    main()
