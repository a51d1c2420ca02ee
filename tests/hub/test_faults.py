"""Whatever goes wrong between here and the Hub: success after a retry, or a sentence that says what to do.

In every case the repository is the old one or the new one.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from detr_hf.checkpoints.hub_errors import explained
from detr_hf.errors import HubError, IntegrityError
from detr_hf.hub import verify

from . import actions
from .conftest import client_environment

PASSING = ["commit_lost"]
SLOW_PASSING = ["commit_race", "create_500", "preupload_500", "put_500", "put_cut", "commit_500"]


@pytest.mark.parametrize("fault", PASSING + [pytest.param(fault, marks=pytest.mark.slow) for fault in SLOW_PASSING])
def test_a_fault_that_passes_ends_in_the_whole_push(hub, client, fault):
    client(actions.push_model, "detr-a")
    hub.faults.left[fault] = 1
    pushed = client(actions.push_model, "detr-a", 1)
    assert hub.faults.left[fault] == 0  # it did happen
    assert client(actions.load, "me/detr-a", verify=True)["digest"] == pushed["digest"]
    ours = [message for message in hub.repositories["models/me/detr-a"].messages if message.startswith("Upload")]
    assert len(ours) == 2  # none twice, also where an answer was lost
    if fault == "commit_race":
        assert hub.files("me/detr-a")["notes.txt"] == b"mine"


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("put_403", "does not allow it"),
        pytest.param("put_507", "no room left", marks=pytest.mark.slow),
        pytest.param("commit_500", "answered 500.*same call again", marks=pytest.mark.slow),
    ],
)
def test_a_fault_that_stays_leaves_the_old_repository(hub, client, fault, sentence):
    old = client(actions.push_model, "detr-a")
    hub.faults.left[fault] = 1000
    with pytest.raises(HubError, match=f"(?s)Could not push to me/detr-a: .*{sentence}.* is as it was"):
        client(actions.push_model, "detr-a", 1)
    hub.faults.left.clear()
    assert client(actions.load, "me/detr-a", verify=True)["digest"] == old["digest"]
    pushed = client(actions.push_model, "detr-a", 1)
    assert client(actions.load, "me/detr-a", verify=True)["digest"] == pushed["digest"]


@pytest.mark.slow
def test_uploads_that_always_fail_say_so(hub, client):
    hub.faults.left["put_500"] = 1000
    with pytest.raises(HubError, match="answered 500"):
        client(actions.push_model, "detr-a")
    assert hub.files("me/detr-a") == {}


def test_an_interrupted_push_says_what_holds_and_what_to_do():
    with pytest.raises(KeyboardInterrupt) as stop, explained("push to", "me/detr-a"):
        raise KeyboardInterrupt
    assert "never a mixture. Run the same call again" in stop.value.__notes__[0]


@pytest.mark.slow
def test_slow_answers_are_waited_for(hub, client):
    hub.faults.slow |= {"put_object": 0.3, "commit": 0.3, "resolve": 0.1}
    pushed = client(actions.push_model, "detr-a")
    assert client(actions.load, "me/detr-a")["digest"] == pushed["digest"]


@pytest.mark.parametrize(
    ("token", "repo", "sentence"),
    [
        (False, "me/detr-a", "there is no token. Log in with `hf auth login`"),
        ("hf_mistyped", "me/detr-a", "the token was refused"),
        ("hf_read", "me/detr-a", "role 'write'"),
        ("hf_you", "me/detr-a", "role 'write'"),
        (None, "me/a b", "cannot be the id of a repository"),
        (None, "me/detr-a/b", "cannot be the id of a repository"),
    ],
)
def test_a_push_that_is_not_allowed_says_why(hub, client, token, repo, sentence):
    with pytest.raises(HubError, match=sentence):
        client(actions.push_model, repo, token=token)
    assert "models/me/detr-a" not in hub.repositories


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"token": False}, "that you may (read|see).*hf auth login"),
        ({"token": "hf_mistyped"}, "the token was refused"),
        ({"token": "hf_you"}, "no (such )?repository .*that you may (read|see)"),
        ({"revision": "v9"}, "no revision 'v9'"),
    ],
    ids=["no token", "refused token", "not mine", "no revision"],
)
def test_a_private_model_that_cannot_be_loaded_says_why(hub, client, tmp_path, options, sentence):
    client(actions.push_model, "detr-a", private=True)
    for action in (actions.load, actions.verified):
        with pytest.raises(OSError, match=sentence):
            client(action, "me/detr-a", cache_dir=str(tmp_path), **options)


def test_a_cut_download_is_fetched_again(hub, client, tmp_path):
    pushed = client(actions.push_model, "detr-a")
    hub.faults.left["get_cut"] = 1
    assert client(actions.load, "me/detr-a", cache_dir=str(tmp_path))["digest"] == pushed["digest"]
    assert hub.faults.left["get_cut"] == 0


@pytest.mark.slow
def test_a_download_that_is_always_cut_leaves_nothing_that_loads(hub, client, tmp_path):
    pushed = client(actions.push_model, "detr-a")
    hub.faults.left["get_cut"] = 1000
    for _ in range(2):
        with pytest.raises(OSError, match="me/detr-a"):
            client(actions.load, "me/detr-a", cache_dir=str(tmp_path))
    hub.faults.left.clear()
    assert client(actions.load, "me/detr-a", cache_dir=str(tmp_path))["digest"] == pushed["digest"]


@pytest.mark.slow
def test_a_cached_file_that_is_cut_is_named(hub, client, tmp_path):
    client(actions.push_model, "detr-a")
    client(actions.load, "me/detr-a", cache_dir=str(tmp_path))
    (weights,) = tmp_path.rglob("model.safetensors")
    os.truncate(weights.resolve(), weights.stat().st_size // 2)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged.*cache"):
        client(actions.load, "me/detr-a", cache_dir=str(tmp_path))


def test_a_bit_that_flips_on_the_way_is_found_and_named(hub, client, tmp_path):
    pushed = client(actions.push_model, "detr-a")
    hub.faults.left["get_flip"] = 1
    cache = str(tmp_path)
    flipped = client(actions.load, "me/detr-a", cache_dir=cache)
    assert flipped["digest"] != pushed["digest"]  # which nobody notices
    with pytest.raises(IntegrityError, match=r"model\.safetensors differs .*force_download=True"):
        client(actions.load, "me/detr-a", cache_dir=cache, verify=True)
    fresh = client(actions.load, "me/detr-a", cache_dir=cache, verify=True, force_download=True)
    assert fresh["digest"] == pushed["digest"]


def test_verifying_pins_the_commit_that_was_verified(hub, client):
    old = client(actions.push_model, "detr-a")
    client(actions.load, "me/detr-a")
    weights = hub.files("me/detr-a")["model.safetensors"]
    hub.put("me/detr-a", {"model.safetensors": weights[:-4] + b"\0\0\0\0"})
    with pytest.raises(IntegrityError, match=r"model\.safetensors differs"):
        client(actions.load, "me/detr-a", verify=True)
    assert client(actions.load, "me/detr-a", verify=True, revision=old["oid"])["digest"] == old["digest"]


def run(code: str, endpoint: str, home: Path, **changes: str | None) -> subprocess.CompletedProcess:
    """Runs Python in a process of its own that talks to the loopback Hub."""
    environment = client_environment(endpoint, home, **changes)
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)


LOAD_AND_PUSH = """
from tests.hub import actions
print(actions.load("me/detr-a")["digest"])
try:
    actions.push_model("detr-a")
