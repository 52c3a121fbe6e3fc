"""The picture of the page in the README: `frameflex app` in a headless Chromium, on a clip of the bundled benchmark.

python tools/page_picture.py runs/motion/best.safetensors motion/20bn-something-something-v2/46.mp4 app.png
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request

from playwright.sync_api import sync_playwright

PORT = 8123
SWITCHES = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("clip")
    parser.add_argument("picture")
    args = parser.parse_args()
    command = [sys.executable, "-m", "frameflex", "app", args.checkpoint, "--port", str(PORT), "--no-browser"]
    page = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(f"http://127.0.0.1:{PORT}/")
        take(args.clip, args.picture)
    finally:
        page.terminate()
        page.wait()


def wait_for(address: str) -> None:
    for _ in range(300):
        try:
            with urllib.request.urlopen(address, timeout=1):
                return
        except OSError:
            time.sleep(0.2)
    raise SystemExit(f"{address}: no answer after a minute")


def take(clip: str, picture: str) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as profile, sync_playwright() as playwright:
        browser = playwright.chromium.launch_persistent_context(
            profile, executable_path=chromium, args=SWITCHES, viewport={"width": 1000, "height": 760}
        )
        tab = browser.new_page()
        tab.goto(f"http://127.0.0.1:{PORT}/")
        tab.set_input_files("input[type=file]", clip)
        tab.wait_for_selector("#bars li")
        time.sleep(8)  # for the answer at every number of frames
        tab.screenshot(path=picture, full_page=True)
        browser.close()


if __name__ == "__main__":
    main()
