"""Damaged, missing, hostile and foreign files end in a sentence that names the file, and no code in them runs."""

import json
import os
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from detr_hf import DETRForObjectDetection
from detr_hf.checkpoints.loading import prepare_loading
from detr_hf.checkpoints.reading import is_foreign, read_checkpoint
from tests.checkpoints.foreign import assert_same_tensors, narrow_model, original_state_dict, save_original


@pytest.fixture
def folder(tmp_path):
    """Our own checkpoint, small enough to be damaged."""
    narrow_model(enc_layers=1, dec_layers=1).save_pretrained(tmp_path / "own")
    return tmp_path / "own"


def test_cut_in_half(folder):
    path = folder / "model.safetensors"
    whole = path.stat().st_size
    path.write_bytes(path.read_bytes()[: whole // 2])
    with pytest.raises(
        ValueError, match=rf"model\.safetensors is damaged: it has {whole // 2} bytes.* promises {whole}"
    ):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it has 0 bytes"),
        (b"abc", "it has 3 bytes"),
        (struct.pack("<Q", 2**60) + b"{}", f"a header of {2**60} bytes"),
        (struct.pack("<Q", 4) + b"oops" + bytes(20), "header cannot be read"),
    ],
    ids=["empty", "three bytes", "huge header", "no json"],
)
def test_damaged_headers(folder, content, said):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=said) as error:
        read_checkpoint(folder)
    assert "model.safetensors" in str(error.value)


