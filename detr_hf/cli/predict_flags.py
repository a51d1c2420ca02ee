"""The arguments and options of `detr-hf predict`, with what its help says of each."""

from pathlib import Path
from typing import Annotated

import typer

from .flags import IMAGE_SIZE

Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[MODEL] PATH...",
        show_default=False,
        help="Pictures: files, folders (searched with all folders below), patterns such as 'photos/*.jpg', URLs. "
        "Before them, optionally, a model: a checkpoint folder, a .pth file or a Hub id. Without one, the shipped "
        "digit detector, detr-digits, is used. With --out also tar files (WebDataset), Parquet files and videos.",
    ),
]
Model = Annotated[str | None, typer.Option("--model", "-m", help="The model; then all arguments are pictures.")]
Threshold = Annotated[float, typer.Option("--threshold", "-t", min=0, max=1, help="Keep higher scores.")]
Task = Annotated[
    str | None,
    typer.Option(
        help="detection (boxes), instance (masks too), panoptic (a map of segments too), or semantic (a map of "
        "classes); by default what the model has.",
    ),
]
Save = Annotated[
    Path | None,
    typer.Option(
        help="Draw each picture, and each film as an MP4, into this folder; one picture or film also into a file, by "
        "its ending: x.png, x.svg, x.html, x.mp4."
    ),
]
Attention = Annotated[
    bool,
    typer.Option(
        "--attention", help="With --save DIR: also draw what the model attended to for each object, NAME_attention."
    ),
]
Font = Annotated[
    Path | None, typer.Option(help="With --save: the file of the font for names, if not one that is found.")
]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write all detections to this file.")]
ImageSize = Annotated[int | None, typer.Option(min=1, help=IMAGE_SIZE)]
Limit = Annotated[int | None, typer.Option(min=1, help="Look at so many pictures at most, the first ones.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Pictures of equal size that run together.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; by default a GPU if there is one.")]
Dtype = Annotated[str | None, typer.Option(help="float32 (default), bfloat16 or float16.")]
Out = Annotated[
    Path | None, typer.Option(help="Write results to this folder, part by part; the same command goes on.")
]
Format = Annotated[
    str,
    typer.Option(
        help="With --out: jsonl, parquet, coco; coco-panoptic (PNGs of ids and panoptic.json), png (of labels: "
        "the task semantic)."
    ),
]
ShardSize = Annotated[
    int | None,
    typer.Option(min=1, help="With --out: pictures in a file of results; by default a 64th of them, 16 to 1000."),
]
Every = Annotated[int, typer.Option(min=1, help="With --out: take one in this many frames of a video.")]
Dataset = Annotated[
    str | None, typer.Option(help="With --out: a data set instead of PATHs; a Hub id (streamed), a folder, or digits.")
]
Config = Annotated[str | None, typer.Option(help="With --dataset: its configuration.")]
Split = Annotated[str | None, typer.Option(help="With --dataset: its split.")]
ImageColumn = Annotated[
    str | None, typer.Option(help="With --out: the column of the pictures; in tar files their ending.")
]
