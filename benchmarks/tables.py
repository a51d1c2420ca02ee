"""Every figure of the documentation, from the records: `python -m benchmarks tables` fills in what stands between
`<!-- begin: NAME -->` and `<!-- end: NAME -->` in `docs/*.md`; `--check` says which of it no longer is what the
records say.

A record is `benchmarks/results/MACHINE/NAME.json`. Nothing here measures, and nothing is known about a figure but
where it lies; what was aimed at is written beside it, so that what falls short shows.
"""

import functools
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import learning_tables
from .records import MACHINES, RESULTS, record, table

MARKED = re.compile(r"(<!-- begin: (\S+) -->\n)(.*?)(<!-- end: \2 -->)", re.DOTALL)
CPUS = ("zen5", "zen4", "amx", "xeon16")
# What is measured on a CPU: what it is, the record, where in it, what was aimed at, the command.
CPU_ROWS = (
    ("one image, float32", "forward", "forward", "2.5", "forward"),
    ("two images, one padded, float32", "forward-padded", "forward", "", "forward --batch 2 --padded"),
    ("one image, bfloat16", "forward-bfloat16", "forward", "", "forward --dtype bfloat16"),
    (
        "ours in bfloat16, theirs in float32",
        "forward-bfloat16-peer-float32",
        "forward",
        "5",
        "forward --dtype bfloat16 --peer-dtype float32",
    ),
    ("float32, freed memory kept", "forward-tuned-allocator", "forward", "", "forward --tuned-allocator"),
    (
        "bfloat16, freed memory kept",
        "forward-bfloat16-tuned-allocator",
        "forward",
        "",
        "forward --dtype bfloat16 --tuned-allocator",
    ),
    ("float32, theirs compiled", "forward-compiled-peer", "forward", "", "forward --compile-peer"),
    (
        "bfloat16, theirs compiled",
        "forward-bfloat16-compiled-peer",
        "forward",
        "",
        "forward --dtype bfloat16 --compile-peer",
    ),
    ("ONNX Runtime, float32", "exported-speed", "onnx", "", "exported"),
    ("OpenVINO, float32", "exported-speed", "openvino", "", "exported"),
    ("OpenVINO, bfloat16, theirs in float32", "exported-speed", "openvino:bfloat16", "6", "exported"),
    ("OpenVINO, int8, theirs in float32", "exported-speed", "openvino:int8", "9", "exported"),
    ("training step, float32", "train-step", "train_step", "1.3", "train-step"),
    ("training step, bfloat16", "train-step-bfloat16", "train_step", "2", "train-step --dtype bfloat16"),
    ("the loss with matching, forward and backward", "criterion", "forward_backward", "16", "criterion"),
    ("16 images to tensors", "preprocess", "preprocess", "", "preprocess"),
    ("outputs to detections", "preprocess", "postprocess", "", "preprocess"),
)
# What is measured of masks: what it is, where in the record, how many times as fast and as small was aimed at.
MASK_ROWS = (
    ("after the decoder, all masks", ("after_decoder", "all"), "5", "10"),
    ("after the decoder, the {kept} best", ("after_decoder", "kept"), "30", ""),
    ("a whole forward, the {kept} best", ("forward", "kept"), "10", ""),
    ("a training step, 2 images of {objects} objects", ("train_step",), "7", "8"),
    ("{pictures} pictures read as panoptic segments", ("panoptic_segmentation",), "", ""),
    ("{pictures} pictures read as instances", ("instance_segmentation",), "", ""),
    ("one of 1200x1800 read, 300 queries", ("large_picture",), "", ""),
)
MASK_RECORDS = ("masks", "masks-bfloat16", "masks-queries-50", "masks-bfloat16-queries-50")
GPU_ROWS = {
    "eager_1": "batch 1",
    "eager_8": "batch 8",
    "eager_32": "batch 32",
    "eager_graph_1": "batch 1, both replayed as a CUDA graph",
    "train_step": "training step",
}


def machines() -> str:
    """Returns what each folder of records was measured on."""
    rows = []
    for folder in sorted(path for path in RESULTS.iterdir() if path.is_dir()):
        found = [record(folder.name, path.stem)["environment"] for path in sorted(folder.glob("*.json"))]
        if not found:
            continue
        versions = [
            ", ".join(sorted({machine["versions"][name] for machine in found})) for name in ("torch", "transformers")
        ]
        days = sorted({machine["time"][:10] for machine in found})
        what = {machine.get("gpu") or f"{machine['processor']}, {machine['cpu_capability']}" for machine in found}
        threads = ", ".join(map(str, sorted({machine["threads"] for machine in found})))
        link = f"[`{folder.name}`](../benchmarks/results/{folder.name})"
        rows.append(
            [link, "; ".join(sorted(what)), threads, *versions, " to ".join(dict.fromkeys((days[0], days[-1])))]
        )
    return table(["records", "processor", "threads", "torch", "transformers", "days"], rows)


