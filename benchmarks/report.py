"""How large a report of 1,000 images is, how long it takes, and how smoothly a browser scrolls it.

    python benchmarks/report.py --out benchmarks/report.md

The images are noise, which no picture format makes smaller: no other images make a larger report. Frames are those of
headless Chromium (selenium, chromium-driver) while the page is scrolled from top to bottom, 300 pixels a frame.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from page import publish
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from skl_transformaly import BlockStudents, TimmExtractor, TransformalyDetector, __version__
from skl_transformaly.cli.report import write_report

SCREENS = {"desktop": (1280, 900), "phone": (390, 844)}
SCROLL = """
const done = arguments[0], gaps = [], height = document.documentElement.scrollHeight;
let last = performance.now(), y = 0;
function frame(now) {
    gaps.push(now - last); last = now; y += 300; window.scrollTo(0, y);
    if (y < height) requestAnimationFrame(frame); else done(gaps);
}
requestAnimationFrame(frame);
"""


def measure(page: Path, width: int, height: int, driver: str) -> list[str]:
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", f"--window-size={width},{height}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(driver))
    try:
        browser.set_script_timeout(120)
        start = time.perf_counter()
        browser.get(page.as_uri())
        loaded = time.perf_counter() - start
        gaps = np.array(browser.execute_async_script(SCROLL))
        errors = len(browser.get_log("browser"))
    finally:
        browser.quit()
    times = [f"{value:.0f}" for value in (np.median(gaps), np.percentile(gaps, 99), gaps.max())]
    return [f"{loaded:.1f}", str(len(gaps)), *times, str(errors)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--driver", default="/usr/bin/chromedriver")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{i:04}.png") for i in range(options.images)]
        for path in paths:
            Image.fromarray(rng.integers(0, 256, (200, 260, 3), dtype=np.uint8)).save(path, compress_level=0)
        extractor = TimmExtractor("tf_efficientnet_lite0", weights="bundled", image_size=96)
        detector = TransformalyDetector(extractor, students=BlockStudents(max_epochs=1), random_state=0).fit(paths[:60])
        start = time.perf_counter()
        detector.score_samples(paths)
        scored = time.perf_counter() - start
        page = Path(folder, "report.html")
        start = time.perf_counter()
        made = write_report(detector, paths, page)
        seconds = time.perf_counter() - start
        rows = [[name, *measure(page, *size, options.driver)] for name, size in SCREENS.items()]
    lines = [
        "# A report of many images",
        "",
        f"`python benchmarks/report.py`: {options.images} images of noise, EfficientNet-lite0 at 96 pixels, "
        f"skl-transformaly {__version__}. {made['bytes'] / 1e6:.1f} MB; {seconds:.0f} s to write, where scoring alone "
        f"takes {scored:.0f} s.",
        "",
        "| screen | opened, s | frames | median, ms | 99 %, ms | longest, ms | console messages |",
        "|---|---|---|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    publish(lines, options.out)


if __name__ == "__main__":
    main()
