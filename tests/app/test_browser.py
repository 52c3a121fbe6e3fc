"""The page as a person uses it, in Chromium: by mouse and by keyboard, small and large, dark and light."""

import json
import time

import pytest
from browsing import browser, served, shot, until
from checkpoints import said_by_predict, save_tiny
from helpers import moving_bar, write_video

pytest.importorskip("starlette", reason="needs frameflex[app]")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    root = tmp_path_factory.mktemp("browser")
    save_tiny(root / "tiny.safetensors")
    write_video(root / "clip.mp4", moving_bar(40, rightwards=True, size=96))
    write_video(root / "long.mp4", moving_bar(120, rightwards=False, size=96))
    (root / "notes.txt").write_text("just text")
    return root


@pytest.fixture(scope="module")
def address(things):
    with served(things / "tiny.safetensors", "--source", things / "long.mp4") as (address, _):
        yield address


def bars(page):
    """Labels and probabilities, as shown."""
    return page.eval_on_selector_all(
        "#bars li",
        "items => items.map(i => [i.querySelector('.label').textContent, i.querySelector('.value').textContent])",
    )


def as_shown(predictions):
    return [[one["label"], f"{100 * one['probability']:.1f} %"] for one in predictions]


def open_page(page, address):
    page.goto(address)
    page.wait_for_selector("#network:not(:empty)")


def drop(page, path, selector="#drop", *, size=None):
    """Drop a file, as from the desktop; with ``size`` one of so many bytes that nobody has to hold."""
    content = list(path.read_bytes())
    page.evaluate(
        """([content, name, size, selector]) => {
            const file = new File([new Uint8Array(content)], name);
            if (size) Object.defineProperty(file, "size", {value: size});
            const transfer = new DataTransfer();
            transfer.items.add(file);
            const event = new DragEvent("drop", {bubbles: true, cancelable: true});
            Object.defineProperty(event, "dataTransfer", {value: size ? {files: [file]} : transfer});
            document.querySelector(selector).dispatchEvent(event);
        }""",
        [content, path.name, size, selector],
    )


def assert_nothing_overflows(page, width):
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = page.evaluate(
        """() => [...document.querySelectorAll('main *, header *')].filter(e => e.checkVisibility()
            && !e.closest('.strip, .sr-only, .hidden-input')
            && e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.outerHTML.slice(0, 90))"""
    )
    assert outside == []


def test_a_dropped_clip_is_answered_as_predict_would_at_any_number_of_frames(
    things, address, tmp_path, capsys
):
    with browser(tmp_path) as (page, problems):
        open_page(page, address)
        drop(page, things / "clip.mp4")
        page.wait_for_selector("#bars li")
        assert bars(page) == as_shown(said_by_predict(things, capsys, "clip.mp4")[0]["predictions"])
        assert page.locator("#strip img").count() == 8
        page.wait_for_selector("#curve svg polyline")
        page.fill("#frames", "3")
        until(page, "document.querySelectorAll('#strip img').length === 3")
        [expected] = said_by_predict(things, capsys, "clip.mp4", "--frames", "3")
        assert bars(page) == as_shown(expected["predictions"])
        assert "GFLOPs" in page.text_content("#gflops")
        until(page, "document.querySelector('#player').videoWidth === 96")
        shot(page, "try")
    assert problems == []


def test_a_clip_is_recorded_with_the_camera(address, tmp_path):
    with browser(tmp_path) as (page, problems):
        open_page(page, address)
        page.select_option("#record-seconds", "2")
        page.click("#record")
        page.wait_for_selector("#countdown:not([hidden])")
        shot(page, "recording")
        page.wait_for_selector("#bars li")
        assert page.text_content("#clip-facts").startswith("recording: ")
        assert page.locator("#record").text_content() == "Record"
        assert page.evaluate("document.querySelector('#preview').srcObject") is None  # the camera is off
    assert problems == []


@pytest.mark.parametrize(
    ("camera", "words"), [("none", "No camera was found"), ("refused", "may not use the camera")]
)
def test_without_a_camera_the_page_says_so_and_goes_on(things, address, tmp_path, camera, words):
    with browser(tmp_path, camera=camera) as (page, problems):
        open_page(page, address)
        page.click("#record")
        page.wait_for_selector("#notice:not([hidden])")
        assert words in page.text_content("#notice")
        drop(page, things / "clip.mp4")
        page.wait_for_selector("#bars li")
        assert page.is_hidden("#notice")
    assert problems == []


def test_what_is_no_video_or_too_large_is_said_and_the_next_clip_works(things, address, tmp_path):
    with browser(tmp_path) as (page, problems):
        open_page(page, address)
        drop(page, things / "notes.txt")
        page.wait_for_selector("#notice:not([hidden])")
        assert "notes.txt: not a video file" in page.text_content("#notice")
        shot(page, "text")
        drop(page, things / "clip.mp4", size=3 * 2**30)
        until(page, "document.querySelector('#notice').textContent.includes('3.0 GiB')")
        assert "at most 2.0 GiB" in page.text_content("#notice")
        drop(page, things / "clip.mp4", "header")  # beside the field
        page.wait_for_selector("#bars li")
        assert page.url == address
    assert problems == []