except OSError as error:
    print(error)
try:
    actions.load("me/unknown")
except OSError as error:
    print(error)
"""


@pytest.mark.slow
def test_without_the_hub_the_cache_still_loads_and_the_rest_says_why(hub, client, tmp_path):
    pushed = client(actions.push_model, "detr-a")
    assert client(actions.load, "me/detr-a", cache_dir=str(tmp_path / "hub"))["digest"] == pushed["digest"]
    for endpoint, offline, sentence in (
        (hub.endpoint, "1", "HF_HUB_OFFLINE is set"),
        ("http://127.0.0.1:9", "0", "http://127.0.0.1:9 was not reached"),
    ):
        shown = run(LOAD_AND_PUSH, endpoint, tmp_path, HF_HUB_OFFLINE=offline)
        digest, push_error, load_error = shown.stdout.strip().splitlines()
        assert digest == pushed["digest"], shown.stderr
        assert push_error.startswith("Could not make the repository detr-a") and sentence in push_error
        assert "is not in the Hugging Face cache" in load_error


FULL_DISK = """
import tempfile
tempfile.tempdir = "SMALL"
from tests.hub import actions
try:
    actions.push_model("detr-a")
except OSError as error:
    print("push:", error)
tempfile.tempdir = None
print(actions.push_model("detr-a")["digest"])
try:
    actions.load("me/detr-a")
