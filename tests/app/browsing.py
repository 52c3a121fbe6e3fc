"""Chromium with a fake camera, on the page of a `frameflex app` that runs in a process of its own."""

import contextlib
import os
import shutil
import time

import numpy as np
import pytest
from checkpoints import command
from helpers import moving_bar

SWITCHES = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]


def write_y4m(path, frames, *, fps=12):
    """RGB ``(N, H, W, 3)`` as a file that Chromium takes for its camera."""
    import av

    number, height, width = frames.shape[:3]
    with open(path, "wb") as file:
        file.write(f"YUV4MPEG2 W{width} H{height} F{fps}:1 Ip A1:1 C420jpeg\n".encode())
        for i in range(number):
            planes = (
                av.VideoFrame.from_ndarray(frames[i], format="rgb24").reformat(format="yuv420p").to_ndarray()
            )
            file.write(b"FRAME\n" + planes.tobytes())
    return path


def camera_frames(num_frames=48):
    """A bar that moves to the right, at a webcam's size."""
    small = moving_bar(num_frames, rightwards=True, size=48)
    return np.ascontiguousarray(small.repeat(5, 1)[:, :240].repeat(7, 2)[:, :, :320])


@contextlib.contextmanager
def browser(tmp_path, *, camera="fake", width=1280, scheme="light"):
    """A page of Chromium, and what went wrong in it; ``camera`` is "fake", "none" or "refused"."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("needs Chromium, and none is in PATH")
    switches = list(SWITCHES)
    if camera == "fake":
        film = write_y4m(tmp_path / "camera.y4m", camera_frames())
        switches += ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
        switches += [f"--use-file-for-fake-video-capture={film}"]
    elif camera == "refused":
        switches += ["--use-fake-device-for-media-stream", "--deny-permission-prompts"]
    problems = []
    with sync_api.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(tmp_path / f"profile-{len(list(tmp_path.iterdir()))}"),
            executable_path=chromium,
            headless=True,
            args=switches,
            viewport={"width": width, "height": 900},
            color_scheme=scheme,
        )
        context.set_default_timeout(30_000)

        def watch(page):
            page.on("console", lambda message: problems.append(f"{message.type}: {message.text}"))
            page.on("pageerror", lambda error: problems.append(str(error)))

        context.on("page", watch)
        page = context.new_page()
        try:
            yield page, problems
        finally:
            context.close()


@contextlib.contextmanager
def served(checkpoint, *options):
    """The address of a page, and its process."""
    arguments = ["app", checkpoint, "--port", 0, "--no-browser", "--device", "cpu", "--workers", 1, *options]
    arguments += ["--precision", "float32"]  # as the tests' own
    with command(*arguments) as (port, process):
        yield f"http://127.0.0.1:{port}/", process


def until(page, expression, *, seconds=30.0):
    """Wait until something is so; Playwright's own way evaluates a string, which the page's policy forbids."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"not so after {seconds:g} s: {expression}"
        time.sleep(0.05)


def shot(page, name):
    """A picture of the page, where ``FRAMEFLEX_SHOTS`` names a folder for them."""
    if folder := os.environ.get("FRAMEFLEX_SHOTS"):
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)
