"""The tables of how fast DETR learns, and of what that costs, from the records of `convergence` and `aids`."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from .convergence_record import Run
from .convergence_report import by_class_and_size, described, mistakes, table as curves_table
from .records import MACHINES, RESULTS, record, table

ARMS = {
    "transformers": "transformers, as shipped",
    "transformers-best": "transformers, auxiliary losses and the original's initial values",
    "detr": "`detr`, the original's recipe",
    "fast": "**`fast`**",
    "precise": "**the preset `precise`**",
    "precise-without-denoising": "the preset `precise` with `num_denoising=0`",
    "fast_without_encoder": "without the encoder loss",
    "fast_without_class_cost": "`fast` without the class cost",
    "fast_without_average": "without the average",
    "fast_without_denoising": "without denoising",
    "class_cost": "the class cost alone",
    "average": "the average alone",
    "encoder": "encoder loss",
    "denoising": "denoising, 20 queries",
    "denoising_negatives": "denoising, 20 queries, with negatives",
    "groups": "4 query groups",
    "reference": "reference points",
    "encoder_groups": "encoder loss, 4 groups",
    "all_and_reference": "encoder loss, 4 groups, denoising, reference points",
    "all_aids": "encoder loss, 4 groups, denoising",
    "encoder_denoising": "encoder loss, denoising",
    "encoder_denoising_reference": "encoder loss, denoising, reference points",
}
PANOPTIC = Path("examples/panoptic/curves.json")
MASK_NUMBERS = {
    "mask AP": "eval_mask_ap",
    "PQ": "eval_pq",
    "things": "eval_pq_th",
    "stuff": "eval_pq_st",
    "box AP": "eval_ap",
}


def runs(machine: str, name: str) -> dict[str, list[Run]]:
    """Returns the runs of each arm, by seed."""
    found: dict[str, list[Run]] = {}
    for run in sorted(record(machine, name)["runs"], key=lambda run: run["seed"]):
        found.setdefault(run["arm"], []).append(Run(**run))
    return found


def _cut(run: Run, steps: int | None) -> Run:
    """Returns the run as it stood after `steps`."""
    curve = run.curve if steps is None else [point for point in run.curve if point["step"] <= steps]
    return Run(run.arm, run.seed, run.lr, curve)


def _steps(run: Run, threshold: float) -> str:
    reached = run.reached(threshold)
    return f"{reached['step']:.0f}" if reached else f"not in {run.curve[-1]['step']}"


def _listed(steps: Sequence[str]) -> str:
    return f"{steps[0]}, any seed" if len(steps) > 1 and len(set(steps)) == 1 else "; ".join(steps)


def curves(machine: str, name: str, arms: Sequence[str], at: int | None = None, by_rate: bool = False) -> str:
    """Returns the table of a convergence record: AP50 and AP as they stood after `at` steps (the last by default)."""
    found = runs(machine, name)
    rows = []
    for arm in arms:
        groups = [[run] for run in found[arm]] if by_rate else [found[arm]]
        for members in groups:
            ends = [_cut(run, at).curve[-1] for run in members]
            pace = statistics.median(1000 * run.curve[-1]["seconds"] / run.curve[-1]["step"] for run in members)
            row = [f"learning rate {members[0].lr:g}" if by_rate else ARMS[arm]]
            row += [_listed([_steps(run, threshold) for run in members]) for threshold in (0.25, 0.5)]
            row += [f"{pace:.0f}", *("; ".join(f"{end[part]:.3f}" for end in ends) for part in ("AP50", "AP"))]
            rows.append(row)
    after = f"after {at} steps" if at else "at the end"
    text = table(["", "steps to AP50 0.25", "to AP50 0.50", "ms a step", f"AP50 {after}", f"AP {after}"], rows)
    note = record(machine, name).get("note")
    return f"{text}\n\nThe record says: {note}" if note else text


def summary() -> str:
    """Returns what the recipe saves, as means over the seeds."""
    found = runs("avx2", "convergence-digits")
    mean = {
        arm: {unit: statistics.mean(run.reached(0.5)[unit] for run in found[arm]) for unit in ("step", "seconds")}
        for arm in ("detr", "fast")
    }
    steps, seconds = (mean["fast"][unit] / mean["detr"][unit] for unit in ("step", "seconds"))
    last = {arm: [run.curve[-1] for run in found[arm]] for arm in ("detr", "fast")}
    spans = {
        arm: f"AP {min(end['AP'] for end in ends):.3f} to {max(end['AP'] for end in ends):.3f} after {ends[0]['step']}"
        for arm, ends in last.items()
    }
    return (
        f"`fast` comes to AP50 0.50 in {steps:.2f} of the steps and {seconds:.2f} of the seconds of `detr`, and "
        f"stands at {spans['fast']} steps, `detr` at {spans['detr']}."
    )


PHOTOGRAPHED = {"bccd": "blood cells", "cards": "playing cards"}
PHOTOGRAPHS = (
    ("zen5", "transformers-cpu", "transformers"),
    ("h100", "", "transformers-best"),
    ("h100", "", "detr"),
    ("h100", "", "fast_without_class_cost"),
    ("avx2", "cpu", "fast"),
)


def photographs() -> str:
    """Returns AP50 and AP of every seed on photographs, and how far the recipe is above the rest."""
    rows, best, fast = [], dict.fromkeys(PHOTOGRAPHED, 0.0), {}
    for machine, suffix, arm in PHOTOGRAPHS:
        row = [ARMS[arm], MACHINES[machine]]
        for data in PHOTOGRAPHED:
            ends = [run.curve[-1] for run in runs(machine, f"convergence-{data}{suffix and '-' + suffix}")[arm]]
            row += ["; ".join(f"{end[part]:.3f}" for end in ends) for part in ("AP50", "AP")]
            short = sorted({end["step"] for end in ends} - {1000})
            row[-2] += f" (one cut at {short[0]})" if short else ""
            if arm == "fast":
                fast[data] = min(end["AP50"] for end in ends)
            elif not arm.startswith("fast"):
                best[data] = max(best[data], *(end["AP50"] for end in ends))
        rows.append(row)
    heads = [f"{name}: AP50" if part == "AP50" else "AP" for name in PHOTOGRAPHED.values() for part in ("AP50", "AP")]
    ahead = " and ".join(f"{100 * (fast[data] - best[data]):.0f} on {name}" for data, name in PHOTOGRAPHED.items())
    note = f"In points of AP50, the worst seed of `fast` is above the best of any baseline by {ahead}."
    return f"{table(['', 'on', *heads], rows)}\n\n{note}"


def protocol(letter: str, results: Path = RESULTS) -> str:
    """Returns all that the records of a protocol of `convergence` say, machine by machine and data set by data set."""
    parts, arms = [], {}
    for path in sorted(results.glob(f"*/convergence-{letter}-*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        members, arms = [Run(**run) for run in found["runs"]], arms | found["arms"]
        what = found["settings"]["data"]
        parts.append(f"On {PHOTOGRAPHED.get(what, what)}, {MACHINES.get(path.parent.name, path.parent.name)}:")
        parts += [made(members) for made in (curves_table, by_class_and_size, mistakes)]
        parts.append(f"The record says: {found['note']}" if "note" in found else "")
    return "\n\n".join(filter(None, [*parts, described(arms)])) or "There is no record of it yet."


def narrow() -> str:
    """Returns the records of the narrow protocol, of a frozen backbone."""
    return protocol("A")


def beside_peers() -> str:
    """Returns the records of the protocol in which the backbone trains."""
    return protocol("B")


def presets() -> str:
    """Returns what presets cost in inference."""
    found = record("avx2", "presets")
    height, width = found["settings"]["size_hw"]
    held = {name: row["weights_and_peak_memory"] for name, row in found.items() if "operations" in row}
    rows = [
        [
            f"`{name}`",
            f"{values['parameters'] / 1e6:.1f}",
            f"{values['operations'] / 1e9:.0f}",
            f"{values['cpu_time_over_detr']['median']:.2f}" if name != "detr" else "1",
            f"{held[name] / held['detr']:.2f}",
        ]
        for name, values in found.items()
        if name in held
    ]
    heading = f"preset, {found['settings']['backbone']}, one picture of {height}x{width}"
    return table([heading, "million parameters", "GFLOP", "processor time", "weights and peak memory"], rows)


def cost() -> str:
    """Returns what each training aid costs."""
    found = record("avx2", "aids")
    plain = found["plain"]["peak_memory"]
    rows = [
        [
            ARMS[name],
            f"{values['cpu_time_over_plain']['median']:.2f}",
            f"{values['peak_memory'] / plain:.2f}",
            f"{max(values['stripped'].values()):g}",
        ]
        for name, values in found.items()
        if name in ARMS
    ]
    return table(["", "processor time of a step", "peak memory", "change of outputs after stripping"], rows)


def digits() -> str:
    """Returns what the recipe saves on digit scenes, beside the original's and transformers'."""
    return curves("avx2", "convergence-digits", ("transformers", "transformers-best", "detr", "fast"), 2200)


def digits_precise() -> str:
    """Returns how soon the preset finds digits, on the same scenes."""
    return curves("avx2", "convergence-digits-precise", ("precise-without-denoising",))


def parts() -> str:
    """Returns what each part of the recipe brings."""
    without = (f"fast_without_{part}" for part in ("encoder", "class_cost", "average", "denoising"))
    return curves("avx2", "convergence-digits", ("fast", *without, "class_cost", "average", "detr"), 1500)


def options() -> str:
    """Returns what each training aid brings alone."""
    name = "convergence-digits-ablation"
    return curves("avx2", name, tuple(runs("avx2", name)))


def width() -> str:
    """Returns plain DETR beside transformers' at the original's width."""
    return curves("avx2", "convergence-digits-256", ("detr", "transformers"))


def rate() -> str:
    """Returns plain DETR by its learning rate."""
    return curves("xeon16", "convergence-digits-lr", ("detr",), by_rate=True)


def masks() -> str:
    """Returns what every run of `examples/panoptic.py` reached at its last evaluation, given up or not."""
    rows = []
    for name, run in json.loads(PANOPTIC.read_text(encoding="utf-8")).items():
        measured = [point for point in run["curve"] if "eval_ap" in point]
        last = (measured or run["curve"])[-1]
        numbers = [f"{last[key]:.3f}" if key in last else "" for key in MASK_NUMBERS.values()]
        rows.append([name, run["what"], str(last["step"]), *numbers])
    return table(["", "", "steps", *MASK_NUMBERS], rows)


__all__ = [
    "beside_peers",
    "cost",
    "digits",
    "digits_precise",
    "masks",
    "narrow",
    "options",
    "parts",
    "photographs",
    "protocol",
    "rate",
    "summary",
    "width",
]