except OSError as error:
    print("load:", error)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="needs to mount a small disk")
def test_a_full_disk_is_named(hub, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=250k", "tmpfs", str(small)], check=False)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        shown = run(FULL_DISK.replace("SMALL", str(small)), hub.endpoint, small / "home")
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)
    lines = shown.stdout.strip().splitlines()
    assert lines[0].startswith("push: Could not push to detr-a: the disk is full"), shown.stderr[-2000:]
    assert lines[-1].startswith("load: ") and "the disk is full" in lines[-1], shown.stderr[-2000:]


# Imports once, then forks a child for each push, so that ten kills take seconds.
PUSHER = """
import os, sys, time
from tests.hub import actions
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        actions.push_model("detr-a", int(line))
        os._exit(0)
    print(child, flush=True)
    os.waitpid(child, 0)
    print("over", flush=True)
"""


# Where each of ten pushes is killed: while the Hub answers the first request that matches.
KILLED_AT = ["repos/create", "GET /api/models/me/detr-a$", "validate-yaml", "preupload", "objects/batch", "^PUT"]
KILLED_AT += ["/verify$", "/commit/", "^PUT", "/commit/"]
ANSWERS = ("create", "info", "validate", "preupload", "lfs_batch", "put_object", "verify_object", "commit")


@pytest.mark.slow
def test_a_killed_push_leaves_the_old_repository_or_the_new_one(hub, client, tmp_path):
    client(actions.push_model, "detr-a")
    hub.faults.slow = dict.fromkeys(ANSWERS, 0.5)
    environment = client_environment(hub.endpoint, tmp_path)
    pusher = subprocess.Popen(
        [sys.executable, "-c", PUSHER], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    outcomes = []
    try:
        assert pusher.stdout.readline().strip() == "ready"
        for number, pattern in enumerate(KILLED_AT, start=1):
            before, seen = hub.files("me/detr-a"), hub.count(pattern)
            pusher.stdin.write(f"{number}\n")
            pusher.stdin.flush()
            child = int(pusher.stdout.readline())
            wait_for(lambda pattern=pattern, seen=seen: hub.count(pattern) > seen)
            time.sleep(0.2)
            os.kill(child, signal.SIGKILL)
            assert pusher.stdout.readline().strip() == "over"
            time.sleep(1)  # what the Hub was asked for, it does
            after = hub.files("me/detr-a")
            folder = tmp_path / f"state-{number}"
            folder.mkdir()
            for name, content in after.items():
                (folder / name).write_bytes(content)
            assert set(verify(folder).files) | {"SHA256SUMS", "README.md"} == set(after)
            outcomes.append("old" if after == before else "new")
    finally:
        pusher.stdin.close()
        pusher.wait(timeout=60)
    assert outcomes == ["new" if pattern == "/commit/" else "old" for pattern in KILLED_AT]
    hub.faults.slow.clear()
    pushed = client(actions.push_model, "detr-a", 99)
    assert client(actions.load, "me/detr-a", verify=True)["digest"] == pushed["digest"]


def wait_for(condition, seconds: float = 60) -> None:
    """Returns as soon as the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
