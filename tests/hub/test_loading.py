"""What was pushed loads in three ways, each in a process of its own, and a hostile repository in none."""

import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import DetrConfig, TableTransformerConfig

from detr_hf import DETRConfig
from detr_hf.errors import IntegrityError
from detr_hf.model.configuration_detr import NOT_PLAIN_DETR

from ..conftest import tiny_config
from . import actions
from .conftest import client_environment

# Runs a card's own code where the package is absent, and shows what came out of it.
RUN_CARD = """
import hashlib, json, sys
sys.modules["detr_hf"] = None  # importing it now fails, as where it is not installed
exec(sys.stdin.read())
total = hashlib.sha256()
for name, tensor in sorted(model.state_dict().items()):
    total.update(name.encode() + tensor.contiguous().numpy().tobytes())
fields = [outputs.get(name) for name in ("logits", "pred_boxes", "pred_masks")]
shown = [field.flatten().tolist() for field in fields if field is not None]
objects = found.get("scores", found.get("segments_info"))
print(json.dumps({"digest": total.hexdigest(), "outputs": shown, "found": len(objects),
                  "class": type(model).__module__, "processor": type(processor).__module__}))
"""

PACKAGE = """
import json, sys
from detr_hf import Detector
from tests.hub import actions
for repo in sys.argv[1:]:
    detector = Detector.from_pretrained(repo)
    shown = actions.outputs_of(detector.model, detector.image_processor)
    print(json.dumps({"digest": actions.digest(detector.model), "outputs": shown,
                      "found": len(detector("picture.png", threshold=0.0))}))
"""


def run_python(code: str, hub, folder: Path, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess:
    """Runs Python in a process and a folder of its own, with an empty cache."""
    actions.picture().save(folder / "picture.png")
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=client_environment(hub.endpoint, folder / "home"),
        cwd=folder,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


def code_in(card: str, sign: str) -> str:
    """The block of Python in a card that has `sign` in it, for the picture of the tests."""
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if sign in block]
    return block.replace("picture.jpg", "picture.png").replace("threshold=0.7", "threshold=0.0")


def last_line(done: subprocess.CompletedProcess) -> dict:
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def same(seen: dict, pushed: dict, digest: str = "digest", atol: float = 1e-6) -> None:
    """Bit-equal weights, and outputs within `atol`."""
    assert seen["digest"] == pushed[digest]
    for ours, theirs in zip(pushed["outputs"], seen["outputs"], strict=True):
        assert torch.allclose(torch.tensor(ours), torch.tensor(theirs), rtol=0, atol=atol)


@pytest.mark.slow
def test_the_package_loads_all_of_them(hub, client, tmp_path):
    pushed = [
        client(actions.push_model, "detr-a"),
        client(actions.push_after_training, "detr-b"),
        client(actions.push_plain, "detr-c", format="transformers"),
        client(actions.push_model, "detr-d", changes={"reference_points": True}),
    ]
    done = run_python(PACKAGE, hub, tmp_path, "me/detr-a", "me/detr-b", "me/detr-c", "me/detr-d")
    assert done.returncode == 0, done.stderr[-3000:]
    seen = [json.loads(line) for line in done.stdout.strip().splitlines()]
    for loaded, original in zip(seen, pushed, strict=True):
        same(loaded, original)
        assert loaded["found"] == 7


@pytest.mark.slow
def test_the_code_in_the_card_loads_it_without_the_package(hub, client, tmp_path):
    pushed = client(actions.push_model, "detr-a")
    block = code_in(hub.files("me/detr-a")["README.md"].decode(), "trust_remote_code")
    seen = last_line(run_python(RUN_CARD, hub, tmp_path, stdin=block))
    same(seen, pushed)
    assert seen["found"] == 7
    assert seen["class"].startswith("transformers_modules.") and seen["processor"].startswith("transformers_modules.")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["after training", "reference points"])
def test_other_models_load_without_the_package(hub, client, tmp_path, kind):
    if kind == "after training":
        pushed = client(actions.push_after_training, "detr-a")
        assert not any("training_aids." in name for name in names_in(hub.files("me/detr-a")["model.safetensors"]))
    else:
        pushed = client(actions.push_model, "detr-a", changes={"reference_points": True})
    block = code_in(hub.files("me/detr-a")["README.md"].decode(), "trust_remote_code")
    same(last_line(run_python(RUN_CARD, hub, tmp_path, stdin=block)), pushed)


