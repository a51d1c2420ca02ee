"""What is written whole: success, failure, two writers at once, and a process that is killed in the middle."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from detr_hf import whole_files
from detr_hf.whole_files import unfinished_folder, whole_file


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


def test_a_killed_process_leaves_what_was_there_and_a_name_that_says_so(tmp_path):
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
    assert len(left) == 2 and all("found.json." in name and name.endswith(".unfinished") for name in left)
    assert (tmp_path / "found.json").read_text() == "old"


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