def test_a_pasted_clip_is_taken(things, address, tmp_path):
    with browser(tmp_path) as (page, problems):
        open_page(page, address)
        page.evaluate(
            """([content]) => {
                const transfer = new DataTransfer();
                transfer.items.add(new File([new Uint8Array(content)], "pasted.mp4"));
                const event = new ClipboardEvent("paste", {clipboardData: transfer, bubbles: true});
                document.body.dispatchEvent(event);
            }""",
            [list((things / "clip.mp4").read_bytes())],
        )
        page.wait_for_selector("#bars li")
        assert page.text_content("#clip-facts").startswith("pasted.mp4: 3.3 s")
    assert problems == []


def test_a_long_video_has_a_timeline_that_plays_along(things, address, tmp_path, capsys):
    with browser(tmp_path) as (page, problems):
        open_page(page, address)
        page.set_input_files("#file", things / "long.mp4")
        until(page, "/event/.test(document.querySelector('#timeline-progress').textContent)")
        said = said_by_predict(things, capsys, "long.mp4", "--window", "2s", "--frames", "8")
        expected = [one["event"] for one in said if "event" in one]
        shown = page.locator("#events button").all_text_contents()
        assert len(shown) == len(expected) > 0
        for text, event in zip(shown, expected, strict=True):
            assert event["label"] in text
            assert f"{100 * event['probability']:.1f} %" in text
        page.click("#player")  # pause
        page.evaluate("document.querySelector('#player').pause()")
        page.locator("#events button").last.click()
        start = expected[-1]["start_seconds"]
        until(page, f"Math.abs(document.querySelector('#player').currentTime - {start}) < 0.1")
        assert page.text_content("#now") == expected[-1]["label"]
        place = float(page.get_attribute("#playhead", "x1"))
        assert place == pytest.approx(100 * start, abs=10)
        shot(page, "timeline")
    assert problems == []


def test_why_shows_maps_importance_and_the_clip_backwards(things, address, tmp_path):
    from frameflex.deploy.recognizer import Recognizer

    recognizer = Recognizer.from_checkpoint(things / "tiny.safetensors", device="cpu")
    with browser(tmp_path) as (page, problems):
        open_page(page, address)
        page.set_input_files("#file", things / "clip.mp4")
        page.wait_for_selector("#bars li")
        page.click("#tab-why")
        page.wait_for_selector("#why-strip img")
        page.select_option("#why-class", label="nothing")
        expected = recognizer.explain(things / "clip.mp4", label="nothing").importance.tolist()
        shown = [f"{'+' if lost >= 0 else '−'}{100 * abs(lost):.1f} %" for lost in expected]
        until(
            page,
            "[...document.querySelectorAll('.lost')].map(e => e.textContent).join() === "
            + json.dumps(",".join(shown)),
        )
        assert page.locator("#why-backwards li").count() == 3
        shot(page, "why")
    assert problems == []


def test_the_camera_is_watched_with_events_and_latency(address, tmp_path):
    with browser(tmp_path) as (page, problems):
        open_page(page, address)
        page.click("#tab-live")
        page.click("#live-start")
        page.wait_for_selector("#live-bars li")
        until(page, "/^[0-9]+ ms$/.test(document.querySelector('#live-latency').textContent)")
        page.wait_for_selector("#live-log li")
        until(page, "/pictures a second/.test(document.querySelector('#live-pace').textContent)")
        time.sleep(2)
        shot(page, "live")
        assert page.text_content("#live-now") in ("going left", "going right", "")
        page.click("#live-start")
        assert page.text_content("#live-start") == "Start"
        assert page.evaluate("document.querySelector('#live-video').srcObject") is None  # the camera is off
        assert page.locator("#live-log .on").count() == 0
        page.select_option("#live-source", label=page.locator("#live-source option").last.text_content())
        page.click("#live-start")
        page.wait_for_selector("#live-picture:not([hidden])")
        shot(page, "live-source")
        page.click("#tab-try")
        assert page.text_content("#live-start") == "Start"
    assert problems == []


def test_live_without_a_camera_is_said(address, tmp_path):
    with browser(tmp_path, camera="none") as (page, problems):
        open_page(page, address)
        page.click("#tab-live")
        page.click("#live-start")
        page.wait_for_selector("#notice:not([hidden])")
        assert "No camera was found" in page.text_content("#notice")
        assert page.text_content("#live-start") == "Start"
    assert problems == []