def _ratio(found: dict[str, Any]) -> str:
    ratio = found["ratio"]
    return f"**{ratio['median']:.2f}** ({ratio['low']:.2f} to {ratio['high']:.2f})"


def speed_cpu() -> str:
    """Returns the ratios on every CPU, with what was aimed at and the command."""
    rows = []
    for what, name, part, aim, command in CPU_ROWS:
        cells = []
        for machine in CPUS:
            found = (record(machine, name) or {}).get(part)
            cells.append(_ratio(found) if found else "")
        rows.append([what, *cells, aim, f"`{command}`"])
    return table(["", *(MACHINES[machine] for machine in CPUS), "aimed at", "`python -m benchmarks ...`"], rows)


def speed_milliseconds() -> str:
    """Returns the times behind the ratios, and the memory of a training step."""
    rows = []
    for what, name, part, _, _ in CPU_ROWS:
        for machine in CPUS:
            found = record(machine, name) or {}
            if part not in found:
                continue
            times = found[part]
            memory = found.get("peak_memory", {}).get("ours_over_peer")
            cells = [_milliseconds(times[side]) for side in ("ours_s", "peer_s")]
            rows.append([what, MACHINES[machine], *cells, f"{memory:.2f}" if memory else ""])
    return table(["", "on", "here, ms", "transformers, ms", "memory, ours over theirs"], rows)


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f}" if seconds > 0.1 else f"{1000 * seconds:.2g}"


def speed_gpu() -> str:
    """Returns the ratios on a GPU, with throughput, memory and waits for the device."""
    found = record("h100", "gpu")
    rows = []
    for part, what in GPU_ROWS.items():
        values = found[part]
        memory = values.get("memory_bytes")
        syncs = values.get("host_syncs")
        rows.append(
            [
                what,
                _ratio(values),
                f"{values['ours_per_s']:.0f}",
                f"{values['peer_per_s']:.0f}",
                f"{memory['ours'] / memory['peer']:.2f}" if memory else "",
                f"{syncs['ours']}, {syncs['peer']}" if syncs else "",
            ]
        )
    settings = found["settings"]
    height, width = settings["size_hw"]
    batch, *train_hw = settings["train"]
    head = ["", "ratio", "images a second", "transformers", "memory, ours over theirs", "host syncs, ours and theirs"]
    note = (
        f"{settings['dtype']}; inference at {height}x{width}, training at {train_hw[0]}x{train_hw[1]}, batch {batch}."
    )
    return f"{table(head, rows)}\n\n{note}"


def speed_limit() -> str:
    """Returns how many operations a second the machine, this package and transformers do."""
    rows = []
    for machine in CPUS:
        for name, dtype in (("forward", "float32"), ("forward-bfloat16", "bfloat16")):
            found = record(machine, name)
            if found:
                rate = found["gflop_a_second"]
                work = rate["gflop_of_a_forward"]
                cells = [f"{rate[side]:.0f}" for side in ("ours", "peer", "machine")]
                rows.append([MACHINES[machine], dtype, *cells, f"{1000 * work / rate['machine']:.0f}"])
    head = ["", "", "here", "transformers", "the machine at its best", "ms of a forward at that rate"]
    return f"{table(head, rows)}\n\nGFLOP a second; a forward at this size is {work:.0f} GFLOP."


def speed_growth() -> str:
    """Returns how the ratio and the memory go with side, batch and queries."""
    found = record("zen5", "growth")
    rows = [
        [axis, str(point[axis]), f"{point['ratio']['median']:.2f}", _memory_ratio(point)]
        for axis in ("side", "batch", "queries")
        for point in found.get(axis, ())
    ]
    return table(["", "", "ratio", "memory, ours over theirs"], rows)


def _memory_ratio(point: dict[str, Any]) -> str:
    return f"{point['ours_peak_bytes'] / point['peer_peak_bytes']:.2f}" if point.get("peer_peak_bytes") else ""


def speed_masks() -> str:
    """Returns times and memory of everything that masks cost, on every machine that measured it."""
    rows = []
    for machine, name in itertools.product(MACHINES, MASK_RECORDS):
        found = record(machine, name)
        for what, path, *aims in MASK_ROWS if found else ():
            value = functools.reduce(dict.__getitem__, path, found)
            settings = found["settings"]
            memory = [value.get(f"{side}_peak_bytes") for side in ("ours", "peer")]
            cells = [what.format(**settings), f"{MACHINES[machine]}, {settings['num_queries']}, {settings['dtype']}"]
            cells += [_ratio({"ratio": value.get("cpu_ratio", value["ratio"])}), aims[0]]
            cells += [f"{value[side]:.2f}" for side in ("ours_s", "peer_s")]
            cells += [f"{size / 1e6:.0f}" if size else "" for size in memory]
            rows.append([*cells, f"{memory[1] / memory[0]:.1f}" if all(memory) else "", aims[1]])
    head = ["", "on, queries", "times as fast", "aimed at", "here, s", "transformers, s"]
    return table([*head, "memory here, MB", "transformers, MB", "times as small", "aimed at"], rows)