@pytest.mark.slow
def test_stock_transformers_loads_the_plain_format_by_the_code_in_its_card(hub, client, tmp_path):
    pushed = client(actions.push_plain, "plain", format="transformers")
    block = code_in(hub.files("me/plain")["README.md"].decode(), "AutoImageProcessor")
    seen = last_line(run_python(RUN_CARD, hub, tmp_path, stdin=block))
    same(seen, pushed, "plain_digest")
    assert seen["class"].startswith("transformers.models.detr") and seen["found"] == 7


PACKAGE_WITH_MASKS = """
import json, sys
from detr_hf.checkpoints.model_classes import load_model
from detr_hf.checkpoints.processors import processor_of
from tests.hub import actions
for repo in sys.argv[1:]:
    model, processor = load_model(repo), processor_of(repo)
    shown = actions.outputs_of(model, processor)
    print(json.dumps({"digest": actions.digest(model), "outputs": shown, "fused": processor.label_ids_to_fuse,
                      "class": type(model).__name__}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("format", ["detr_hf", "transformers"])
def test_masks_come_back_to_the_package_from_either_format(hub, client, tmp_path, format):
    pushed = client(actions.push_segmenter, "masks", format=format)
    seen = last_line(run_python(PACKAGE_WITH_MASKS, hub, tmp_path, "me/masks"))
    same(seen, pushed)
    assert seen["class"] == "DETRForSegmentation" and seen["fused"] == [2] and len(seen["outputs"]) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "sign", "key", "module"),
    [
        ("detr_hf", "trust_remote_code", "digest", "transformers_modules."),
        ("transformers", "AutoImageProcessor", "plain_digest", "transformers.models.detr"),
    ],
)
def test_masks_come_by_the_code_in_the_card_without_the_package(hub, client, tmp_path, format, sign, key, module):
    pushed = client(actions.push_segmenter, "masks", format=format)
    block = code_in(hub.files("me/masks")["README.md"].decode(), sign)
    seen = last_line(run_python(RUN_CARD, hub, tmp_path, stdin=block))
    same(seen, pushed, key, atol=1e-6 if format == "detr_hf" else 1e-3)  # other arithmetic, and logits up to 30
    assert seen["class"].startswith(module) and seen["found"] > 0 and len(seen["outputs"]) == 3


STOCK = """
import sys
sys.modules["detr_hf"] = None
from transformers import AutoModelForObjectDetection, DetrForObjectDetection, TableTransformerForObjectDetection
for cls in (AutoModelForObjectDetection, DetrForObjectDetection, TableTransformerForObjectDetection):
    for repo in sys.argv[1:]:
        try:
            cls.from_pretrained(repo)
            print("MISREAD", cls.__name__, repo)
        except Exception as error:
            print("refused", type(error).__name__, " ".join(str(error).split()))