def test_classes_are_taught_by_recording_dropping_and_cutting_and_a_network_comes_of_it(things, tmp_path):
    folders = ("--videos", tmp_path / "my_videos", "--runs", tmp_path / "runs")
    with served(things / "tiny.safetensors", *folders) as (address, _), browser(tmp_path) as (page, problems):
        open_page(page, address)
        page.click("#tab-teach")
        for name in ("right", "left"):
            page.fill("#teach-name", name)
            page.keyboard.press("Enter")
            until(page, f"document.querySelector('#teach-classes').textContent.includes('{name}')")
        page.fill("#teach-name", "../x")
        page.keyboard.press("Enter")
        page.wait_for_selector("#notice:not([hidden])")
        assert "'../x' has '/'" in page.text_content("#notice")
        page.click("#class-record-1")  # classes are in the order of their names
        shot(page, "teach-recording")
        until(page, "document.querySelectorAll('#teach-classes img').length === 1")
        for i in range(3):
            clip = write_video(tmp_path / f"left{i}.mp4", moving_bar(20, rightwards=False, seed=i))
            drop(page, clip, "#teach-classes > li:nth-child(1)")
        page.set_input_files("#class-file-1", things / "clip.mp4")
        until(page, "document.querySelectorAll('#teach-classes img').length === 5")
        drop(page, things / "notes.txt", "#teach-classes > li:nth-child(1)")
        until(page, "/not a video file/.test(document.querySelector('#notice').textContent)")
        page.click("#teach-cutting summary")
        page.set_input_files("#cut-file", things / "long.mp4")
        page.wait_for_selector("#cut-controls:not([hidden])")
        page.select_option("#cut-class", "left")
        page.click("#cut-add")
        until(page, "document.querySelectorAll('#teach-classes img').length === 6")
        until(page, "/of 6 clips/.test(document.querySelector('#teach-standing').textContent)")
        page.set_input_files("#teach-ask-file", tmp_path / "left1.mp4")
        page.wait_for_selector("#teach-told li")
        assert page.locator("#teach-told .label").first.text_content() == "left"
        page.click("#clip-out-0-0")
        until(page, "document.querySelectorAll('#teach-classes img').length === 5")
        page.click("#teach-put-back")
        until(page, "document.querySelectorAll('#teach-classes img').length === 6")
        page.fill("#train-minutes", "0.3")
        page.click("#train-start")
        until(page, "document.querySelector('#train-stop').checkVisibility()")
        page.close()  # the training goes on
        page = page.context.new_page()
        open_page(page, address)
        page.click("#tab-teach")
        until(page, "/^done/.test(document.querySelector('#train-state').textContent)", seconds=120)
        shot(page, "teach")
        page.click("#train-use")
        until(page, "document.querySelector('#network').textContent === 'best.safetensors'")
        page.click("#tab-try")
        page.set_input_files("#file", things / "clip.mp4")
        page.wait_for_selector("#bars li")
        assert sorted(label for label, _ in bars(page)) == ["left", "right"]
    assert problems == []


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (390, "dark"), (1280, "dark")])
def test_nothing_overflows_small_or_large_dark_or_light(things, address, tmp_path, width, scheme):
    with browser(tmp_path, width=width, scheme=scheme) as (page, problems):
        open_page(page, address)
        page.set_input_files("#file", things / "long.mp4")
        until(page, "/event/.test(document.querySelector('#timeline-progress').textContent)")
        for room in page.locator("[role=tab]").all():
            room.click()
            time.sleep(0.3)
            shot(page, f"{room.text_content()}-{width}-{scheme}")
            assert_nothing_overflows(page, width)
    assert problems == []


def test_the_keyboard_alone_does_everything(things, address, tmp_path):
    with browser(tmp_path) as (page, problems):
        open_page(page, address)
        reached = []
        for _ in range(12):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.id"))
        for name in ("tab-try", "file", "record", "record-seconds", "frames"):
            assert name in reached
        page.set_input_files("#file", things / "clip.mp4")
        page.wait_for_selector("#bars li")
        page.focus("#frames")
        page.keyboard.press("Home")
        until(page, "document.querySelectorAll('#strip img').length === 1")
        page.focus("#tab-try")
        page.keyboard.press("ArrowRight")
        assert page.get_attribute("#tab-why", "aria-selected") == "true"
        assert page.is_visible("#room-why")
    assert problems == []


def test_a_connection_that_is_lost_comes_back_with_the_clip(things, tmp_path):
    with browser(tmp_path) as (page, problems):
        with served(things / "tiny.safetensors") as (address, _):
            open_page(page, address)
            drop(page, things / "clip.mp4")
            page.wait_for_selector("#bars li")
        page.wait_for_selector("#notice:not([hidden])")
        assert "connection to frameflex is lost" in page.text_content("#notice")
        port = address.rstrip("/").rpartition(":")[2]
        with served(things / "tiny.safetensors", "--port", port):
            page.wait_for_selector("#notice", state="hidden")
            page.fill("#frames", "2")
            until(page, "document.querySelectorAll('#strip img').length === 2")
    assert [text for text in problems if "WebSocket" not in text] == []
