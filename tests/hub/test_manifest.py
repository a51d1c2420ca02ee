"""The manifest finds every kind of damage in a folder, and says which file it is in."""

import shutil
import subprocess
import sys

import pytest

from detr_hf import DETRForObjectDetection
from detr_hf.checkpoints.embedded import embedded_model_path
from detr_hf.errors import IntegrityError
from detr_hf.hub import verify, write_manifest

from .actions import thin_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    thin_model().save_pretrained(folder)
    write_manifest(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def test_what_is_whole_verifies_and_loads(folder):
    assert set(verify(folder).files) == {"config.json", "model.safetensors"}
    assert DETRForObjectDetection.from_pretrained(folder, verify=True) is not None


def test_every_flipped_bit_is_found_and_its_file_named(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for position in range(0, len(whole), len(whole) // 50):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        with pytest.raises(IntegrityError, match=r"model\.safetensors differs"):
            verify(folder)
    with pytest.raises(IntegrityError, match=r"model\.safetensors differs"):
        DETRForObjectDetection.from_pretrained(folder, verify=True)


def test_all_faults_are_named_at_once(folder):
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").unlink()
    with pytest.raises(IntegrityError, match=r"config\.json differs.*model\.safetensors is missing"):
        verify(folder)


def test_an_unlisted_weight_file_is_refused(folder):
    (folder / "SHA256SUMS").write_text(f"{'0' * 64}  notes.txt\n")
    (folder / "notes.txt").write_text("")
    with pytest.raises(IntegrityError, match=r"notes\.txt differs.*model\.safetensors is not listed"):
        verify(folder)


def test_other_files_may_be_added(folder):
    (folder / "README.md").write_text("mine")
    (folder / "notes.txt").write_text("mine")
    assert len(verify(folder).files) == 2


@pytest.mark.parametrize("content", [b"\xff\xfe", b"abc  model.safetensors\n", b"\0" * 200])
def test_a_damaged_manifest_is_named(folder, content):
    (folder / "SHA256SUMS").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"SHA256SUMS.* damaged"):
        verify(folder)


def test_without_a_manifest_it_says_how_to_get_one(folder):
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(IntegrityError, match="detr-hf verify --write"):
        DETRForObjectDetection.from_pretrained(folder, verify=True)
    assert DETRForObjectDetection.from_pretrained(folder) is not None


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum here")
def test_sha256sum_agrees(folder):
    check = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    assert subprocess.run(check, cwd=folder, capture_output=True, check=False).returncode == 0
    (folder / "config.json").write_text("{}")
    assert subprocess.run(check, cwd=folder, capture_output=True, check=False).returncode == 1


def test_the_shipped_checkpoint_is_whole():
    """After a change of it: detr-hf verify --write detr_hf/assets/detr-digits"""
    assert "model.safetensors" in verify(embedded_model_path()).files


@pytest.mark.slow
def test_verifying_needs_the_package_and_says_so(folder):
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); sys.modules['detr_hf'] = None\n"
        "from importlib import import_module\n"
        "cls = import_module('code_that_travelled.modeling_detr').DETRForObjectDetection\n"
        "try: cls.from_pretrained(sys.argv[1], verify=True)\n"
        "except ImportError as error: print(error)"
    )
    package = folder / "code" / "code_that_travelled"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    from detr_hf.hub.staging import add_code

    for name in ("config.json", "preprocessor_config.json"):
        (package / name).write_text("{}")
    add_code(package)
    command = [sys.executable, "-c", code, str(folder), str(folder / "code")]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "verify=True needs the package" in shown.stdout, shown.stderr
