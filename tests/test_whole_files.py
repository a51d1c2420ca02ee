"""What is written whole: success, failure, two writers at once, and a process that is killed in the middle."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from detr_hf import whole_files
from detr_hf.whole_files import (
    is_result,
    refuse_overwriting,
    refuse_unwritable,
    unfinished_folder,
    whole_file,
    whole_folder,
)

from .conftest import small_files


def content(folder) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_file_takes_its_place_at_the_end(tmp_path):
    path = tmp_path / "new" / "found.json"
    for text in ("first", "second"):
        before = content(tmp_path)
        with whole_file(path) as unfinished:
            unfinished.write_text(text)
            assert content(tmp_path) == {**before, unfinished.name: text}
        assert content(tmp_path) == {"found.json": text}


def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path):
    path = tmp_path / "found.json"
    path.write_text("old")
    for text in ("half", None):  # also before anything was written
        with pytest.raises(OSError, match="disk is full"), whole_file(path) as unfinished:
            if text is not None:
                unfinished.write_text(text)
            raise OSError("the disk is full")
        assert content(tmp_path) == {"found.json": "old"}


def test_a_full_disk_is_named_with_the_file(tmp_path):
    path = tmp_path / "found.json"
    said = pytest.raises(OSError, match=r"File too large: '.*/found.json'")
    with small_files(100), said, whole_file(path) as unfinished:
        unfinished.write_text("x" * 200)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("replace", [True, False])
def test_two_writers_do_not_mix(tmp_path, replace):
    """Where a file that is there stays, the first of them to end is the one that counts."""
    path, both = tmp_path / "found.json", threading.Barrier(2)
    ended = []

    def write(text: str) -> None:
        with whole_file(path, replace=replace) as unfinished, unfinished.open("w") as file:
            for letter in text:
                both.wait(timeout=10)
                file.write(letter)
        ended.append(text)

    threads = [threading.Thread(target=write, args=(text,)) for text in ("a" * 50, "b" * 50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ended) == 2 and content(tmp_path) in ({"found.json": "a" * 50}, {"found.json": "b" * 50})


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_is_there_stays_if_told_so(tmp_path, monkeypatch, links):
    def no_links(*paths):
        raise OSError("this file system has no links")

    path = tmp_path / "run.json"
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    for text in ("first", "second"):
        with whole_file(path, replace=False) as unfinished:
            unfinished.write_text(text)
    assert content(tmp_path) == {"run.json": "first" if links else "second"}


def test_a_killed_process_leaves_what_was_there_and_a_name_that_says_so(tmp_path, caplog):
    """And the next one that writes there removes what it left, and nothing else."""
    (tmp_path / "found.json").write_text("old")
    program = (
        "import os, signal, sys\n"
        "from detr_hf.whole_files import unfinished_folder, whole_file\n"
        "with whole_file(sys.argv[1]) as file, unfinished_folder(sys.argv[1]) as folder:\n"
        "    file.write_text('half')\n"
        "    (folder / 'weights').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "found.json")], check=False)
    assert done.returncode == -signal.SIGKILL
    left = {path.name for path in tmp_path.iterdir()} - {"found.json"}
    assert len(left) == 2 and all("found.json." in name and name.endswith(".detr_hf.unfinished") for name in left)
    assert (tmp_path / "found.json").read_text() == "old"
    (tmp_path / "mine.unfinished").touch()
    with whole_file(tmp_path / "other.json") as file, unfinished_folder(tmp_path / "third.json") as folder:
        both = {file.name, folder.name}  # what one is at work on stays, also where another comes along
        assert {path.name for path in tmp_path.iterdir()} == {"found.json", "mine.unfinished", *both}
    assert len(caplog.messages) == 2 and "left by a process that was killed" in caplog.text


NEW = {"a.txt": "new", "config.json": "new", "z-00001.txt": "new"}
OLD = {"a.txt": "old", "config.json": "old", "z-00002.txt": "old", "notes.md": "mine"}


def in_a_child(work) -> int:
    """Returns the exit code of a forked process that does `work` and nothing else."""
    child = os.fork()
    if not child:
        code = 1
        try:
            code = int(work() or 0)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("old", [OLD, {}], ids=["over an old one", "anew"])
def test_a_folder_is_never_half_of_one_and_half_of_another(tmp_path, old, monkeypatch):
    """Killed at every step of the moving: what has its last file is all old or all new, and the next one cleans up."""
    left = 0

    def write(path):
        with whole_folder(path, ("z-*.txt",)) as folder:
            for name, text in NEW.items():
                (folder / name).write_text(text)

    def counted(step):
        def take(*given, **options):
            nonlocal left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*given, **options)

        return take

    monkeypatch.setattr(os, "replace", counted(os.replace))
    monkeypatch.setattr(Path, "unlink", counted(Path.unlink))
    whole = NEW | {name: text for name, text in old.items() if name == "notes.md"}
    for number in range(1, 12):
        path = tmp_path / str(number)
        path.mkdir()
        for name, text in old.items():
            (path / name).write_text(text)
        left = number
        code = in_a_child(lambda path=path: write(path))
        left = 0
        found = {file.name: file.read_text() for file in path.iterdir() if file.is_file()}
        assert found in (old, whole) or "config.json" not in found, (number, found)
        write(path)
        assert content(path) == whole
        if not code:
            break
    assert number > 3 and code == 0


def test_two_writers_of_a_folder_do_not_mix(tmp_path):
    both = threading.Barrier(2)

    def write(text: str) -> None:
        with whole_folder(tmp_path / "new", ("z-*.txt",)) as folder:
            for number in range(20):
                (folder / f"z-{text}{number}.txt").write_text(text)
            (folder / "config.json").write_text(text)
            both.wait(timeout=10)

    threads = [threading.Thread(target=write, args=(text,)) for text in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(content(tmp_path / "new")) == 21 and len(set(content(tmp_path / "new").values())) == 1


def test_a_failure_leaves_a_folder_as_it_was(tmp_path):
    (tmp_path / "old").mkdir()
    for path in (tmp_path / "old", tmp_path / "new" / "deep"):
        with pytest.raises(RuntimeError), whole_folder(path) as folder:
            (folder / "config.json").write_text("half")
            raise RuntimeError
    assert [path.name for path in tmp_path.rglob("*")] == ["old"]


def test_a_forked_process_does_not_keep_a_lock_alive(tmp_path):
    folder = whole_files.start_folder(tmp_path / "new")
    assert in_a_child(lambda: whole_files.hold(folder)) == 0, "it is the parent's"
    started, say = os.pipe()
    child = os.fork()
    if not child:
        os.write(say, b"x")
        signal.pause()
    try:
        os.read(started, 1)
        whole_files.let_go(folder)
        assert whole_files.hold(folder), "the child still holds it"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        whole_files.drop_folder(folder)


def test_what_cannot_be_written_is_said_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"--json .*x.json cannot be written: .*file: Not a directory"):
        refuse_overwriting({"--json": tmp_path / "file" / "x.json"}, [])
    with pytest.raises(ValueError, match=r"--json /dev/null is a device or a pipe"):
        refuse_overwriting({"--json": "/dev/null"}, [])

    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "mkdir", refused)
    with pytest.raises(PermissionError, match=r"--json .*x.json cannot be written: .*: Permission denied"):
        refuse_overwriting({"--json": tmp_path / "new" / "x.json"}, [])
    with pytest.raises(PermissionError, match=rf"--save {tmp_path} cannot be written: {tmp_path}: Permission"):
        refuse_unwritable("--save", tmp_path)
    monkeypatch.undo()
    refuse_overwriting({"--json": tmp_path / "new" / "x.json"}, [])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_file_may_be_read_by_whom_the_umask_lets(tmp_path):
    before = os.umask(0o027)
    try:
        with whole_file(tmp_path / "found.json") as unfinished:
            unfinished.write_text("")
    finally:
        os.umask(before)
    assert (tmp_path / "found.json").stat().st_mode & 0o777 == 0o640


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """And it is written where it is told to be."""
    path, elsewhere, flushed = tmp_path / "part.parquet", tmp_path / "unfinished", []
    elsewhere.mkdir()
    monkeypatch.setattr(whole_files, "flush", lambda given: flushed.append((given.read_text(), path.exists())))
    with whole_file(path, folder=elsewhere, flushed=True) as unfinished:
        unfinished.write_text("rows")
        assert unfinished.parent == elsewhere
    assert flushed == [("rows", False)] and content(tmp_path) == {"part.parquet": "rows"}


def test_a_folder_goes_with_what_was_not_taken_out(tmp_path):
    path = tmp_path / "new" / "model"
    with unfinished_folder(path) as folder:
        assert folder.parent == path.parent and not list(folder.iterdir())
        (folder / "a").write_text("kept")
        (folder / "b").write_text("left")
        os.replace(folder / "a", path)
    with pytest.raises(RuntimeError), unfinished_folder(path) as folder:
        (folder / "c").write_text("left")
        raise RuntimeError
    assert content(tmp_path) == {"model": "kept"}


RESULTS = {
    "predict": {"model": "x", "threshold": 0.7, "pictures": [], "failed": []},
    "benchmark": {"environment": {}, "settings": {}, "rows": [], "left_out": {}},
    "eval": {"model": "x", "AP": None, "per_class": {}, "mistakes": {}},
    "check": {"source": "x", "findings": [], "splits": {}},
    "COCO results": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}],
    "no COCO results": [],
}
NO_RESULTS = {
    "COCO": {"images": [], "annotations": [], "categories": []},
    "a configuration": {"model_type": "detr_hf"},
    "annotations as a list": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}],
    "Label Studio": [{"id": 1, "annotations": []}],
    "a number": 3,
}


@pytest.mark.parametrize("content", [*RESULTS.values(), *NO_RESULTS.values()], ids=[*RESULTS, *NO_RESULTS])
def test_a_result_of_ours_is_written_over_and_a_file_of_the_users_is_not(tmp_path, content):
    path = tmp_path / "found.json"
    path.write_text(json.dumps(content))
    assert is_result(path) == (content in RESULTS.values())
    if is_result(path):
        refuse_overwriting({"--json": path}, ["facebook/detr-resnet-50", None], is_result)
    else:
        with pytest.raises(ValueError, match=r"--json .* is no result of detr-hf"):
            refuse_overwriting({"--json": path}, [], is_result)


def test_an_empty_file_and_no_file_may_be_written(tmp_path):
    (tmp_path / "empty.json").touch()
    for name in ("empty.json", "new.json", "new/folder/found.json"):
        refuse_overwriting({"--json": tmp_path / name, "--results": None}, [tmp_path], is_result)
    (tmp_path / "text.json").write_text("no JSON")
    for name, word in (("text.json", "is no result of detr-hf"), ("", "is a folder")):
        with pytest.raises(ValueError, match=word):
            refuse_overwriting({"--json": tmp_path / name}, [], is_result)


@pytest.mark.parametrize("road", ["itself", "relative", "symbolic link", "hard link", "linked folder", "other case"])
def test_an_input_is_known_by_every_road(tmp_path, monkeypatch, road):
    given = tmp_path / "a.png"
    given.write_bytes(b"picture")
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "b.png"
    if road == "itself":
        output = given
    elif road == "relative":
        (tmp_path / "sub").mkdir()
        output = "sub/../a.png"
    elif road == "symbolic link":
        output.symlink_to(given)
    elif road == "hard link":
        os.link(given, output)
    elif road == "linked folder":
        (tmp_path / "same").symlink_to(tmp_path)
        output = tmp_path / "same" / "a.png"
    else:
        output = tmp_path / "A.PNG"
        if not output.exists():
            pytest.skip("this file system tells cases apart")
    with pytest.raises(ValueError, match=r"--json .* one of the files looked at"):
        refuse_overwriting({"--json": output}, [given], lambda path: True)
    assert given.read_bytes() == b"picture"


def test_two_outputs_are_two_files(tmp_path):
    with pytest.raises(ValueError, match=r"--results .* is the file of --json too"):
        refuse_overwriting({"--json": tmp_path / "x.json", "--results": tmp_path / "y" / ".." / "x.json"}, [])
