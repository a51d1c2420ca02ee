"""The page in a real browser: `make test-page`, which has gradio, playwright and Chromium; skipped elsewhere."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from detr_hf import Detector
from detr_hf.checkpoints.embedded import demo_scene_path, embedded_model_path

from .inputs import GIVEN, MAX_MB, MAX_MEGAPIXELS, encoded, scene
from .serving import ROOT, Visit, serving

gradio_client = pytest.importorskip("gradio_client", reason="gradio is not installed: make test-page")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-page")
httpx = pytest.importorskip("httpx", reason="gradio is not installed: make test-page")
CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("no Chromium: apt-get install chromium-headless-shell", allow_module_level=True)

pytestmark = pytest.mark.timeout(1200)
SHOTS = ROOT / "out" / "page"
LOOKS = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]
CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
SCENE = demo_scene_path()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    limits = ("--max-mb", str(MAX_MB), "--max-megapixels", str(MAX_MEGAPIXELS))
    with serving(tmp_path_factory.mktemp("served") / "tmp", *limits) as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *CAMERA])
        yield opened
        opened.close()


@pytest.fixture
def visit(served, browser, request):
    width, scheme = getattr(request, "param", LOOKS[0])
    made = Visit(browser, served.url, width, scheme, permissions=["clipboard-read", "clipboard-write", "camera"])
    yield made
    made.close(served.temporary)


def timed(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    return time.perf_counter() - start


def test_it_listens_soon(tmp_path):
    """Within 1.3 times what importing gradio and `detr-hf demo` take together."""
    ratios: list[float] = []
    for number in range(3):
        if ratios and min(ratios) <= 1.3:
            break
        parts = timed([sys.executable, "-c", "import gradio"])
        parts += timed([sys.executable, "-m", "detr_hf", "demo", "--out", str(tmp_path / "demo.png")])
        with serving(tmp_path / str(number)) as server:
            ratios.append(server.seconds / parts)
            print(f"\nlistening after {server.seconds:.1f} s; import gradio and demo take {parts:.1f} s")
    assert min(ratios) <= 1.3


# ------------------------------------------------------------------------------------------------------------ a visit


@pytest.mark.parametrize("visit", LOOKS, ids=lambda look: f"{look[0]}-{look[1]}", indirect=True)
def test_a_visit(visit, request):
    page, look = visit.page, request.node.callspec.id
    SHOTS.mkdir(parents=True, exist_ok=True)

    def shoot(name: str) -> None:
        page.wait_for_timeout(200)
        page.screenshot(path=SHOTS / f"{look}_{name}.png", full_page=True)

    shoot("1_empty")
    visit.give(("scene.png", SCENE.read_bytes()))
    visit.waits_for("5 objects in scene.png")
    shoot("2_boxes")
    page.locator(".object:visible").first.click()
    page.wait_for_selector(".heat", state="attached")
    assert "of its attention lies in its box" in page.locator("[data-told]").inner_text()
    shoot("3_attention")
    box = page.locator("[data-picture] svg").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.5)
    page.wait_for_selector(".place", state="attached")
    x, y = map(int, re.search(r"place at (\d+), (\d+)", page.locator("[data-told]").inner_text()).groups())
    assert abs(x - 256) <= 2 and abs(y - 256) <= 2
    shoot("4_encoder")
    page.keyboard.press("Escape")
    assert page.locator(".heat").count() == 0
    visit.give(("two.png", encoded(scene().rotate(180))), ("broken.jpg", b"no picture"))
    visit.waits_for("in two.png")
    visit.says("broken.jpg")
    page.locator(".strip button").nth(2).wait_for()
    shoot("5_several")
    widths = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert widths[0] <= widths[1], "the page is wider than the screen"


def test_boxes_come_within_two_seconds(visit):
    taken = []
    for number in range(4):
        start = time.perf_counter()
        visit.give((f"{number}.png", SCENE.read_bytes()))
        visit.waits_for(f"5 objects in {number}.png")
        taken.append(time.perf_counter() - start)
    visit.page.locator(".object:visible").first.click()
    start = time.perf_counter()
    visit.page.wait_for_selector(".heat", state="attached")
    attention = time.perf_counter() - start
    print(f"\nboxes after {', '.join(f'{one:.2f}' for one in taken)} s; attention after {attention:.2f} s")
    assert min(taken) < 2


def test_the_threshold_answers_in_the_browser(visit):
    page = visit.page
    page.click("[data-example]")
    visit.waits_for("5 objects")
    asked = len(visit.requests)
    found = Detector.from_pretrained(embedded_model_path())(SCENE, 0.05)
    taken = []
    for threshold in np.arange(0.05, 1, 0.05).round(2).tolist():
        kept, milliseconds = page.evaluate(
            """async (threshold) => {
                const slider = document.querySelector("[data-threshold]"), start = performance.now();
                slider.value = threshold;
                slider.dispatchEvent(new Event("input"));
                await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
                const objects = [...document.querySelectorAll(".object")];
                const rows = [...document.querySelectorAll("[data-rows] tr")];
                const seen = (list) => list.filter((one) => one.checkVisibility()).length;
                return [[seen(objects), seen(rows)], performance.now() - start];
            }""",
            threshold,
        )
        taken.append(milliseconds)
        assert kept == [len(found.filter(threshold=threshold))] * 2
    print(f"\nthreshold: {sorted(taken)[len(taken) // 2]:.1f} ms, {max(taken):.1f} at most, to the next frame")
    assert "Nothing over 0.95; the best is 0.9" in page.locator("[data-count]").inner_text() or len(found) == 0
    assert sorted(taken)[len(taken) // 2] < 50
    assert len(visit.requests) == asked


def test_a_crowd_is_filtered_in_time(visit):
    """300 objects, as many as a model has queries."""
    page = visit.page
    page.click("[data-example]")
    visit.waits_for("5 objects")
    milliseconds = page.evaluate("""async () => {
        const stage = document.querySelector(".objects"), row = document.querySelector("[data-rows] tr");
        const first = stage.querySelector(".object");
        for (let number = 0; number < 300; number += 1) {
            stage.append(first.cloneNode(true));
            row.parentNode.append(row.cloneNode(true));
        }
        const slider = document.querySelector("[data-threshold]"), taken = [];
        for (let value = 0.05; value < 0.95; value += 0.05) {
            const start = performance.now();
            slider.value = value;
            slider.dispatchEvent(new Event("input"));
            await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
            taken.push(performance.now() - start);
        }
        return taken.sort((a, b) => a - b)[9];
    }""")
    print(f"\nthreshold with 300 objects more: {milliseconds:.1f} ms")
    assert milliseconds < 50


def test_the_keyboard_reaches_objects_and_places(visit):
    page = visit.page
    page.click("[data-example]")
    visit.waits_for("5 objects")
    page.focus("[data-picture]")
    page.keyboard.press("Tab")
    index = page.evaluate("document.activeElement.dataset.index")
    page.keyboard.press("Enter")
    page.wait_for_selector(f'.object.chosen[data-index="{index}"]')
    page.keyboard.press("Escape")
    page.focus("[data-picture]")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(".place", state="attached")
    assert "at 282, 256" in page.locator("[data-told]").inner_text()
    page.locator("[data-rows] tr").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector('.object.chosen[data-index="0"]')


def test_classes_are_switched_off_and_on(visit):
    page = visit.page
    page.click("[data-example]")
    visit.waits_for("5 objects")
    page.click('[data-classes] [data-name="8"]')
    visit.waits_for("3 objects")
    assert page.locator(".object:visible").count() == 3
    page.click('[data-classes] [data-name="8"]')
    visit.waits_for("5 objects")


def test_downloads_are_the_detectors(visit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(SCENE, "scene.png")
    direct = Detector.from_pretrained(embedded_model_path())("scene.png", 0.9)
    visit.give(("scene.png", SCENE.read_bytes()))
    visit.waits_for("objects in scene.png")
    visit.page.evaluate("""() => {
        const slider = document.querySelector("[data-threshold]");
        slider.value = 0.9;
        slider.dispatchEvent(new Event("input"));
    }""")
    kept = {}
    for kind in ("json", "svg"):
        with visit.page.expect_download() as download:
            visit.page.click(f'[data-save="{kind}"]')
        assert download.value.suggested_filename == f"scene_boxes.{kind}"
        kept[kind] = Path(download.value.path()).read_text(encoding="utf-8")
    assert json.loads(kept["json"]) == direct.to_dict()
    assert kept["svg"] == direct.to_svg()


def test_a_picture_is_pasted(visit):
    visit.page.evaluate(
        """async (bytes) => {
            const blob = new Blob([new Uint8Array(bytes)], { type: "image/png" });
            await navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]);
        }""",
        list(SCENE.read_bytes()),
    )
    visit.page.keyboard.press("Control+V")
    visit.waits_for("5 objects in image.png")
    visit.page.click("[data-paste]")
    visit.waits_for("5 objects in pasted.png")


def test_files_are_dropped(visit):
    visit.page.evaluate(
        """(bytes) => {
            const data = new DataTransfer();
            for (const name of ["a.png", "b.png"]) data.items.add(new File([new Uint8Array(bytes)], name));
            const drop = document.querySelector("[data-drop]");
            drop.dispatchEvent(new DragEvent("drop", { dataTransfer: data, cancelable: true }));
        }""",
        list(SCENE.read_bytes()),
    )
    visit.waits_for("5 objects in a.png")
    visit.page.locator(".strip button").nth(1).click()
    visit.waits_for("5 objects in b.png")


def test_the_camera_takes_a_picture(visit):
    page = visit.page
    page.click("[data-camera]")
    page.wait_for_function("document.querySelector('video').videoWidth > 0")
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / "camera.png")
    page.click("[data-shoot]")
    visit.waits_for("camera.jpg")
    assert page.evaluate("document.querySelector('video').srcObject") is None


# ------------------------------------------------------------------------------------------------------------- faults


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
                made.page.wait_for_timeout(500)
                made.give(("scene.png", SCENE.read_bytes()))
                line = made.page.get_by_text(re.compile(r"queue: ?\d+/\d+")).first
                line.wait_for()
                queue = line.inner_text()
                made.page.screenshot(path=SHOTS / "queue.png")
            assert sum(len(job.result()["objects"]) for job in jobs) > 50
            memory.append(server.memory_mb())
            print(f"\nround {turn}: 50 in {time.perf_counter() - start:.1f} s, {memory[-1]:.0f} MB; {queue!r}")
        made.waits_for("5 objects in scene.png")
        assert len(server.files()) <= 50  # what programs sent, until it is swept
        made.close(tmp_path / "tmp")
    assert queue and memory[-1] - memory[1] < 50, memory
