"""`python -m benchmarks NAME`: this package beside transformers' own DETR, on this machine.

Every verb builds both sides with the same random weights (nothing is downloaded), checks that they agree, times them
in turn, prints the median of the paired ratios with its quartiles, and writes JSON to benchmarks/results/MACHINE.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from .allocator import ran_tuned
from .convergence_command import convergence
from .records import RESULTS

app = typer.Typer(
    name="python -m benchmarks",
    help="Measure this package beside transformers' own DETR: speed, memory, growth, convergence.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16, for both sides.")]
Batch = Annotated[int, typer.Option(min=1, help="Pictures at a time.")]
Height = Annotated[int, typer.Option(min=32, help="Pixels.")]
Width = Annotated[int, typer.Option(min=32, help="Pixels.")]
Compile = Annotated[bool, typer.Option("--compile", help="Compile this package's model (torch.compile).")]
CompilePeer = Annotated[bool, typer.Option("--compile-peer", help="Compile transformers' model as well.")]
Backbone = Annotated[str, typer.Option(help="A ResNet of timm.")]
Runs = Annotated[int, typer.Option(min=2, help="Pairs of timings.")]
# What follows is read from the context, by `_folder`.
Out = Annotated[Path | None, typer.Option(help="Folder of the JSON file; by default that of the machine.")]
Machine = Annotated[
    str | None,
    typer.Option(help="Its folder in benchmarks/results; by default guessed: amx, zen5, avx2, h100..."),
]
Tuned = Annotated[bool, typer.Option("--tuned-allocator", help="Run both sides with glibc set to keep freed memory.")]


@app.command()
def forward(
    context: typer.Context,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    peer_dtype: Annotated[str | None, typer.Option(help="For transformers' model, where not the same.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Pictures at a time; 1, or 2 with --padded.")] = None,
    height: Height = 800,
    width: Width = 1066,
    padded: Annotated[bool, typer.Option("--padded", help="Every second picture fills 3/4 of its canvas.")] = False,
    compile: Compile = False,
    compile_peer: CompilePeer = False,
    backbone: Backbone = "resnet50",
    runs: Runs = 9,
    tuned_allocator: Tuned = False,
    out: Out = None,
    machine: Machine = None,
) -> None:
    """Inference: pixels to logits and boxes, in eval mode without gradients."""
    if ran_tuned(tuned_allocator):
        return
    from .forward import compare_forward

    batch, size_hw = batch or (2 if padded else 1), (height, width)
    record = compare_forward(
        device, dtype, batch, size_hw, padded, compile, compile_peer, runs, peer_dtype, backbone=backbone
    )
    _finish(context, "forward", record)


@app.command("train-step")
def train_step(
    context: typer.Context,
    device: Device = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, or bfloat16 or float16 by autocast.")] = "float32",
    batch: Batch = 2,
    height: Height = 320,
    width: Width = 320,
    compile: Compile = False,
    compile_peer: CompilePeer = False,
    backbone: Backbone = "resnet50",
    runs: Runs = 7,
    tuned_allocator: Tuned = False,
    out: Out = None,
    machine: Machine = None,
) -> None:
    """Training: forward, loss, backward, AdamW; time, peak memory and host syncs of a step."""
    if ran_tuned(tuned_allocator):
        return
    from .train_step import compare_train_steps

    record = compare_train_steps(
        device, dtype, batch, (height, width), compile, compile_peer, backbone=backbone, runs=runs
    )
    _finish(context, "train-step", record)


@app.command()
def criterion(
    context: typer.Context,
    device: Device = "cpu",
    batch: Batch = 16,
    objects: Annotated[int, typer.Option(min=0, help="Boxes in each picture.")] = 20,
    layers: Annotated[int, typer.Option(min=1, help="Decoder layers.")] = 6,
    queries: Annotated[int, typer.Option(min=1)] = 100,
    runs: Runs = 15,
    out: Out = None,
    machine: Machine = None,
) -> None:
    """The loss: matching, forward and backward over all decoder layers."""
    from .criterion import compare_criteria

    _finish(context, "criterion", compare_criteria(device, batch, objects, layers, queries, runs=runs))


@app.command()
def preprocess(
    context: typer.Context,
    batch: Batch = 16,
    height: Height = 480,
    width: Width = 640,
    runs: Runs = 9,
    tuned_allocator: Tuned = False,
    out: Out = None,
    machine: Machine = None,
) -> None:
    """Pictures to tensors, and outputs to detections."""
    if ran_tuned(tuned_allocator):
        return
    from .preprocess import compare_processors

    _finish(context, "preprocess", compare_processors(batch, (height, width), runs=runs))


@app.command()
def drawing(
    context: typer.Context,
    objects: Annotated[int, typer.Option(min=1, help="In the picture.")] = 40,
    height: Height = 480,
    width: Width = 640,
    runs: Runs = 9,
    out: Out = None,
    machine: Machine = None,
) -> None:
    """Boxes, names and masks drawn on a photograph, beside supervision's annotators."""
    from .drawing import compare_drawings

    _finish(context, "drawing", compare_drawings(objects, (height, width), runs=runs))


