"""Batch prediction: every picture once, whatever happens to the processes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from detr_hf import Detector, DETRImageProcessor
from detr_hf.inference.backends import ModelBackend
from detr_hf.inference.runs.prediction import Progress, predict_to_shards, read_predictions
from detr_hf.inference.runs.result_formats import PLACE
from detr_hf.inference.sources.base import SourceOptions

from ...conftest import tiny_model
from ..sources.test_sources import png, write_parquet, write_tar, write_video
from ..stand_in import StandIn, write_pictures

ROOT = Path(__file__).parents[3]
COUNT = 60


@pytest.fixture
def photos(tmp_path) -> Path:
    write_pictures(tmp_path / "photos", COUNT)
    return tmp_path / "photos"


def predict(detector, source, out, shard_size: int = 9, threshold: float = 0.0, **options):
    choices = SourceOptions(shard_size=shard_size, image_column=options.pop("image_column", None))
    return predict_to_shards(detector, source, out, threshold=threshold, batch_size=4, options=choices, **options)


def names(out: Path) -> list[str]:
    return [Path(record["picture"]).name for record in read_predictions(out)]


def in_order(count: int = COUNT) -> list[str]:
    return [f"{number:05d}.png" for number in range(count)]


class StopsAfter(StandIn):
    """Fails in the middle of a run, as a full GPU would."""

    def __init__(self, pictures: int):
        super().__init__()
        self.left = pictures

    def detect(self, batch):
        self.left -= len(batch)
        if self.left < 0:
            raise RuntimeError("out of memory")
        return super().detect(batch)


def test_every_picture_once_in_order_with_its_own_result(photos, tmp_path):
    run = predict(StandIn(), photos, tmp_path / "out")
    assert run.complete and run.progress.done == COUNT and run.progress.failed == 0
    assert names(tmp_path / "out") == in_order()
    brightness = []
    for record in read_predictions(tmp_path / "out"):
        (found,) = record["objects"]
        assert found["box"] == [0, 0, record["width"], record["height"]] and found["name"] == "thing"
        brightness.append(found["score"])
    assert brightness == sorted(brightness)  # write_pictures makes each brighter than the one before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *(f"part-{part:05d}-of-00007.jsonl" for part in range(7)),
        "run.json",
    ]


def test_equals_the_detector_used_directly(photos, tmp_path):
    detector = Detector(tiny_model(), DETRImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}))
    predict(detector, photos, tmp_path / "out", threshold=0.1)
    paths = sorted(photos.iterdir())[:7]
    for path, record in zip(paths, read_predictions(tmp_path / "out"), strict=False):
        expected = detector(path, threshold=0.1)
        assert len(record["objects"]) == len(expected) > 0
        for found, wanted in zip(record["objects"], expected, strict=True):
            assert found["score"] == pytest.approx(wanted.score, abs=1e-4)
            assert found["box"] == pytest.approx(wanted.box, abs=0.05)


@pytest.mark.parametrize("stop_after", [0, 5, 9, 36, 59])
def test_a_run_that_failed_goes_on_and_repeats_little(photos, tmp_path, stop_after):
    with pytest.raises(RuntimeError, match="out of memory"):
        predict(StopsAfter(stop_after), photos, tmp_path / "out")
    with pytest.raises(ValueError, match="not complete"):
        read_predictions(tmp_path / "out")
    again = StandIn()
    run = predict(again, photos, tmp_path / "out")
    assert names(tmp_path / "out") == in_order()
    assert run.progress.before + run.progress.done == COUNT and again.seen == run.progress.done
    assert COUNT - stop_after <= again.seen <= COUNT - stop_after + 40  # 40: what waits in the window
    idle = StandIn()
    assert predict(idle, photos, tmp_path / "out").complete and idle.seen == 0


def test_other_numbers_of_processes_share_what_is_left(photos, tmp_path):
    with pytest.raises(RuntimeError):
        predict(StopsAfter(20), photos, tmp_path / "out", rank=1, world_size=2)
    seen = 0
    for rank in range(3):
        detector = StandIn()
        run = predict(detector, photos, tmp_path / "out", rank=rank, world_size=3)
        assert run.complete == (rank == 2)
        seen += detector.seen
    assert names(tmp_path / "out") == in_order() and seen < COUNT


def test_rank_and_world_size_come_from_the_launcher(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    run = predict(StandIn(), photos, tmp_path / "out")
    assert not run.complete
    assert sorted(path.name[:10] for path in run.folder.glob("part-*")) == ["part-00001", "part-00003", "part-00005"]
    with pytest.raises(ValueError, match="rank 2 of 2"):
        predict(StandIn(), photos, tmp_path / "out", rank=2)


def test_a_bad_picture_is_recorded_with_its_error(photos, tmp_path):
    (photos / "00017.png").write_bytes(b"not a picture")
    (photos / "00000.png").write_bytes(b"")
    detector = Detector(tiny_model(), DETRImageProcessor(size={"shortest_edge": 32, "longest_edge": 48}))
    run = predict(detector, photos, tmp_path / "out")
    assert run.complete and run.progress.failed == 2
    records = list(read_predictions(tmp_path / "out"))
    assert names(tmp_path / "out") == in_order()
    assert [i for i, record in enumerate(records) if "error" in record] == [0, 17]
    assert records[0]["error"] == "is an empty file (0 bytes)." and "not an image" in records[17]["error"]
    assert set(records[17]) == {"picture", "error"}


def test_only_the_picture_whose_outputs_are_not_finite_is_an_error(photos, tmp_path):
    class Fussy(ModelBackend):
        def results(self, batch, threshold):
            if any("00007" in item.source for item in batch):
                raise ValueError("outputs are not finite")
            return super().results(batch, threshold)

    detector = Detector.on(Fussy(tiny_model(), DETRImageProcessor(size={"shortest_edge": 32, "longest_edge": 48})))
    predict(detector, photos, tmp_path / "out")
    records = list(read_predictions(tmp_path / "out"))
    assert [i for i, record in enumerate(records) if "error" in record] == [7]
    assert "not finite" in records[7]["error"] and not PLACE.match(records[7]["error"])


def test_other_settings_and_other_sources_are_refused(photos, tmp_path):
    with pytest.raises(RuntimeError):
        predict(StopsAfter(20), photos, tmp_path / "out")
    for changed, word in (
        ({"threshold": 0.3}, "threshold was 0.0, now 0.3"),
        ({"format": "coco"}, "format"),
        ({"shard_size": 10}, "shard_size"),
        ({"detector": StandIn(name="trained on")}, "weights"),
    ):
        with pytest.raises(ValueError, match=word):
            predict(**{"detector": StandIn(), "source": photos, "out": tmp_path / "out", **changed})
    (photos / "00005b.png").write_bytes(png(0))
    with pytest.raises(ValueError, match="source was"):
        predict(StandIn(), photos, tmp_path / "out")


def test_a_stream_whose_pictures_changed_their_places_is_refused(tmp_path):
    members = {f"{i}.png": png(i) for i in range(20)}
    path = write_tar(tmp_path / "a.tar", members)
    with pytest.raises(RuntimeError):
        predict(StopsAfter(15), path, tmp_path / "out")
    write_tar(path, dict(reversed(members.items())))
    with pytest.raises(ValueError, match="source has changed"):
        predict(StandIn(), path, tmp_path / "out")


@pytest.mark.parametrize("format", ["jsonl", "parquet", "coco"])
def test_all_kinds_of_sources_in_one_run_and_in_every_format(tmp_path, format):
    pytest.importorskip("av")
    pytest.importorskip("pyarrow")
    folder = tmp_path / "mixed"
    write_pictures(folder, 5)
    write_tar(folder / "a.tar", {"x.png": png(9), "y.png": b"broken"})
    write_parquet(folder / "b.parquet", {"image": [png(i) for i in range(4)], "image_id": ["a", "b", "c", "d"]})
    write_video(folder / "c.mp4", 6)
    with pytest.raises(RuntimeError):
        predict(StopsAfter(4), folder, tmp_path / "out", shard_size=3, format=format)
    run = predict(StandIn(), folder, tmp_path / "out", shard_size=3, format=format)
    assert run.complete and run.progress.failed == 1
    records = list(read_predictions(tmp_path / "out"))
    assert len(records) == len({record["picture"] for record in records}) == 5 + 2 + 4 + 6
    assert [record.get("frame") for record in records[-6:]] == list(range(6))
    assert [record.get("image_id") for record in records[7:11]] == ["a", "b", "c", "d"]
    assert records[0]["objects"][0]["box"] == [0, 0, 16, 12]
    assert "error" in records[6] and "objects" not in records[6]
    assert not list((tmp_path / "out").rglob("*unfinished*"))


@pytest.mark.parametrize("numbered", [True, False])
def test_coco_results_can_be_loaded_and_name_every_picture(photos, tmp_path, numbered):
    from pycocotools.coco import COCO

    if not numbered:
        (photos / "00003.png").rename(photos / "three.png")
    predict(StandIn(), photos, tmp_path / "out", format="coco")
    images = json.loads((tmp_path / "out" / "coco_images.json").read_text())
    results = json.loads((tmp_path / "out" / "coco_results.json").read_text())
    assert [Path(image["file_name"]).name for image in images] == names(tmp_path / "out")
    assert [image["id"] for image in images] == list(range(0, COUNT) if numbered else range(1, COUNT + 1))
    first = next(iter(read_predictions(tmp_path / "out")))
    assert results[0] == {
        "image_id": images[0]["id"],
        "category_id": 1,
        "bbox": [0, 0, first["width"], first["height"]],
        "score": first["objects"][0]["score"],
    }
    truth = COCO()
    truth.dataset = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
    truth.createIndex()
    assert len(truth.loadRes(results).getAnnIds()) == COUNT


def test_no_objects_at_all_is_a_valid_coco_file(photos, tmp_path):
    class Blind(StandIn):
        def detect(self, batch):
            return [found[:0] for found in super().detect(batch)]

    predict(Blind(), photos, tmp_path / "out", format="coco")
    assert json.loads((tmp_path / "out" / "coco_results.json").read_text()) == []


def test_progress_counts_and_tells_the_time_left(photos, tmp_path):
    reports: list[Progress] = []
    predict(StandIn(0.03), photos, tmp_path / "out", on_progress=reports.append)
    assert len(reports) >= 3
    assert [report.done for report in reports] == sorted(report.done for report in reports)
    last = reports[-1]
    assert (last.done, last.total, last.seconds_left) == (COUNT, COUNT, 0)
    assert reports[0].seconds_left == pytest.approx((COUNT - reports[0].done) / reports[0].per_second)
    assert Progress(0, 0, 0, 5, 0.0).seconds_left is None and Progress(0, 3, 0, None, 1.0).seconds_left is None


def test_a_file_that_should_hold_pictures_and_holds_none_is_named(tmp_path, caplog):
    path = write_tar(tmp_path / "a.tar", {"notes.txt": b"x"})
    assert predict(StandIn(), path, tmp_path / "out").complete
    assert f"{path} holds no picture" in caplog.text and "1 .txt (notes.txt)" in caplog.text


@pytest.mark.parametrize("content", ["[]", "{}", "no JSON", '{"parts": 3}'])
def test_a_users_run_json_is_not_taken_for_that_of_a_run(photos, tmp_path, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text(content)
    with pytest.raises(ValueError, match=r"run|settings"):
        predict(StandIn(), photos, tmp_path / "out")
    assert (tmp_path / "out" / "run.json").read_text() == content


def test_what_is_no_run_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match=r"no run\.json"):
        read_predictions(tmp_path)
    with pytest.raises(ValueError, match="format must be"):
        predict(StandIn(), write_pictures(tmp_path / "x", 1), tmp_path / "out", format="xml")
    with pytest.raises(ValueError, match="threshold"):
        predict(StandIn(), tmp_path / "x", tmp_path / "out", threshold=2)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 here")
def test_killed_at_random_moments_no_picture_is_missing_or_twice(tmp_path):
    """Two processes at a time, one of which is killed with -9 again and again."""
    write_pictures(tmp_path / "photos", 400)
    out = tmp_path / "out"
    chance = random.Random(0)

    def start(rank: int, world_size: int) -> subprocess.Popen:
        environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(world_size), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "tests.inference.stand_in", str(tmp_path / "photos"), str(out), "0.01"]
        return subprocess.Popen(command, env=environment, cwd=ROOT)

    def lines() -> int:
        return sum(path.read_bytes().count(b"\n") for path in out.rglob("part-*"))

    kills = 0
    for world_size in (2, 3, 1, 2):
        processes = [start(rank, world_size) for rank in range(world_size)]
        before, until = lines(), time.monotonic() + 60
        while lines() < before + 15 and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.1))
        for process in processes:
            kills += process.poll() is None
            process.kill()
            process.wait()
    assert kills >= 6, "the processes ended before they could be killed"
    with pytest.raises(ValueError, match="not complete"):
        read_predictions(out)
    assert start(0, 1).wait(60) == 0
    assert names(out) == in_order(400)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks /proc")
def test_the_command_killed_three_times_loses_nothing_and_keeps_its_memory(tmp_path):
    from .killed_predict import BAD, killed

    found = killed(tmp_path, 1000, 3)
    assert found["complete_and_once"] and found["errors_recorded"] == BAD
    assert found["pictures_that_differ"] == 0 and found["largest_difference_of_a_score"] < 1e-4
    assert found["detected_twice"] <= 3 * 64  # what waits in the window of a kill
    memory = found["most_mib_by_fifth"]
    assert 0 < memory[-1] < 1.1 * memory[1]  # the first pictures load libraries


@pytest.mark.slow
def test_torchrun_shares_the_pictures_among_its_processes(tmp_path):
    from .killed_predict import command, write_model, write_pictures

    paths = write_pictures(tmp_path / "pictures", 90)
    write_model(tmp_path / "model")
    _, *rest = command(tmp_path / "model", tmp_path / "pictures", tmp_path / "out", shard_size=20)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*launcher, *rest], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "[0 of 2] 50 pictures" in done.stderr and "[1 of 2] 40 pictures" in done.stderr
    assert [record["picture"] for record in read_predictions(tmp_path / "out")] == list(map(str, paths))
