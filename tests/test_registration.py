"""The registration waits for the end of any chain of imports; `detr-hf --help` imports nothing heavy."""

import subprocess
import sys

import pytest

FINDS_EVERYTHING = """
import detr_hf
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForObjectDetection
config = AutoConfig.for_model("detr_hf", backbone="resnet18", enc_layers=1, dec_layers=1)
assert type(config) is detr_hf.DETRConfig
assert type(AutoModel.from_config(config)) is detr_hf.DETRModel
assert type(AutoModelForObjectDetection.from_config(config)) is detr_hf.DETRForObjectDetection
import sys
ours = [finder for finder in sys.meta_path if type(finder).__module__.startswith("detr_hf")]
assert all(finder.modules == ("transformers.pipelines",) for finder in ours), "the auto classes' finder stayed"
import tempfile
with tempfile.TemporaryDirectory() as folder:
    config.save_pretrained(folder)
    detr_hf.DETRImageProcessor().save_pretrained(folder)
    assert type(AutoImageProcessor.from_pretrained(folder)) is detr_hf.DETRImageProcessor
    assert type(AutoImageProcessor.from_pretrained(folder, backend="pil")) is detr_hf.DETRImageProcessorPil
import transformers.pipelines
tasks = transformers.pipelines.PIPELINE_REGISTRY.supported_tasks
assert all("detr_hf" in tasks[task]["impl"] for task in ("object-detection", "image-segmentation"))
assert not [finder for finder in sys.meta_path if type(finder).__module__.startswith("detr_hf")], "the finder stayed"
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a process of its own, with warnings of our kind as errors."""
    command = [sys.executable, "-W", "error::UserWarning", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.parametrize(
    "first",
    [
        "import transformers; import detr_hf",
        # seconds each, and much the same roads
        pytest.param("import detr_hf; from transformers import Trainer, pipeline", marks=pytest.mark.slow),
        pytest.param("import detr_hf; from transformers import AutoImageProcessor", marks=pytest.mark.slow),
        pytest.param("import detr_hf; import transformers.models.auto.configuration_auto", marks=pytest.mark.slow),
        pytest.param("from detr_hf.model.modeling_detr import DETRForObjectDetection", marks=pytest.mark.slow),
        pytest.param("from detr_hf import DETRConfig", marks=pytest.mark.slow),
    ],
)
def test_registered_in_any_order_of_imports_without_a_word(first):
    done = run(f"{first}\n{FINDS_EVERYTHING}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and done.stderr == ""


def test_help_imports_nothing_heavy():
    code = (
        "import sys, runpy; sys.argv = ['detr-hf', '--help']\n"
        "try: runpy.run_module('detr_hf', run_name='__main__')\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'torch', 'transformers', 'torchvision', 'timm', 'numpy', 'PIL'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert "predict" in done.stdout


def test_a_transformers_that_fails_to_import_is_reported_as_its_own_failure():
    done = run("import detr_hf, sys; sys.modules['torch'] = None; from transformers import AutoModel; AutoModel()")
    assert done.returncode == 1 and "detr_hf" not in done.stderr.splitlines()[-1]


def test_public_names():
    import detr_hf

    for name in detr_hf.__all__:
        assert getattr(detr_hf, name).__name__ == name
    assert set(detr_hf.__all__) <= set(dir(detr_hf))
    assert len(detr_hf.__all__) > 15
    with pytest.raises(AttributeError, match="DetrConfig"):
        detr_hf.DetrConfig  # noqa: B018
