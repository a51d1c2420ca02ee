"""What the page says to faulty pictures, to programs and to fifty at once; `make test-page`, skipped elsewhere."""

import re
import shutil
import subprocess
import sys
import time

import pytest

from detr_hf import Detector
from detr_hf.checkpoints.embedded import demo_scene_path, embedded_model_path

from .inputs import GIVEN, MAX_MB, encoded, scene
from .serving import ROOT, SHOTS, Visit, serving

gradio_client = pytest.importorskip("gradio_client", reason="gradio is not installed: make test-page")
httpx = pytest.importorskip("httpx")

pytestmark = pytest.mark.timeout(1200)
SCENE = demo_scene_path()


def test_faults_are_told_in_the_page_and_the_next_picture_works(visit):
    for number, given in enumerate(GIVEN):
        visit.give((given.name, given.content()))
        if given.error:
            said = visit.says(given.error[0])
            assert all(words in said for words in given.error), said
        else:
            visit.waits_for(f"in {given.name}")
            assert given.note in visit.page.locator("[data-says]").inner_text()
        assert visit.page.locator(".strip button").count() == number + 1 or not number
    visit.page.screenshot(path=SHOTS / "faults.png", full_page=True)
    visit.give(("scene.png", SCENE.read_bytes()))
    visit.waits_for("5 objects in scene.png")


def test_a_picture_of_60_megapixels(visit, served):
    large = encoded(scene().resize((9000, 6700)), "JPEG", quality=80)
    assert len(large) < MAX_MB * 1e6
    start = time.perf_counter()
    visit.give(("large.jpg", large))
    visit.waits_for("in large.jpg")
    print(f"\n60 megapixels, {len(large) / 1e6:.1f} MB: boxes after {time.perf_counter() - start:.1f} s")
    assert visit.page.locator(".object").count()
    assert len(visit.page.locator("[data-picture] svg").inner_html()) < 2e6


SENT = {"meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        (None, "There is no picture"),
        ({"path": str(ROOT / "demo_boxes.png"), **SENT}, ""),
        ({"path": "http://127.0.0.1:1/a.png", **SENT}, "fetches nothing"),
    ],
    ids=["nothing", "a file of the server", "an address"],
)
def test_what_no_browser_sends_is_refused(served, picture, said):
    url = f"{served.url}gradio_api/call/detect"
    event = httpx.post(url, json={"data": [picture, "detr-digits", 0.7]}, timeout=60).json()["event_id"]
    answer = httpx.get(f"{url}/{event}", timeout=60).text
    assert "event: error" in answer and said in answer and "event: complete" not in answer


def test_a_model_that_is_deleted_and_one_that_is_chosen(browser, tmp_path):
    for name in ("first", "second", "third"):
        shutil.copytree(embedded_model_path(), tmp_path / name)
    models = [str(tmp_path / name) for name in ("first", "second", "third")]
    with serving(tmp_path / "tmp", *models) as server:
        made = Visit(browser, server.url, 1280, "light")
        shutil.rmtree(tmp_path / "second")
        made.give(("scene.png", SCENE.read_bytes()))
        made.waits_for("in scene.png, by first")

        def choose(name: str) -> None:
            made.page.get_by_label("Model").click()
            made.page.get_by_role("option", name=name).click()

        choose("second")
        assert made.says("second").startswith("scene.png: ")
        choose("third")
        made.waits_for("in scene.png, by third")
        made.page.screenshot(path=SHOTS / "models.png")
        made.close(tmp_path)


def test_a_taken_port_is_named(served):
    port = served.url.rstrip("/").rpartition(":")[2]
    command = [sys.executable, "-m", "detr_hf", "app", "--port", port]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"detr-hf: Port {port} of 127.0.0.1 is taken") and done.stderr.count("\n") == 1


# ---------------------------------------------------------------------------------------------------------- programs


def test_programs_get_what_the_detector_gives(served, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(SCENE, "scene.png")
    client = gradio_client.Client(served.url, verbose=False)
    found = Detector.from_pretrained(embedded_model_path())("scene.png", 0.7)
    answer = client.predict(gradio_client.handle_file("scene.png"), "detr-digits", 0.7, api_name="/detect")
    assert answer == found.record()
    (block,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "app.md").read_text(), re.DOTALL | re.MULTILINE)
    there = {"http://127.0.0.1:7860": served.url, "street.jpg": "scene.png", "facebook/detr-resnet-50": "detr-digits"}
    for stand_in, real in there.items():
        assert stand_in in block
        block = block.replace(stand_in, real)
    namespace: dict = {}
    exec(compile(block, "docs/app.md", "exec"), namespace)
    assert namespace["found"] == found.record()
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(Exception, match=r"broken\.png.*of no format that is known"):
        client.predict(gradio_client.handle_file("broken.png"), "detr-digits", 0.7, api_name="/detect")
    assert list(client.view_api(return_format="dict")["named_endpoints"]) == ["/detect"]


def test_fifty_at_once(browser, tmp_path):
    """All are answered, a visitor sees how many wait, memory does not grow from round to round, and no file stays."""
    pictures = []
    for number in range(50):
        pictures.append(tmp_path / f"{number}.png")
        scene().rotate(7 * number).save(pictures[-1])
    with serving(tmp_path / "tmp") as server:
        patient = {"verbose": False, "httpx_kwargs": {"timeout": 600}}
        clients = [gradio_client.Client(server.url, **patient, max_workers=25) for _ in range(2)]
        memory, queue = [], ""
        made = Visit(browser, server.url, 1280, "light")
        for turn in range(4):
            start = time.perf_counter()
            jobs = [
                clients[number % 2].submit(
                    gradio_client.handle_file(str(pictures[number])), "detr-digits", 0.7, api_name="/detect"
                )
                for number in range(50)
            ]
            if turn == 1:
                while httpx.get(f"{server.url}gradio_api/queue/status", timeout=60).json()["queue_size"] < 10:
                    time.sleep(0.05)  # a busy machine sends them slowly, and there is no queue yet
                made.give(("scene.png", SCENE.read_bytes()))
                # read in the moment it is there: on a quick machine the queue is short
                shown = "() => (document.body.innerText.match(/queue: ?\\d+\\/\\d+/) || [null])[0]"
                queue = made.page.wait_for_function(shown).json_value()
                made.page.screenshot(path=SHOTS / "queue.png")
            assert sum(len(job.result()["objects"]) for job in jobs) > 50
            memory.append(server.memory_mb())
            print(f"\nround {turn}: 50 in {time.perf_counter() - start:.1f} s, {memory[-1]:.0f} MB; {queue!r}")
        made.waits_for("5 objects in scene.png")
        assert len(server.files()) <= 50  # what programs sent, until it is swept
        made.close(tmp_path / "tmp")
    assert queue and memory[-1] - memory[1] < 50, memory
