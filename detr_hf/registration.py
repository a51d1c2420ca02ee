"""Makes transformers' auto classes and pipelines know this package, without importing transformers itself.

Registering needs the model classes, hence torch and transformers: seconds that `detr-hf --help` and a process which
only runs an exported model should not pay. So `import detr_hf` registers at once where transformers' tables are
already loaded, and otherwise leaves a finder on `sys.meta_path` that registers as soon as they are. Nothing can use
the registration earlier.

The finder finds nothing by itself. It hands the modules of transformers and of this package to the other finders and
counts how many of them are being executed in this thread. transformers' modules import each other in circles (its
`modeling_utils` loads `configuration_auto` half-way through), and ours import them, so the moment to register is when
the outermost of them is complete. When there is nothing left to register the finder takes itself away.
"""

import sys
import threading
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

COUNTED = ("transformers.", f"{__package__}.")


def register_auto_classes() -> None:
    """Registers config, models and processors under `model_type="detr_hf"`; doing it again changes nothing."""
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForObjectDetection

    from .configuration_detr import DETRConfig
    from .image_processing_detr import DETRImageProcessor
    from .image_processing_pil_detr import DETRImageProcessorPil
    from .modeling_detr import DETRForObjectDetection, DETRModel

    AutoConfig.register(DETRConfig.model_type, DETRConfig, exist_ok=True)
    AutoModel.register(DETRConfig, DETRModel, exist_ok=True)
    AutoModelForObjectDetection.register(DETRConfig, DETRForObjectDetection, exist_ok=True)
    processors = {"torchvision": DETRImageProcessor, "pil": DETRImageProcessorPil}
    AutoImageProcessor.register(DETRConfig, image_processor_classes=processors, exist_ok=True)


def register_pipelines() -> None:
    """Makes `pipeline("object-detection")` the one that batches any sizes.

    A pipeline that the user put there stays.
    """
    from transformers.pipelines import PIPELINE_REGISTRY

    task = PIPELINE_REGISTRY.supported_tasks["object-detection"]
    if task["impl"] == "transformers.pipelines.object_detection.ObjectDetectionPipeline":
        task["impl"] = f"{__package__}.inference.pipeline.DETRObjectDetectionPipeline"


# What to register, and the modules of transformers of which one must be loaded before anybody can use it.
REGISTRATIONS = {
    register_auto_classes: tuple(
        f"transformers.models.auto.{name}" for name in ("configuration_auto", "modeling_auto", "image_processing_auto")
    ),
    register_pipelines: ("transformers.pipelines",),
}


def register_with_transformers() -> None:
    """Registers now what transformers has loaded, and the rest as soon as it does."""
    if any(isinstance(finder, _TransformersWatcher) for finder in sys.meta_path):
        return
    watcher = _TransformersWatcher()
    watcher.register_loaded()
    if watcher.pending:
        sys.meta_path.insert(0, watcher)


class _TransformersWatcher(MetaPathFinder):
    """Runs each registration once, when its module of transformers is there and no counted module is half-executed."""

    def __init__(self):
        self.pending = dict(REGISTRATIONS)
        self.executing = threading.local()

    def register_loaded(self) -> None:
        """Runs the registrations whose modules are loaded."""
        for register, modules in list(self.pending.items()):
            # taken off the list first: registering imports counted modules, and so comes here again
            if any(name in sys.modules for name in modules) and self.pending.pop(register, None):
                register()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(COUNTED):
            return None
        spec = self._spec_from_other_finders(fullname, path, target)
        if spec is not None and spec.loader is not None:
            self._watch(spec.loader)
        return spec

    def _spec_from_other_finders(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> ModuleSpec | None:
        for finder in tuple(sys.meta_path):
            find_spec = getattr(finder, "find_spec", None)
            if finder is not self and find_spec is not None:
                spec = find_spec(fullname, path, target)
                if spec is not None:
                    return spec
        return None

    def _watch(self, loader: Loader) -> None:
        exec_module = loader.exec_module

        def counted(module: ModuleType) -> None:
            self.executing.depth = getattr(self.executing, "depth", 0) + 1
            try:
                exec_module(module)
            finally:
                self.executing.depth -= 1
            if self.executing.depth == 0:
                self.register_loaded()
                if not self.pending and self in sys.meta_path:
                    sys.meta_path.remove(self)

        loader.exec_module = counted  # a loader belongs to one module
