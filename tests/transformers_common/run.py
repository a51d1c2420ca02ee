"""Runs transformers' own common tests on this package's models and processors (`make test-common`).

They are part of transformers' source distribution, not of its wheel, and they import a few modules and tables that are
in neither. So this script downloads the source distribution of the installed version, lays empty stand-ins for what is
missing, copies the testers that stand beside it into the tree, and runs pytest there. Arguments are handed on to
pytest.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
TESTERS = {"check_models.py": "test_modeling_detr_hf.py", "check_processors.py": "test_image_processing_detr_hf.py"}

# Modules of transformers' repository that the common tests import and the source distribution leaves out.
STAND_INS = {
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/tiny_model_summary.json": "{}",
    "utils/test_configuration_utils.py": (
        "config_common_kwargs = {'return_dict': False, 'output_hidden_states': True, 'output_attentions': True,\n"
        "    'dtype': 'float16', 'chunk_size_feed_forward': 5, 'architectures': ['BertModel'],\n"
        "    'id2label': {0: 'label'}, 'label2id': {'label': 0}, 'problem_type': 'regression'}\n"
    ),
    "../fetch_hub_objects_for_ci.py": "def url_to_local_path(url):\n    return url\n",
}


def download(folder: Path) -> Path:
    """Returns the unpacked source distribution of the installed transformers."""
    name = f"transformers=={version('transformers')}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", name]
    subprocess.run([*command, "--dest", str(folder)], check=True)
    (archive,) = folder.glob("transformers-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def prepare(root: Path) -> list[Path]:
    """Completes the tree and returns the test files to run."""
    tests = root / "tests"
    for name, content in STAND_INS.items():
        path = tests / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    installed = Path(importlib.util.find_spec("transformers").origin).parent
    (root / "src").mkdir(exist_ok=True)
    if not (root / "src" / "transformers").exists():
        (root / "src" / "transformers").symlink_to(installed)
    target = tests / "models" / "detr_hf"
    target.mkdir(parents=True, exist_ok=True)
    for folder in (
        tests,
        *(tests / name for name in ("exporters", "generation", "utils", "models", "models/detr_hf")),
    ):
        (folder / "__init__.py").touch()
    for source, name in TESTERS.items():
        shutil.copyfile(HERE / source, target / name)
    return [target / name for name in TESTERS.values()]


def main() -> int:
    """Downloads, prepares and runs; returns pytest's exit code."""
    with tempfile.TemporaryDirectory() as folder:
        root = download(Path(folder))
        files = prepare(root)
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": f"{HERE.parents[1]}{os.pathsep}{root}"}
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--disable-warnings",
            *map(str, files),
        ]
        return subprocess.run([*command, *sys.argv[1:]], cwd=root, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
