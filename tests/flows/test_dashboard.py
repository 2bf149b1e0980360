"""What people open in a browser, in a real one: optuna-dashboard on our database, and the study's page.

Skipped only where no Chromium is installed (Debian: `apt-get install chromium`).
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from mathverify_sweep import paths
from mathverify_sweep.reports import html
from mathverify_sweep.store.database import connect, upgrade
from tests import chromium
from tests.example_study import NAME, Player, empty, example_database

pytestmark = pytest.mark.skipif(chromium.find() is None, reason="no Chromium is installed: apt-get install chromium")

NOW = datetime(2026, 3, 2, 12, 30, tzinfo=UTC)
SHOTS = os.environ.get("MVSWEEP_TEST_SCREENSHOTS")
IMAGES = "[...document.images].filter((image) => image.complete && image.naturalWidth > 100).length"


def photograph(page: chromium.Page, name: str) -> None:
    """Keep a picture for a person to look at, when one asked for it."""
    if SHOTS:
        page.screenshot(Path(SHOTS) / f"{name}.png")


@contextmanager
def served(url: str, output: Path) -> Iterator[str]:
    """`mvsweep dashboard`'s server in a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code = (
        "import sys; from pathlib import Path\n"
        "from mathverify_sweep.store.database import connect; from mathverify_sweep.study import dashboard\n"
        "dashboard.serve(connect(sys.argv[1]), Path(sys.argv[2]), '127.0.0.1', int(sys.argv[3]))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, url, str(output), str(port)], stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}"
        until = time.monotonic() + 60
        while True:
            try:
                httpx.get(f"{address}/api/studies", timeout=5)
                break
            except httpx.TransportError:
                assert time.monotonic() < until, "optuna-dashboard did not start"
                time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(20)


def test_optuna_dashboard_shows_the_study_a_trials_note_and_its_pictures(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.sqlite3'}"
    engine = connect(url)
    upgrade(engine)
    with empty(engine) as handle:
        handle.enqueue({"learning_rate": 6e-4, "lora_r": 16, "lr_scheduler_type": "cosine"})
        Player(engine, handle, paths.artifacts_folder(tmp_path)).trial()
    engine.dispose()
    with served(url, tmp_path) as address, chromium.page(tmp_path / "profile") as page:
        page.send("Emulation.setDeviceMetricsOverride", width=1200, height=1700, deviceScaleFactor=1, mobile=False)
        page.open(f"{address}/dashboard")
        page.wait_for(f"document.body.innerText.includes('{NAME}')")
        study_id = httpx.get(f"{address}/api/studies").json()["study_summaries"][0]["study_id"]
        page.open(f"{address}/dashboard/studies/{study_id}/trials?numbers=0")
        page.wait_for("document.body.innerText.includes('Artifacts')")
        text = page.wait_for("document.body.innerText.includes('finished') && document.body.innerText")
        assert "0.88" in text, "the note gives the accuracy"
        assert "offline-run-" in text, "and where W&B's files are"
        page.wait_for(f"{IMAGES} >= 2")
        photograph(page, "optuna-dashboard")
        assert page.errors == []


def test_the_studys_page_draws_every_plot_without_a_complaint(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    with example_database(tmp_path) as engine:
        html.write(engine, NAME, file, NOW)
    with chromium.page(tmp_path / "profile") as page:
        for name, scheme, width in (("light", "light", 1200), ("dark", "dark", 1200), ("phone", "dark", 390)):
            page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            page.send(
                "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500
            )
            page.open(file.as_uri())
            page.wait_for("document.documentElement.dataset.drawn === 'yes'")
            drawn = page.evaluate(
                "[...document.querySelectorAll('.figure')].map((f) => f.querySelectorAll('.trace, .bars').length)"
            )
            assert len(drawn) == 8
            assert all(drawn), "every plot has marks"
            assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing sticks out sideways"
            background = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert background == ("rgb(18, 22, 28)" if scheme == "dark" else "rgb(255, 255, 255)")
            assert page.errors == []
            assert all(url.startswith(("file://", "data:", "blob:")) for url in page.requests)
            photograph(page, f"report-{name}")


def test_the_table_sorts_by_the_column_that_is_clicked(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    with example_database(tmp_path) as engine:
        html.write(engine, NAME, file, NOW)
    column = "[...document.querySelectorAll('tbody')[0].rows].map((row) => row.cells[1].dataset.value)"
    click = "[...document.querySelectorAll('th button')].find((b) => b.textContent === 'trial').click()"
    with chromium.page(tmp_path / "profile") as page:
        page.open(file.as_uri())
        page.wait_for("document.documentElement.dataset.drawn === 'yes'")
        page.evaluate(click)
        numbers = page.evaluate(column)
        assert numbers[:3] == ["13", "12", "11"]
        assert numbers[-2:] == ["", ""], "what has no number stays last"
        page.evaluate(click)
        assert page.evaluate(column)[:3] == ["0", "1", "2"]