"""


@pytest.mark.slow
def test_stock_transformers_refuses_our_format_instead_of_misreading_it(hub, client, tmp_path):
    client(actions.push_model, "thin")
    client(actions.push_model, "points", changes={"reference_points": True})
    client(actions.push_plain, "plain")
    done = run_python(STOCK, hub, tmp_path, "me/thin", "me/points", "me/plain")
    lines = re.findall("(?:refused|MISREAD) .*", done.stdout)
    assert len(lines) == 9 and "MISREAD" not in done.stdout, done.stdout + done.stderr[-2000:]
    assert all("trust_remote_code=True" in line for line in lines)


@pytest.mark.parametrize("theirs", [DetrConfig, TableTransformerConfig])
def test_the_field_that_stops_stock_classes_means_nothing_here(theirs):
    fields = {**tiny_config().to_dict(), **NOT_PLAIN_DETR}
    assert DETRConfig.from_dict(fields).to_dict() == tiny_config().to_dict()
    with pytest.raises(StrictDataclassFieldValidationError, match="trust_remote_code=True"):
        theirs.from_dict(fields)


def names_in(content: bytes) -> list[str]:
    """The tensor names in a safetensors file."""
    length = int.from_bytes(content[:8], "little")
    return list(json.loads(content[8 : 8 + length]))


# --- hostile repositories ---


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.write_text, (self.path, "code ran"))


@pytest.fixture
def hostile(hub, client, tmp_path):
    """A repository of somebody else that looks like a model; tests put the bad part in."""
    client(actions.push_model, "good")
    files = hub.files("me/good")
    hub.put("you/hostile", {name: content for name, content in files.items() if name != "model.safetensors"})
    return "you/hostile", tmp_path / "it-ran", files


def test_a_pickle_is_not_unpickled(hub, client, hostile):
    repo, trace, _ = hostile
    hub.put(repo, {"pytorch_model.bin": pickle.dumps({"class_embed.weight": Evil(trace)})})
    with pytest.raises(ValueError, match="was refused"):
        client(actions.load, repo)
    assert not trace.exists()


@pytest.mark.parametrize("shard", ["../../../secret.safetensors", "/etc/secret.safetensors", "C:\\secret.safetensors"])
def test_shards_outside_the_repository_are_refused(hub, client, hostile, shard):
    repo, _, _ = hostile
    hub.put(repo, {"model.safetensors.index.json": json.dumps({"weight_map": {"a": shard}}).encode()})
    with pytest.raises(ValueError, match="outside the checkpoint's own folder"):
        client(actions.load, repo)


@pytest.mark.parametrize("name", ["../../escape", "/tmp/escape", "a\\..\\..\\escape"])
def test_a_manifest_cannot_lead_outside(hub, client, hostile, name):
    repo, _, files = hostile
    hub.put(repo, {"SHA256SUMS": f"{'0' * 64}  {name}\n".encode(), "model.safetensors": files["model.safetensors"]})
    with pytest.raises(IntegrityError, match="outside its own folder"):
        client(actions.load, repo, verify=True)


def test_weights_beside_the_manifest_are_refused(hub, client, hostile):
    """transformers would take `model.safetensors` before the shards that the manifest vouches for."""
    repo, _, files = hostile
    lines = [line for line in files["SHA256SUMS"].decode().splitlines() if not line.endswith("model.safetensors")]
    hub.put(repo, {"SHA256SUMS": "\n".join(lines).encode(), "model.safetensors": files["model.safetensors"]})
    with pytest.raises(IntegrityError, match=r"model\.safetensors is not listed"):
        client(actions.verified, repo)


def test_code_of_a_repository_does_not_run_where_the_package_is(hub, client, hostile):
    repo, trace, files = hostile
    evil = f"open({str(trace)!r}, 'w').write('code ran')\n".encode()
    code = {name: evil + content for name, content in files.items() if name.endswith("_detr.py")}
    hub.put(repo, {**code, "model.safetensors": files["model.safetensors"]})
    client(actions.load, repo)
    assert client(actions.auto_load, repo).startswith("detr_hf.")
    assert not trace.exists()
    with pytest.raises(IntegrityError, match=r"modeling_detr\.py differs"):
        client(actions.verified, repo)


@pytest.mark.slow
def test_code_of_a_repository_does_not_run_unless_trusted(hub, client, hostile, tmp_path):
    repo, trace, files = hostile
    evil = f"open({str(trace)!r}, 'w').write('code ran')\n".encode()
    hub.put(repo, {name: evil + content for name, content in files.items() if name.endswith("_detr.py")})
    hub.put(repo, {"model.safetensors": files["model.safetensors"]})
    done = run_python(STOCK, hub, tmp_path, repo)
    assert "MISREAD" not in done.stdout and "trust_remote_code=True" in done.stdout
    assert not trace.exists()


def test_files_named_to_leave_the_cache_are_not_written(hub, client, hostile, tmp_path):
    repo, _, files = hostile
    hub.put(repo, {"../../escape.txt": b"out", "model.safetensors": files["model.safetensors"]})
    with pytest.raises(ValueError, match=r"'\.\.'"):
        client(actions.snapshot, repo, str(tmp_path / "copy"))
    assert not list(tmp_path.rglob("escape.txt"))