@app.command()
def start(context: typer.Context, runs: Runs = 5, out: Out = None, machine: Machine = None) -> None:
    """Cold starts: importing, and `detr-hf --help`, each in new processes."""
    from .start import compare_starts

    _finish(context, "start", compare_starts(runs=runs))


@app.command()
def growth(
    context: typer.Context,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    sides: Annotated[str, typer.Option(help="Sides of square pictures, at batch 1.")] = "400,800,1200,1600",
    batches: Annotated[str, typer.Option(help="Batch sizes, at side 400.")] = "1,2,4,8,16",
    queries: Annotated[str, typer.Option(help="Numbers of queries, at side 400.")] = "100,300,900",
    backbone: Backbone = "resnet50",
    runs: Runs = 3,
    out: Out = None,
    machine: Machine = None,
) -> None:
    """Latency and peak memory against side, batch and queries, with a drawing."""
    from .growth import compare_growth

    axes = {
        name: [int(value) for value in text.split(",") if value.strip()]
        for name, text in (("side", sides), ("batch", batches), ("queries", queries))
    }
    record = compare_growth(axes, device, dtype, backbone=backbone, runs=runs, out=_folder(context))
    _finish(context, "growth", record)


@app.command()
def padding(
    context: typer.Context,
    scenes: Annotated[int, typer.Option(min=1, help="Validation scenes of digits.")] = 50,
    out: Out = None,
    machine: Machine = None,
) -> None:
    """How far a larger picture in the batch moves a picture's targets and outputs, on both sides."""
    from .padding import compare_padding

    _finish(context, "padding", compare_padding(scenes))


@app.command()
def gpu(
    context: typer.Context,
    seconds: Annotated[float, typer.Option(help="Start no further section after this time.")] = 220.0,
    out: Out = None,
    machine: Machine = None,
) -> None:
    """The table of a GPU in bfloat16: inference at batch 1, 8 and 32, training, host syncs, matching."""
    from .gpu import gpu_table

    folder = _folder(context, "cuda")
    folder.mkdir(parents=True, exist_ok=True)
    for line in gpu_table(folder / "gpu.json", seconds):
        typer.echo(line)
    typer.echo(f"Written: {folder / 'gpu.json'}")


@app.command()
def exported(
    context: typer.Context,
    part: Annotated[
        str, typer.Option(help="speed, start (new processes), or ap (of the shipped checkpoint).")
    ] = "speed",
    variants: Annotated[
        str, typer.Option(help="FORMAT or FORMAT:DTYPE, several with commas.")
    ] = "onnx,openvino,openvino:bfloat16,openvino:int8",
    batch: Batch = 1,
    height: Height = 800,
    width: Width = 1066,
    static: Annotated[bool, typer.Option("--static", help="Export for just this batch and size.")] = False,
    mask: Annotated[bool, typer.Option("--mask/--no-mask", help="Export with pixel_mask, or without.")] = True,
    scenes: Annotated[int, typer.Option(min=1, help="Validation scenes, for ap.")] = 500,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="A checkpoint of digits in the shipped one's place, for ap; with masks, theirs."),
    ] = None,
    backbone: Backbone = "resnet50",
    runs: Runs = 7,
    tuned_allocator: Tuned = False,
    out: Out = None,
    machine: Machine = None,
) -> None:
    """Exported models: speed and cold start beside transformers' DETR in torch, and the AP that each keeps."""
    if ran_tuned(tuned_allocator):
        return
    from .exported import compare_exported, compare_starts_of_exported, precision_kept

    names = [name.strip() for name in variants.split(",") if name.strip()]
    if part == "speed":
        record = compare_exported(names, batch, (height, width), not static, mask, backbone, runs)
    elif part == "start":
        record = compare_starts_of_exported([name for name in names if ":" not in name], backbone, runs)
    elif part == "ap":
        record = precision_kept(names, scenes, checkpoint=checkpoint)
    else:
        raise typer.BadParameter(f"there is no part {part!r}; choose speed, start or ap", param_hint="--part")
    _finish(context, f"exported-{part}", record)


