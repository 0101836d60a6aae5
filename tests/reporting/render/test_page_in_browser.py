"""The page in a real browser; skipped where there is no Chromium."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.reporting.fake_runs import AFFINITY, BASE, SHORT, RunMaker, decay
from tests.reporting.pictures import pixels
from tests.reporting.render.test_page import write

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no chromium, chromium-browser or google-chrome on this machine"
)

REPORTS = ("table1", "table3", "figure5", "figure9")
LONG_NAME = "a-run-of-a-very-long-name-" * 6
MEASURE = """<script>
addEventListener("load", () => {
  const root = document.documentElement;
  const said = `${root.clientWidth} ${root.scrollWidth} ${document.querySelectorAll("section").length}`;
  (parent === window ? document.body : parent).postMessage?.(said, "*");
  if (parent === window) document.body.dataset.said = said;
});
</script>"""


def browse(profile: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += ["--no-first-run", "--disable-extensions", "--disable-background-networking", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={profile}", "--enable-logging=stderr", "--virtual-time-budget=2000", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The browser's own files: made anew they cost more than a page."""
    return tmp_path_factory.mktemp("profile")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    make = RunMaker(folder / "runs")
    for seed in range(2):
        for overrides, mass in ((BASE, 0.1), (AFFINITY, 0.4)):
            fields = {**overrides, **SHORT, "train.test_curve": True, "data.flip": False}
            name = f"{LONG_NAME}{mass}-{seed}"
            make.train(fields, 0.9, seed, curve=decay(2, 0.9, mass), name=name)
    return write(make, folder / "out", REPORTS)


def framed(page: Path, width: int, height: int) -> Path:
    """A page that shows `page` in a frame of that width: a window cannot be as narrow as a phone."""
    copy = page.with_name("measured.html")
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{MEASURE}</body>"), encoding="utf-8")
    frame = page.with_name(f"frame{width}.html")
    frame.write_text(
        '<!DOCTYPE html><body style="margin:0"><script>addEventListener("message", (event) => '
        "{ document.body.dataset.said = event.data; });</script>"
        f'<iframe src="{copy.name}" style="border:0;width:{width}px;height:{height}px"></iframe></body>'
    )
    return frame


@pytest.mark.parametrize("width", [375, 1280])
def test_the_page_is_no_wider_than_the_window_and_wide_tables_scroll_in_their_box(
    page: Path, profile: Path, width: int
) -> None:
    dumped = browse(profile, "--dump-dom", framed(page, width, 800).as_uri())
    said = re.search(r'data-said="(\d+) (\d+) (\d+)"', dumped.stdout)
    assert said is not None
    assert int(said[1]) == width
    assert int(said[2]) == width
    assert int(said[3]) > 8
    assert "CONSOLE" not in dumped.stderr


def test_the_page_has_a_picture_on_a_phone_in_light_and_on_a_desk_in_dark(
    page: Path, profile: Path, tmp_path: Path
) -> None:
    shown = {}
    for name, width, dark in (("phone", 375, 0), ("desk", 1280, 1)):
        picture = tmp_path / f"{name}.png"
        schemes = ["--blink-settings=preferredColorScheme=0"] if dark else []
        place = framed(page, width, 900) if width == 375 else page
        browse(profile, *schemes, f"--screenshot={picture}", f"--window-size={max(width, 500)},900", place.as_uri())
        shown[name] = pixels(picture.read_bytes())[:, :width]
    assert all(len(np.unique(picture.reshape(-1, 3), axis=0)) > 20 for picture in shown.values())
    assert np.median(shown["phone"]) > 240
    assert np.median(shown["desk"]) < 40


def test_the_page_prints(page: Path, profile: Path, tmp_path: Path) -> None:
    printed = tmp_path / "page.pdf"
    browse(profile, f"--print-to-pdf={printed}", "--no-pdf-header-footer", page.as_uri())
    assert printed.read_bytes().startswith(b"%PDF-")
    assert printed.stat().st_size > 20_000
