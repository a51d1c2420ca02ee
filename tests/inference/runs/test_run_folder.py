"""The folder of a run: whole parts, lines that survive, and no mixing of settings."""

import json
import os

import pytest

from detr_hf.inference.runs.run_folder import PartWriter, RunFolder, read_records

SETTINGS = {"model": "a", "threshold": 0.5, "source": {"paths": ["x"]}}


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return RunFolder(tmp_path / "run", SETTINGS, parts=3)


def test_a_part_is_there_when_it_is_whole_and_not_before(run):
    writer = PartWriter(run, 1)
    writer.write({"picture": "a"})
    writer.write({"picture": "ü"})
    assert not run.is_done(1) and run.lines_written(1) == 2
    writer.finish()
    assert run.is_done(1) and not run.is_complete()
    assert run.part_path(1).name == "part-00001-of-00003.jsonl"
    assert [record["picture"] for record in read_records(run.part_path(1))] == ["a", "ü"]


@pytest.mark.parametrize(
    "torn", [b'{"picture":"b', b'{"picture":"b"}', b"\0" * 50, b'{"picture":"b"}\0\n{"picture":"c"}\n']
)
def test_a_line_that_was_cut_off_is_dropped(run, torn):
    writer = PartWriter(run, 0)
    writer.write({"picture": "a"})
    writer.close()
    with run.journal_path(0).open("ab") as file:
        file.write(torn)
    assert run.lines_written(0) == 1
    again = PartWriter(run, 0)
    assert again.count == 1 and again.last == {"picture": "a"}
    again.write({"picture": "b"})
    again.finish()
    assert [record["picture"] for record in read_records(run.part_path(0))] == ["a", "b"]


def test_a_conversion_that_fails_leaves_nothing_half_done(run):
    def fails(records, path):
        path.write_text("half")
        raise OSError("disk full")

    writer = PartWriter(run, 0)
    writer.write({"picture": "a"})
    with pytest.raises(OSError, match="disk full"):
        writer.finish(fails)
    writer.close()
    assert not run.is_done(0)
    again = PartWriter(run, 0)
    assert again.count == 1
    again.finish(lambda records, path: path.write_text(str(len(list(records)))))
    assert run.part_path(0).read_text() == "1" and not run.journal_path(0).exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no flock")
def test_two_writers_of_a_part_are_refused(run):
    first = PartWriter(run, 0)
    with pytest.raises(RuntimeError, match="Another process is writing"):
        PartWriter(run, 0)
    first.close()
    PartWriter(run, 0).close()


def test_other_settings_are_refused_by_name(run):
    RunFolder(run.folder, {**SETTINGS, "model": "renamed"}, parts=3)  # the name is for people
    for changed, parts in (({"threshold": 0.4}, 3), ({"source": {"paths": ["y"]}}, 3), ({}, 4), ({"new": 1}, 3)):
        with pytest.raises(ValueError, match="other settings: .*" + (next(iter(changed), "parts"))):
            RunFolder(run.folder, {**SETTINGS, **changed}, parts=parts)
    assert json.loads((run.folder / "run.json").read_text())["threshold"] == 0.5


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(ValueError, match="thesis"):
        RunFolder(tmp_path, SETTINGS, parts=1)
    assert os.listdir(tmp_path) == ["thesis.txt"]
    with pytest.raises(ValueError, match="is a file"):
        RunFolder(tmp_path / "thesis.txt", SETTINGS, parts=1)


def test_a_name_that_is_no_unicode_is_escaped(run):
    writer = PartWriter(run, 0)
    writer.write({"picture": os.fsdecode(b"caf\xe9.png")})
    writer.finish()
    run.part_path(0).read_text("utf-8")
    (record,) = read_records(run.part_path(0))
    assert os.fsencode(record["picture"]) == b"caf\xe9.png"
