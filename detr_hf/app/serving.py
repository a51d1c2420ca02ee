"""Starts the page: models are looked for, the port is tried and the first model loaded before anybody can ask."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from .answering import Answers
from .listening import HOST, PORT, ended_by_signals, free_port, sent_files
from .models import Models
from .page import build_page
from .reading import MB, Limits

logger = logging.getLogger(__name__)


def serve(
    models: Sequence[str] = (),
    *,
    host: str = HOST,
    port: int = PORT,
    limits: Limits | None = None,
    device: str | None = None,
    on_ready: Callable[[str], Any] = logger.warning,
) -> None:
    """Serves the page until it is interrupted; `on_ready` is called with its address.

    Args:
        models: folders, files or Hub ids, as `Detector.from_pretrained` takes them; by default the shipped one. The
            first is loaded before the page starts, the others when a visitor chooses them.
        host: the address to listen on; "0.0.0.0" is for whoever reaches this machine.
        port: 0 is any that is free.
        limits: of visitors' pictures.
        device: as in `Detector.from_pretrained`.

    Raises:
        OSError: the port is taken, or a model is nowhere.
    """
    limits = limits or Limits()
    port = free_port(host, port)
    offered = Models(models, device)
    offered.detector(offered.names[0])
    with ended_by_signals(), sent_files():
        page = build_page(Answers(offered, limits))
        page.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            enable_monitoring=False,
            run_history=False,
            max_file_size=int(limits.max_mb * MB),
            footer_links=["api", "settings"],
            theme=gr.themes.Default(),
            css="#detr-stage .pending { opacity: 1 !important; }",  # pictures can be given while one is looked at
        )
        try:
            on_ready(page.local_url)
            while page.is_running:
                time.sleep(0.2)
        finally:
            page.close(verbose=False)
