"""A drawn film has the frames, times, length and sound of its source; a damaged one has what is whole."""

import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from detr_hf import draw_film
from detr_hf.inference.sources.video import is_drawn_film
from detr_hf.visualize.saving import DRAWING_MARK

from ..conftest import small_files
from .film_making import make_film, noise, seen_in
from .stand_in import StandIn

pytest.importorskip("av")
UNEVEN = [number * 40 + number % 3 * 10 for number in range(30)]


def turned(path: Path) -> Path:
    """A film as phones held upright write it: lying, with a matrix that takes right to down."""
    plain, quarter = (
        struct.pack(">9i", *numbers, 0, 0, 0, 0x40000000)
        for numbers in ((0x10000, 0, 0, 0, 0x10000), (0, 0x10000, 0, -0x10000, 0))
    )
    path.write_bytes(path.read_bytes().replace(plain, quarter, 1))
    return path


KINDS = {
    "plain": {},
    "without sound": {"sound": None},
    "uneven": {"times": UNEVEN},
    "odd": {"size": (63, 47), "codec": "ffv1", "sound": "libopus", "name": "film.mkv"},
    "turned": {"turned": True},
    "MPEG-TS": {"name": "film.mpg", "options": {"f": "mpegts"}, "codec": "mpeg2video", "sound": "mp2"},
    "QuickTime": {"name": "film.mov", "sound": "pcm_s16le"},
    "Matroska": {"name": "film.mkv"},
    "WebM": {"name": "film.webm", "codec": "libvpx", "sound": "libopus"},
    "AVI": {"name": "film.avi", "codec": "ffv1", "sound": "libmp3lame"},
}
FAST = ("without sound", "uneven", "odd", "turned")
AS_AAC = ("mp2", "pcm_s16le")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in FAST else pytest.mark.slow) for kind in KINDS]
)
def test_frames_times_length_and_sound_are_kept(kind, tmp_path):
    given = dict(KINDS[kind])
    name, is_turned = given.pop("name", "film.mp4"), given.pop("turned", False)
    film = make_film(tmp_path / name, **given)
    film = turned(film) if is_turned else film
    source = seen_in(film)
    drawn = draw_film(StandIn(), film, tmp_path / "out" / "film_boxes.mp4", threshold=0.0)
    found = seen_in(drawn.path)
    assert drawn.frames == len(found["times"]) == 30 and drawn.faults == [] and drawn.frames_with == {"thing": 30}
    first = source["times"][0] - found["times"][0]  # of a film that does not start at 0
    assert [time + first for time in found["times"]] == pytest.approx(source["times"], abs=0.002)
    assert found["length"] == pytest.approx(source["length"], abs=0.04) and found["codec"] == "h264"
    assert found["rate"] == pytest.approx(source["rate"], rel=0.07)
    if given.get("sound", "aac") in AS_AAC:
        assert found["sound"] == ["aac"] and any("is AAC" in change for change in drawn.changes)
        assert len(found["heard"][0]) == pytest.approx(30 / 25 * 48000 / 1024, abs=2)
    else:
        assert found["sound"] == source["sound"] and found["heard"] == source["heard"] and len(drawn.changes) <= 1
    width, height = source["size"][::-1] if is_turned else source["size"]
    assert found["size"] == (width + width % 2, height + height % 2)
    assert bool(width % 2) == any("even sides" in change for change in drawn.changes)
    across = found["first"][height // 2] if is_turned else found["first"][:, width // 2]
    lower, upper = (across[len(across) // 2 + step] for step in ((-4, 4) if is_turned else (4, -4)))
    assert np.abs(upper - np.array([200, 40, 40])).max() < 25 and np.abs(lower - np.array([40, 60, 200])).max() < 25
    assert found["mark"] == DRAWING_MARK and is_drawn_film(drawn.path) and not is_drawn_film(film)
    assert [path.name for path in drawn.path.parent.iterdir()] == ["film_boxes.mp4"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    return make_film(tmp_path_factory.mktemp("film") / "film.mp4", picture=noise).read_bytes()


@pytest.mark.parametrize("damage", ["cut", "zeros"])
def test_of_a_damaged_film_the_frames_that_are_whole(damage, whole, tmp_path):
    middle = len(whole) // 2
    rest = {"cut": b"", "zeros": bytes(3000) + whole[middle + 3000 :]}[damage]
    (tmp_path / "film.mp4").write_bytes(whole[:middle] + rest)
    drawn = draw_film(StandIn(), tmp_path / "film.mp4", tmp_path / "film_boxes.mp4", threshold=0.0)
    assert 5 < drawn.frames < 30 and len(seen_in(drawn.path)["times"]) == drawn.frames
    assert any("damaged here" in fault and "(after 0." in fault for fault in drawn.faults)
    assert any("ends early: its last frame is at 0." in fault for fault in drawn.faults) == (damage == "cut")


def test_what_gives_no_film_leaves_none(whole, tmp_path):
    (tmp_path / "none.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("no film")
    (tmp_path / "head.mp4").write_bytes(whole[:3000])
    make_film(tmp_path / "tone.mp4", 0)
    before = sorted(tmp_path.iterdir())
    for name, why in (("none", ""), ("text", ""), ("head", ""), ("tone", "no video stream"), ("gone", "no such file")):
        with pytest.raises(ValueError, match=f"{name}.mp4.*{why}"):
            draw_film(StandIn(), tmp_path / f"{name}.mp4", tmp_path / "boxes.mp4")
    with pytest.raises(ValueError, match="one of the files looked at"):
        draw_film(StandIn(), tmp_path / "tone.mp4", tmp_path / "tone.mp4")
    assert sorted(tmp_path.iterdir()) == before


def test_a_full_disk_is_one_sentence_and_the_older_film_stays(whole, tmp_path):
    (tmp_path / "film.mp4").write_bytes(whole)
    (tmp_path / "boxes.mp4").write_bytes(b"older")
    with small_files(20_000), pytest.raises(OSError, match=r"^\[Errno 27\] File too large: '.*boxes.mp4'$"):
        draw_film(StandIn(), tmp_path / "film.mp4", tmp_path / "boxes.mp4", threshold=0.0)
    assert (tmp_path / "boxes.mp4").read_bytes() == b"older" and len(list(tmp_path.iterdir())) == 2


def test_so_many_frames_and_the_sound_to_their_end(whole, tmp_path):
    (tmp_path / "film.mp4").write_bytes(whole)
    drawn = draw_film(StandIn(), tmp_path / "film.mp4", tmp_path / "boxes.mp4", threshold=0.0, limit=10)
    assert drawn.frames == 10 and seen_in(drawn.path)["length"] == pytest.approx(0.4, abs=0.05)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_thousand_frames_in_little_memory_and_killed_half_way(tmp_path):
    command = [sys.executable, "-m", "tests.inference.film_making", "2000", tmp_path / "film.mp4", "film_boxes.mp4"]
    command[-1] = target = tmp_path / "out" / "film_boxes.mp4"
    start = {"stdout": subprocess.PIPE, "text": True, "cwd": Path(__file__).parents[2]}
    with subprocess.Popen([*map(str, command)], **start) as killed:
        for line in killed.stdout:
            if line.startswith("1000 "):
                os.kill(killed.pid, signal.SIGKILL)
                break
    (left,) = target.parent.iterdir()
    assert left.name.endswith(".detr_hf.unfinished") and not target.exists()
    done = subprocess.run([*map(str, command)], check=True, **start)
    used = {int(line.split()[0]): int(line.split()[1]) for line in done.stdout.splitlines()[:-1]}
    print(used, done.stdout.splitlines()[-1])
    assert done.stdout.splitlines()[-1].startswith("2000 ") and [path.name for path in target.parent.iterdir()] == [
        target.name
    ]
    assert max(used.values()) - used[100] < 50
    source, found = seen_in(tmp_path / "film.mp4"), seen_in(target)
    assert len(found["times"]) == 2000 and found["times"] == source["times"] and found["rate"] == source["rate"] == 25
    assert found["heard"] == source["heard"] and found["length"] == pytest.approx(source["length"], abs=0.001)
