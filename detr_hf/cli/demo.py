"""`detr-hf demo`: the shipped model looks at the shipped scene."""

from pathlib import Path
from typing import Annotated

import typer

from ..whole_files import refuse_overwriting


def demo(
    out: Annotated[Path, typer.Option(help="Where to write the picture with boxes: .png, .jpg, .svg, .html.")] = Path(
        "demo_boxes.png"
    ),
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Show objects that score more than this.")] = 0.7,
) -> None:
    """Detect objects in a picture that ships with the package, offline, and draw them."""
    from ..checkpoints.embedded import EMBEDDED_MODEL, demo_scene_path, embedded_model_path
    from ..inference.detector import Detector
    from ..visualize.saving import is_marked, refuse_ending
    from .console import quiet_loading

    refuse_overwriting({"--out": out}, [demo_scene_path()], is_marked)
    refuse_ending(out)
    quiet_loading()
    scene = demo_scene_path()
    detections = Detector.from_pretrained(embedded_model_path())(scene, threshold=threshold)
    width, height = detections.size_hw[::-1]
    typer.echo(f"{EMBEDDED_MODEL}, which ships with detr_hf, looked at {scene.name} ({width}x{height} px):\n")
    typer.echo(f"  {'object':<8} {'score':>5}   {'x0':>6} {'y0':>6} {'x1':>6} {'y1':>6}")
    for name, _, score, box in detections:
        typer.echo(f"  {name:<8} {score:>5.2f}   " + " ".join(f"{edge:>6.1f}" for edge in box))
    typer.echo(f"\nThe picture with {len(detections)} boxes is {detections.save(out).resolve()}")
