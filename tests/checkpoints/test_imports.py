"""Importing the package costs nothing until a name is used, and reading needs no model class of transformers."""

import subprocess
import sys

PROGRAM = """
import sys
before = set(sys.modules)
import detr_hf.checkpoints
heavy = {"torch", "transformers", "timm", "safetensors", "huggingface_hub"} & (set(sys.modules) - before)
assert not heavy, heavy
import detr_hf.checkpoints.conversion, detr_hf.checkpoints.loading, detr_hf.checkpoints.reading
assert "transformers.models.detr.modeling_detr" not in sys.modules
assert "transformers.models.table_transformer.modeling_table_transformer" not in sys.modules
"""


def test_imports_are_lazy():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
