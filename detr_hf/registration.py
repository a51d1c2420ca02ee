"""Makes transformers' auto classes and pipelines know this package, without importing transformers itself.

Registering needs the model classes, hence torch and transformers: seconds that `detr-hf --help` and a process which
only runs an exported model should not pay. So `import detr_hf` registers at once where transformers' tables are
already loaded, and otherwise leaves a finder on `sys.meta_path` that registers as soon as they are. Nothing can use
the registration earlier.

The finder finds nothing by itself. It hands the modules of transformers and of this package to the other finders and
counts how many of them are being executed in this thread. transformers' modules import each other in circles (its
`modeling_utils` loads `configuration_auto` half-way through), and ours import them, so the moment to register is when
the outermost of them is complete. Then the finder takes itself away. The pipelines are a part of transformers that
most processes never load: a finder of their own waits for that one module.
"""

import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

AUTO_CLASSES = tuple(
    f"transformers.models.auto.{name}" for name in ("configuration_auto", "modeling_auto", "image_processing_auto")
)
PIPELINES = ("transformers.pipelines",)
COUNTED = ("transformers.", f"{__package__}.")


def register_auto_classes() -> None:
    """Registers config, models and processors under `model_type="detr_hf"`; doing it again changes nothing."""
    import transformers
    from transformers.models.auto import modeling_auto

    from .checkpoints.finding import located
    from .checkpoints.loading import own_state_dict, prepare_loading
    from .checkpoints.processors import PROCESSOR_FILES
    from .checkpoints.transformers_model import to_transformers
    from .hub.manifest import verified_arguments
    from .hub.pushing import push
    from .model import modeling_detr
    from .model.configuration_detr import DETRConfig
    from .model.heads_detr import MODEL_CLASSES
    from .model.pretrained_detr import DETRPreTrainedModel
    from .processing.image_processing_base_detr import DETRImageProcessingMixin
    from .processing.image_processing_detr import DETRImageProcessor, DETRImageProcessorPil
    from .whole_files import whole_folder

    # what the package does for its models, and travelled code does without
    DETRPreTrainedModel.workshop = SimpleNamespace(
        prepare_loading=prepare_loading,
        own_state_dict=own_state_dict,
        verified_arguments=verified_arguments,
        push=push,
        to_transformers=to_transformers,
        whole_folder=whole_folder,
    )
    # found as models are: by the shipped one's name, and refused at once where no Hub is
    kind: Any
    for kind, files in ((DETRConfig, ("config.json",)), (DETRImageProcessingMixin, PROCESSOR_FILES)):
        kind.from_pretrained = _from_located(kind, partial(located, files))
    transformers.AutoConfig.register(DETRConfig.model_type, DETRConfig, exist_ok=True)
    for model in MODEL_CLASSES:
        auto_class = getattr(transformers, model.auto_class)
        auto_class.register(DETRConfig, getattr(modeling_detr, model.name), exist_ok=True)
        # the pipelines ask this table whether a class is supported, and log an error for one registered from outside
        getattr(modeling_auto, model.names).setdefault(DETRConfig.model_type, model.name)
    processors = {"torchvision": DETRImageProcessor, "pil": DETRImageProcessorPil}
    transformers.AutoImageProcessor.register(DETRConfig, image_processor_classes=processors, exist_ok=True)


def _from_located(kind: Any, locate: Callable[[Any, dict[str, Any]], Any]) -> Any:
    """Returns the `from_pretrained` of a class that loads as transformers does, from where the package finds it."""

    def from_pretrained(cls: Any, pretrained_model_name_or_path: Any, **arguments: Any) -> Any:
        """Returns what a checkpoint has; arguments are transformers'."""
        return super(kind, cls).from_pretrained(locate(pretrained_model_name_or_path, arguments), **arguments)

    return classmethod(from_pretrained)


def register_pipelines() -> None:
    """Makes `pipeline("object-detection")` and `pipeline("image-segmentation")` those that batch any sizes.

    A pipeline that the user put there stays.
    """
    from transformers.pipelines import PIPELINE_REGISTRY

    for task, kind in (("object-detection", "ObjectDetection"), ("image-segmentation", "ImageSegmentation")):
        entry = PIPELINE_REGISTRY.supported_tasks[task]
        if entry["impl"] == f"transformers.pipelines.{task.replace('-', '_')}.{kind}Pipeline":
            entry["impl"] = f"{__package__}.inference.pipelines.DETR{kind}Pipeline"


def register_with_transformers() -> None:
    """Registers now what transformers has loaded, and the rest as soon as it does."""
    for register, modules, counted in (
        (register_auto_classes, AUTO_CLASSES, COUNTED),
        (register_pipelines, PIPELINES, PIPELINES),
    ):
        if any(isinstance(finder, _Watcher) and finder.register is register for finder in sys.meta_path):
            continue
        watcher = _Watcher(register, modules, counted)
        sys.meta_path.insert(0, watcher)
        watcher.register_if_loaded()


class _Watcher(MetaPathFinder):
    """Runs `register` once, when one of `modules` is there and no module of `counted` is half-executed."""

    def __init__(self, register: Callable[[], None], modules: tuple[str, ...], counted: tuple[str, ...]):
        self.register = register
        self.modules = modules
        self.counted = counted
        self.executing = threading.local()

    def register_if_loaded(self) -> None:
        """Registers if the tables are there, and takes this finder away."""
        # away first: registering imports counted modules, and so would come here again
        if self in sys.meta_path and any(name in sys.modules for name in self.modules):
            sys.meta_path.remove(self)
            self.register()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(self.counted):
            return None
        spec = self._spec_from_later_finders(fullname, path, target)
        if spec is not None and spec.loader is not None:
            self._watch(spec.loader)
        return spec

    def _spec_from_later_finders(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> ModuleSpec | None:
        finders = iter(tuple(sys.meta_path))
        if self not in finders:  # and if it is, the iterator now stands behind it
            return None
        for finder in finders:
            find_spec = getattr(finder, "find_spec", None)
            spec = find_spec(fullname, path, target) if find_spec is not None else None
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
                self.register_if_loaded()

        loader.exec_module = counted  # type: ignore[method-assign]  # a loader belongs to one module