def faults_table(cases: list[dict[str, str]]) -> str:
    """Returns the table of what is right, what this package gives and what transformers does."""
    rows = [[case[column] for column in ("what", "right", "ours", "transformers")] for case in cases]
    return table(["", "right", "here", "transformers"], rows)


def mask_faults() -> str:
    """Returns that table of the record; every machine gives the same."""
    return faults_table(next(found for name in MACHINES if (found := record(name, "masks-faults")))["cases"])


def speed_start() -> str:
    """Returns the seconds of whole processes."""
    started, exported = record("zen5", "start")["seconds"], record("zen5", "exported-start")
    names = {
        "help": "`detr-hf --help`",
        "import_detr_hf": "`import detr_hf`",
        "import_our_model": "import this package's model",
        "import_their_model": "import transformers' model",
    }
    rows = [[what, f"{started[name]['median']:.2f}", "", ""] for name, what in names.items()]
    for part, what in (("start onnx", "an ONNX file"), ("start openvino", "OpenVINO's")):
        values = exported[part]
        cells = [f"{values['ours_s']:.2f}", f"{values['peer_s']:.2f}", _ratio(values)]
        rows.append([f"find objects in one picture, from {what}", *cells])
    return table(["a process that does this and ends", "seconds", "transformers in torch", "ratio"], rows)


def export_ap() -> str:
    """Returns the AP that each exported form of the shipped checkpoint keeps."""
    found = record("zen5", "exported-ap")
    names = {
        "torch": "torch, float32",
        "onnx": "ONNX Runtime, float32",
        "openvino": "OpenVINO, float32",
        "openvino:bfloat16": "OpenVINO, bfloat16",
        "openvino:int8": "OpenVINO, int8 (convolutions; the rest in bfloat16)",
    }
    rows = []
    for name, what in names.items():
        points = found[name].get("points")
        cells = [f"{100 * found[name][part]:.2f}" for part in ("AP", "AP50", "AP75")]
        rows.append([what, *cells, "" if points is None else f"{points:+.2f}"])
    settings = found["settings"]
    note = (
        f"{settings['scenes']} validation scenes; int8 calibrated on {settings['calibration_scenes']} training scenes."
    )
    return f"{table(['', 'AP', 'AP50', 'AP75', 'beside torch'], rows)}\n\n{note}"


def padding() -> str:
    """Returns how far padding moves targets and outputs, here and in transformers."""
    found = record("zen5", "padding")
    rows = [
        [what, *(f"{found[name][part]:.3f}" for part in ("target_mean", "score_mean", "box_mean"))]
        for name, what in (("detr_hf", "here"), ("transformers", "transformers"))
    ]
    head = ["beside a picture half as large again", "a target's box", "scores over 0.5", "boxes"]
    scenes = found["settings"]["scenes"]
    note = f"Mean over {scenes} scenes of the largest change in a scene; boxes in parts of the image."
    return f"{table(head, rows)}\n\n{note}"


BLOCKS: dict[str, Callable[[], str]] = {
    "machines": machines,
    "speed-cpu": speed_cpu,
    "speed-milliseconds": speed_milliseconds,
    "speed-gpu": speed_gpu,
    "speed-limit": speed_limit,
    "speed-growth": speed_growth,
    "speed-masks": speed_masks,
    "speed-start": speed_start,
    "mask-faults": mask_faults,
    "export-ap": export_ap,
    "padding": padding,
    "learning-digits": learning_tables.digits,
    "learning-digits-precise": learning_tables.digits_precise,
    "learning-summary": learning_tables.summary,
    "learning-parts": learning_tables.parts,
    "learning-ablation": learning_tables.options,
    "learning-width": learning_tables.width,
    "learning-rate": learning_tables.rate,
    "learning-photographs": learning_tables.photographs,
    "learning-narrow": learning_tables.narrow,
    "learning-peers": learning_tables.beside_peers,
    "learning-presets": learning_tables.presets,
    "learning-cost": learning_tables.cost,
    "learning-masks": learning_tables.masks,
}


def filled(text: str) -> str:
    """Returns a page with every block rendered anew.

    Raises:
        ValueError: a block has a name that is not known.
    """

    def fill(match: re.Match[str]) -> str:
        begin, name, _, end = match.groups()
        if name not in BLOCKS:
            raise ValueError(f"There is no block {name!r}; there are {', '.join(BLOCKS)}.")
        return f"{begin}{BLOCKS[name]()}\n{end}"

    return MARKED.sub(fill, text)


def write_tables(folder: Path, check: bool = False) -> list[Path]:
    """Renders the blocks of all pages of a folder, and returns the pages that were not what the records say.

    With `check` nothing is written.
    """
    stale = []
    for path in sorted(folder.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        rendered = filled(text)
        if rendered != text:
            stale.append(path)
            if not check:
                path.write_text(rendered, encoding="utf-8")
    return stale


__all__ = ["BLOCKS", "filled", "write_tables"]
