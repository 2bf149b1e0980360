"""The carrier takes what others need to the URL while a run trains, and a URL that is away costs no run."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from mathverify_sweep import depot, paths
from mathverify_sweep.worker import carrier
from mathverify_sweep.worker.carrier import Carrier

PATIENCE_SECONDS = 10.0


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a machine; the URL is a folder that others see too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "ann"))
    monkeypatch.setattr(carrier, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(carrier, "TRIES_SECONDS", 0.05)
    return depot.opened(f"file://{tmp_path}/shared")


def run_with(output: Path, *checkpoints: int) -> Path:
    folder = paths.run_folder(output, "s", "run", "token")
    for rows in checkpoints:
        (folder / "checkpoints" / str(rows)).mkdir(parents=True)
        (folder / "checkpoints" / str(rows) / "weights").write_bytes(b"1" * rows)
    return folder


def there(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "shared").rglob("*.manifest"))


def wait_for(tmp_path: Path, expected: list[str]) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while there(tmp_path) != expected:
        assert time.monotonic() < until, there(tmp_path)
        time.sleep(0.01)


def test_checkpoints_are_carried_while_a_run_trains_and_old_ones_go(output: Path, tmp_path: Path) -> None:
    ours = Carrier(output)
    folder = run_with(output, 100, 200)
    ours.follow(folder)
    wait_for(tmp_path, ["100.manifest", "200.manifest"])
    run_with(output, 300)
    shutil.rmtree(folder / "checkpoints" / "100")
    wait_for(tmp_path, ["200.manifest", "300.manifest"])
    (folder / "adapter").mkdir()
    (folder / "adapter" / "weights").write_bytes(b"2")
    ours.deliver(folder)
    assert there(tmp_path) == ["200.manifest", "300.manifest", "adapter.manifest"]


def test_what_a_run_goes_on_from_is_brought_to_a_machine_that_does_not_have_it(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_with(output, 100, 200)
    (folder / "adapter").mkdir()
    Carrier(output).deliver(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "bob"))
    other = depot.opened(f"file://{tmp_path}/shared")
    theirs = paths.run_folder(other, "s", "run", "token")
    Carrier(other).bring([theirs, theirs.with_name("never-was")], theirs / "adapter").result(PATIENCE_SECONDS)
    assert [path.name for path in paths.checkpoints(theirs)] == ["100", "200"]
    assert (theirs / "adapter").is_dir()


def test_a_url_that_is_away_is_waited_for_as_long_as_there_is_time_and_no_longer(
    output: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "shared").write_text("not a folder")
    ours, folder = Carrier(output), run_with(output, 100)
    began = time.monotonic()
    ours.hurry(0.3)
    ours.deliver(folder)
    assert time.monotonic() - began < PATIENCE_SECONDS
    assert "It is tried again" in caplog.text
    assert "did not get to the output's URL" in caplog.text
    ours.bring([folder], folder / "adapter").result(PATIENCE_SECONDS)


def test_with_a_folder_on_a_disk_there_is_nothing_to_carry(tmp_path: Path) -> None:
    ours = Carrier(tmp_path)
    assert ours.bring([tmp_path / "run"], None).done()
    ours.deliver(tmp_path / "run")