def test_own_checkpoints_are_checked_before_transformers_loads_them(folder):
    arguments = {}
    assert prepare_loading(folder, None, arguments) == (folder, None, None)
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(ValueError, match=rf"model\.safetensors is damaged.*promises {len(whole)}"):
        prepare_loading(folder, None, arguments)
    path.write_bytes(whole + b"more")
    with pytest.raises(ValueError, match=rf"has {len(whole) + 4} bytes.*promises {len(whole)}"):
        prepare_loading(folder, None, arguments)
    path.unlink()
    index = {"weight_map": {"class_embed.bias": "../evil.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="outside the checkpoint's own folder"):
        prepare_loading(folder, None, arguments)
    with pytest.raises(FileNotFoundError, match=r"expected model\.fp16\.safetensors"):
        prepare_loading(folder, None, {"variant": "fp16"})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(folder, value):
    tensors = load_file(folder / "model.safetensors")
    tensors["class_embed.bias"][1] = value
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 tensors .* NaN or infinity.*class_embed\.bias"):
        read_checkpoint(folder)


def test_weights_of_something_else(folder):
    save_file({"encoder.weight": torch.zeros(2), "decoder.weight": torch.zeros(2)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"0 of the 2 tensors in .*model\.safetensors have a name that a DETR has"):
        read_checkpoint(folder)
    torch.save({"encoder.weight": torch.zeros(2)}, folder.parent / "other.pth")
    with pytest.raises(ValueError, match=r"0 of the 1 tensors in .*other\.pth"):
        read_checkpoint(folder.parent / "other.pth")


def test_a_renamed_hub_checkpoint_matches_nothing(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "detr"}))  # names are ours, not detr's
    with pytest.raises(ValueError, match="0 of the"):
        read_checkpoint(folder)


def test_config_missing(folder):
    (folder / "config.json").unlink()
    for read in (read_checkpoint, is_foreign):
        with pytest.raises(ValueError, match=r"has no config\.json"):
            read(folder)


def test_config_is_not_json(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        read_checkpoint(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="should hold a JSON object, but holds a list"):
        read_checkpoint(folder)


@pytest.mark.parametrize("model_type", ["resnet", "conditional_detr", None])
def test_not_a_detr(folder, model_type):
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    for read in (read_checkpoint, is_foreign):
        with pytest.raises(ValueError, match=f"type {model_type!r}"):
            read(folder)


def test_weights_missing(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no weights"):
        read_checkpoint(folder)


@pytest.mark.parametrize("path", ["./nope/dir", "/nope/dir", "a/b/c", "nope.pth", "~/nope/x", "..\\nope"])
def test_a_path_of_nothing(path):
    for read in (read_checkpoint, is_foreign):
        with pytest.raises(FileNotFoundError, match="no such"):
            read(path)


def test_a_web_address():
    with pytest.raises(FileNotFoundError, match="download"):
        read_checkpoint("https://example.org/detr.pth")


@pytest.mark.parametrize("name", ["nobody/no-such-detr-anywhere", "no-such-detr-anywhere"])
def test_a_hub_id_that_cannot_be_reached(name, tmp_path):
    with pytest.raises(OSError, match="was not asked"):
        read_checkpoint(name, cache_dir=tmp_path, local_files_only=True)


def test_a_name_that_is_no_hub_id():
    with pytest.raises(FileNotFoundError, match="cannot be the id"):
        read_checkpoint("no such folder")


def test_a_cached_hub_repository(folder, tmp_path):
    """The layout of the Hugging Face cache, where files are links to blobs outside the snapshot."""
    repository = tmp_path / "cache" / "models--someone--detr"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    for file in folder.iterdir():
        blob = repository / "blobs" / file.name.replace(".", "-")
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    checkpoint = read_checkpoint("someone/detr", cache_dir=tmp_path / "cache", local_files_only=True)
    assert_same_tensors(checkpoint.state_dict, load_file(folder / "model.safetensors"))
    assert not is_foreign("someone/detr", cache_dir=tmp_path / "cache", local_files_only=True)


@pytest.mark.parametrize(
    "shard",
    [
        "../evil.safetensors",
        "/tmp/evil.safetensors",
        "..\\evil.safetensors",
        "C:\\evil.safetensors",
        "a/../../evil.bin",
    ],
)
def test_shards_outside_the_folder(folder, shard):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    path.rename(folder.parent / "evil.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="outside the checkpoint's own folder"):
        read_checkpoint(folder)


def test_a_missing_shard(folder):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"class_embed.bias": "gone-1-of-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match="gone-1-of-2"):
        read_checkpoint(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="no weight_map"):
        read_checkpoint(folder)


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("protocol", ["zip", "legacy"])
def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path, protocol):
    tensors = original_state_dict(narrow_model(enc_layers=1, dec_layers=1))
    target = tmp_path / "was_run"
    content = {"model": tensors, "args": Bomb(target)}
    torch.save(content, tmp_path / "bomb.pth", _use_new_zipfile_serialization=protocol == "zip")
    with pytest.raises(ValueError, match=r"bomb\.pth .* was refused: it asks for (posix|nt)\.mkdir.*could run code"):
        read_checkpoint(tmp_path / "bomb.pth")
    with pytest.raises(ValueError, match="was refused"):
        DETRForObjectDetection.from_pretrained(tmp_path / "bomb.pth")
    assert not target.exists()
    torch.load(tmp_path / "bomb.pth", weights_only=False)
    assert target.exists()  # the bomb was a real one


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.999])
def test_a_pickle_cut_short(tmp_path, kept):
    path = save_original(narrow_model(enc_layers=1, dec_layers=1), tmp_path / "detr.pth")
    content = path.read_bytes()
    size = int(len(content) * kept)
    path.write_bytes(content[:size])
    with pytest.raises(ValueError, match=rf"detr\.pth .*{size} bytes"):
        read_checkpoint(path)


def test_a_web_page_saved_as_pth(tmp_path):
    (tmp_path / "detr.pth").write_text("<!DOCTYPE html><html>not found</html>")
    with pytest.raises(ValueError, match=r"detr\.pth .*torch\.save"):
        read_checkpoint(tmp_path / "detr.pth")


@pytest.mark.parametrize("content", [[torch.zeros(2)], {"epoch": 3}, {"model": {"epoch": 3}}, torch.zeros(2)])
def test_a_pth_without_weights(tmp_path, content):
    torch.save(content, tmp_path / "detr.pth")
    with pytest.raises(ValueError, match="holds no weights"):
        read_checkpoint(tmp_path / "detr.pth")


def test_a_bin_that_is_no_mapping(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"model": {"a": torch.zeros(1)}}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="should map names to tensors"):
        read_checkpoint(folder)


def test_a_weight_file_inside_a_folder_with_config(folder):
    with pytest.raises(ValueError, match="give the folder"):
        read_checkpoint(folder / "model.safetensors")


def test_an_adapter_is_left_to_transformers(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert not is_foreign(tmp_path)


def test_two_layouts_in_one_file(tmp_path):
    tensors = original_state_dict(narrow_model(enc_layers=1, dec_layers=1))
    torch.save(tensors | {f"detr.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "detr.pth")
    with pytest.raises(ValueError, match="mixes the layouts"):
        read_checkpoint(tmp_path / "detr.pth")
