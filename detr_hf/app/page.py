"""The page in gradio: one component of our own HTML, a model picker, and an endpoint for programs.

Whatever answers at once (threshold, classes, table) happens in the browser, in `page.js`. A picture reaches Python as
a path and its owner's name, so that no other reader opens it before ours does; the file is removed as soon as it is
read.
"""

from contextlib import suppress
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import FileData, ImageData

from ..checkpoints.embedded import EMBEDDED_MODEL, demo_scene_path
from .answering import LOWEST, Answers
from .reading import TOO_MANY_BYTES

HERE = Path(__file__).parent
MOST_WAITING = 200
DONE = "() => { document.dispatchEvent(new Event('detr-done')) }"
# Seconds: how often files are removed that a program has sent, and how old they are then.
SWEEP, OLD = 300, 600


def _refuse_address(given: Any) -> None:
    if str(given).startswith(("http://", "https://")):
        raise gr.Error("Send the picture itself: this page fetches nothing from elsewhere.", print_exception=False)


def _sent(payload: FileData | ImageData | None) -> tuple[Path, str] | None:
    """Returns what was sent as (path, the sender's name for it)."""
    return None if payload is None or not payload.path else (Path(payload.path), payload.orig_name or "")


def _take_files(component: gr.HTML | gr.Image, data_model: type) -> None:
    """Lets a component take what is sent as `_sent` gives it, in place of what gradio would read from it.

    Not as a class of our own: gradio writes a file beside the source of each.
    """

    async def stays(url_or_file_path: Any) -> str | None:
        _refuse_address(url_or_file_path)
        return str(url_or_file_path)  # where it was sent to

    component.data_model = data_model
    component.preprocess = _sent
    component.async_move_resource_to_block_cache = stays


class Handlers:
    """What gradio calls for the page's events."""

    def __init__(self, answers: Answers):
        self.answers, self._serial = answers, 0

    def look(self, sent: Any, model: str, event: gr.EventData, request: gr.Request) -> dict[str, Any]:
        """Returns the answer to a picture that the browser has sent, and removes the file."""
        if sent is None:
            return self._marked({"kind": "picture", "name": "", "error": "There is no picture: give one."}, event)
        path, name = sent
        try:
            return self._marked(self.answers.look(request.session_hash, path, name, model), event)
        finally:
            with suppress(OSError):
                path.unlink()
                path.parent.rmdir()

    def example(self, model: str, event: gr.EventData, request: gr.Request) -> dict[str, Any]:
        """Returns the answer to the picture that ships with the package."""
        scene = demo_scene_path()
        return self._marked(self.answers.look(request.session_hash, scene, scene.name, model), event)

    def again(self, model: str, event: gr.EventData, request: gr.Request) -> dict[str, Any]:
        """Returns the answer of another model to the picture that is shown."""
        return self._marked(self.answers.look_again(request.session_hash, event._data["number"], model), event)

    def attend(self, event: gr.EventData, request: gr.Request) -> dict[str, Any]:
        """Returns the attention for an object, or from a point."""
        asked = event._data
        if "index" in asked:
            answer = self.answers.object_attention(request.session_hash, asked["number"], asked["index"])
        else:
            answer = self.answers.point_attention(request.session_hash, asked["number"], asked["x"], asked["y"])
        return self._marked(answer, event)

    def save(self, event: gr.EventData, request: gr.Request) -> dict[str, Any]:
        """Returns a file for the browser to keep."""
        asked = event._data
        answer = self.answers.download(
            request.session_hash, asked["number"], asked["kind"], asked["threshold"], asked["names"]
        )
        return self._marked(answer, event)

    def _marked(self, answer: dict[str, Any], event: gr.EventData) -> dict[str, Any]:
        """Returns the answer with the browser's ticket, and a number that makes it differ from the last one."""
        self._serial += 1
        return {**answer, "ticket": event._data.get("ticket"), "serial": self._serial}

    def leave(self, request: gr.Request) -> None:
        """Forgets the visitor who closes the page."""
        self.answers.shelf.leave(request.session_hash)

    def detect(self, picture: Any, model: str, threshold: float) -> dict[str, Any]:
        """Returns what the model finds in a picture: width, height and objects with name, label, score and box."""
        if picture is None:
            raise gr.Error("There is no picture: send one.", print_exception=False)
        if not 0 <= threshold <= 1:
            raise gr.Error(f"The threshold is a score between 0 and 1, got {threshold}.", print_exception=False)
        try:
            return self.answers.detect(*picture, model, threshold)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error


def build_page(answers: Answers) -> gr.Blocks:
    """Returns the page; `serving.serve` starts it."""
    names, limits = answers.models.names, answers.limits
    handlers = Handlers(answers)
    with gr.Blocks(title="detr_hf", analytics_enabled=False, delete_cache=(SWEEP, OLD)) as page:
        about = " ".join(escape(answers.models.about(name)) for name in names)
        gr.HTML(f"<h1>What a DETR sees</h1><p>{about}</p>")
        model = gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1)
        stage = gr.HTML(
            html_template=(HERE / "page.html").read_text(encoding="utf-8"),
            css_template=(HERE / "page.css").read_text(encoding="utf-8"),
            js_on_load=(HERE / "page.js").read_text(encoding="utf-8"),
            apply_default_css=False,
            elem_id="detr-stage",
            lowest=LOWEST,
            max_bytes=limits.max_mb * 1_000_000,
            too_many_bytes=TOO_MANY_BYTES,
            max_mb=f"{limits.max_mb:g}",
            example=EMBEDDED_MODEL in names,
            kept=answers.shelf.pictures,
        )
        _take_files(stage, FileData)
        # One forward pass at a time, whoever asks: the rest waits, and sees its place.
        one = {"concurrency_limit": 1, "concurrency_id": "model"}
        private = {"api_visibility": "private", "trigger_mode": "multiple", "outputs": stage}
        for event in (
            stage.picture(handlers.look, inputs=[stage, model], show_progress="minimal", **one, **private),
            stage.example(handlers.example, inputs=model, show_progress="minimal", **one, **private),
            stage.again(handlers.again, inputs=model, show_progress="minimal", **one, **private),
        ):
            event.then(None, js=DONE)
        stage.attend(handlers.attend, show_progress="hidden", concurrency_limit=4, **private)
        stage.save(handlers.save, show_progress="hidden", concurrency_limit=4, **private)
        model.input(None, js="() => { document.dispatchEvent(new Event('detr-model')) }")
        page.unload(handlers.leave)
        with gr.Row(visible=False):
            picture = gr.Image(label="picture", type="filepath")
            _take_files(picture, ImageData)
            gr.Button().click(
                handlers.detect,
                inputs=[
                    picture,
                    gr.Dropdown(names, value=names[0], label="model"),
                    gr.Slider(0, 1, 0.7, label="threshold"),
                ],
                outputs=gr.JSON(label="detections"),
                api_name="detect",
                api_description=handlers.detect.__doc__,
                **one,
            )
    page.queue(max_size=MOST_WAITING)
    return page