@app.command()
def masks(
    context: typer.Context,
    part: Annotated[str, typer.Option(help="speed, or faults: cases whose answer is plain, as a table.")] = "speed",
    device: Device = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, or bfloat16 or float16; in training by autocast.")] = "float32",
    height: Height = 800,
    width: Width = 1333,
    queries: Annotated[int, typer.Option(min=2, help="At 100 transformers takes 14 GB.")] = 100,
    kept: Annotated[int, typer.Option(min=1, help="Queries whose score is high enough.")] = 10,
    pictures: Annotated[int, typer.Option(min=1, help="That are read as segments.")] = 100,
    backbone: Backbone = "resnet50",
    runs: Runs = 3,
    out: Out = None,
    machine: Machine = None,
) -> None:
    """Masks: after the decoder, whole forwards, training steps, reading as segments; or what goes wrong in that."""
    if kept >= queries:
        raise typer.BadParameter(f"{kept} of {queries} queries is not fewer", param_hint="--kept")
    if part == "faults":
        from . import mask_faults, tables

        record = mask_faults.compare_faults()
        _finish(context, "masks-faults", record, [tables.faults_table(record["cases"])])
    elif part == "speed":
        from .masks import compare_masks

        config = {"backbone": backbone, "num_queries": queries}
        _finish(context, "masks", compare_masks(device, dtype, (height, width), kept, pictures, runs, **config))
    else:
        raise typer.BadParameter(f"there is no part {part!r}; choose speed or faults", param_hint="--part")


@app.command()
def aids(
    context: typer.Context,
    device: Device = "cpu",
    batch: Batch = 2,
    height: Height = 320,
    width: Width = 320,
    backbone: Backbone = "resnet50",
    runs: Runs = 3,
    out: Out = None,
    machine: Machine = None,
) -> None:
    """What training aids cost: time and memory of a training step with each, beside plain DETR."""
    from .aids import compare_aids

    _finish(context, "aids", compare_aids(device, batch, (height, width), runs, backbone))


@app.command()
def presets(
    context: typer.Context,
    device: Device = "cpu",
    batch: Batch = 1,
    height: Height = 800,
    width: Width = 1066,
    backbone: Backbone = "resnet50",
    runs: Runs = 5,
    out: Out = None,
    machine: Machine = None,
) -> None:
    """What presets of DETRConfig cost in inference: time, memory and operations, beside the paper's DETR."""
    from .presets import compare_presets

    _finish(context, "presets", compare_presets(device, batch, (height, width), runs, backbone))


@app.command()
def commits(
    context: typer.Context,
    base: Annotated[str, typer.Argument(help="A commit, branch or tag of this repository.")],
    parts: Annotated[str, typer.Option(help="Several with commas.")] = "forward,criterion,train-step",
    backbone: Backbone = "resnet50",
    runs: Runs = 9,
    out: Out = None,
    machine: Machine = None,
) -> None:
    """This checkout beside another commit of it; a ratio above 1 says that this checkout is the faster."""
    from .commits import compare_commits

    names = [name.strip() for name in parts.split(",") if name.strip()]
    _finish(context, "commits", compare_commits(base, names, runs, backbone=backbone))


app.command()(convergence)


@app.command()
def tables(
    docs: Annotated[Path, typer.Option(help="Folder of the pages.")] = Path("docs"),
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit code 1 when a page is stale.")] = False,
) -> None:
    """Fill the figures of the documentation in from the records."""
    from .tables import write_tables

    stale = write_tables(docs, check)
    for path in stale:
        typer.echo(f"{path} {'is not what the records say' if check else 'was rendered anew'}")
    raise typer.Exit(1 if check and stale else 0)


def _finish(context: typer.Context, name: str, record: dict[str, Any], lines: Iterable[str] = ()) -> None:
    """Prints the record, or `lines`, and writes it: a file for these options, which the next run replaces."""
    from .measuring import describe, write_record
    from .records import name_of

    for line in lines or describe(record):
        typer.echo(line)
    typer.echo(f"Written: {write_record(name_of(context, name), record, _folder(context))}")


def _folder(context: typer.Context, device: str | None = None) -> Path:
    """Returns --out, or the folder of the machine that is named or guessed."""
    from .measuring import machine_name

    given = context.params
    return given["out"] or RESULTS / (given["machine"] or machine_name(device or given.get("device", "cpu")))


if __name__ == "__main__":
    app()
