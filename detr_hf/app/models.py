"""The models that visitors choose from: those named at the start, each loaded when it is first asked for."""

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..checkpoints.embedded import ABOUT, EMBEDDED_MODEL, shipped
from ..checkpoints.finding import local_path, refuse_no_checkpoint
from ..export.artefact import find_artefact

if TYPE_CHECKING:
    from ..inference.detector import Detector


class Models:
    """Detectors by the names that the page shows: a Hub id as it is, of a path its last part.

    Raises:
        OSError: one of the models is nowhere, which is said before any is loaded.
    """

    def __init__(self, models: Sequence[str] = (), device: str | None = None):
        self.device = device
        self._source: dict[str, str] = {}
        self._loaded: dict[str, Detector] = {}
        self._lock = threading.Lock()
        for model in dict.fromkeys(models or (EMBEDDED_MODEL,)):
            self._source[self._shown(model)] = model
            if find_artefact(shipped(model)) is None:
                refuse_no_checkpoint(model)

    def _shown(self, model: str) -> str:
        """Returns what the page calls a model, where nothing else is called so."""
        path = local_path(model)
        name = model if path is None or model == EMBEDDED_MODEL else path.resolve().name
        count = sum(taken == name or taken.startswith(f"{name} (") for taken in self._source)
        return f"{name} ({count + 1})" if count else name

    @property
    def names(self) -> list[str]:
        """The models, in the order in which they were named."""
        return list(self._source)

    @property
    def known_as(self) -> dict[str, str]:
        """What errors call a model -> what the page calls it."""
        return {source: name for name, source in self._source.items() if source != name}

    def about(self, name: str) -> str:
        """Returns a sentence on what a model finds, or ""."""
        return ABOUT if self._source.get(name) == EMBEDDED_MODEL else ""

    def detector(self, name: str) -> "Detector":
        """Returns the detector of a model, loaded if it is not yet.

        Of a model with masks it is asked for those of single objects: a threshold can pick them without the model.

        Raises:
            ValueError: there is no such name.
            OSError: its files are not there any more, or on a Hub that is not reached.
        """
        with self._lock:
            if name not in self._source:
                raise ValueError(f"There is no model {name!r} here; there are {', '.join(self._source)}.")
            if name not in self._loaded:
                from ..inference.detector import Detector

                detector = Detector.from_pretrained(self._source[name], device=self.device)
                if detector.task != "detection":
                    detector.backend.task = "instance"
                self._loaded[name] = detector
            return self._loaded[name]
