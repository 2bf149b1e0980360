"""The carrier takes what others need to the URL while a run trains, and a URL that is away costs no run."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

import psutil
import pytest

from mathverify_sweep import depot, paths
from mathverify_sweep.worker import carrier
from mathverify_sweep.worker.carrier import Carrier
from tests.flows.commands import SWEEP, Shell, ended

PATIENCE_SECONDS = 10.0


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a machine; the URL is a folder that others see too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "ann"))
    monkeypatch.setattr(carrier, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(carrier, "TRIES_SECONDS", 0.05)
    return depot.opened(f"file://{tmp_path}/shared")


def carrier_of(output: Path) -> Carrier:
    """Of a worker that nobody tells to end."""
    return Carrier(output, lambda: None)


def take_away(tmp_path: Path) -> None:
    """The URL: what it has is there again after `give_back`."""
    (tmp_path / "shared").mkdir(exist_ok=True)
    (tmp_path / "shared").rename(tmp_path / "shared-away")
    (tmp_path / "shared").write_text("not a folder")


def give_back(tmp_path: Path) -> None:
    (tmp_path / "shared").unlink()
    (tmp_path / "shared-away").rename(tmp_path / "shared")


def run_with(output: Path, *checkpoints: int) -> Path:
    folder = paths.run_folder(output, "s", "run", "token")
    for rows in checkpoints:
        (folder / "checkpoints" / str(rows)).mkdir(parents=True)
        (folder / "checkpoints" / str(rows) / "weights").write_bytes(b"1" * rows)
    return folder


def leave_adapter(folder: Path) -> None:
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "weights").write_bytes(b"2")


def there(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "shared").rglob("*.manifest"))


def deliver(ours: Carrier, folder: Path, *, checkpoints: bool) -> None:
    """And wait until that run's end would be said."""
    said: list[Path] = []
    ours.deliver(folder, lambda: said.append(folder), checkpoints=checkpoints)
    ours.settle_all()
    assert said == [folder]


def wait_for(tmp_path: Path, expected: list[str]) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while there(tmp_path) != expected:
        assert time.monotonic() < until, there(tmp_path)
        time.sleep(0.01)


def test_checkpoints_are_carried_while_a_run_trains_and_old_ones_go(output: Path, tmp_path: Path) -> None:
    ours = carrier_of(output)
    folder = run_with(output, 100, 200)
    ours.follow(folder)
    wait_for(tmp_path, ["100.manifest", "200.manifest"])
    run_with(output, 300)
    shutil.rmtree(folder / "checkpoints" / "100")
    wait_for(tmp_path, ["200.manifest", "300.manifest"])
    leave_adapter(folder)
    deliver(ours, folder, checkpoints=True)
    assert there(tmp_path) == ["200.manifest", "300.manifest", "adapter.manifest"]


def test_what_a_run_goes_on_from_is_brought_to_a_machine_that_does_not_have_it(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_with(output, 100, 200)
    leave_adapter(folder)
    deliver(carrier_of(output), folder, checkpoints=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "bob"))
    other = depot.opened(f"file://{tmp_path}/shared")
    theirs = paths.run_folder(other, "s", "run", "token")
    carrier_of(other).bring([theirs, theirs.with_name("never-was")], theirs / "adapter").result(PATIENCE_SECONDS)
    assert [path.name for path in paths.checkpoints(theirs)] == ["100", "200"]
    assert (theirs / "adapter").is_dir()


def test_a_url_that_is_away_is_waited_for_as_long_as_there_is_time_and_no_longer(
    output: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    take_away(tmp_path)
    ours, folder = carrier_of(output), run_with(output, 100)
    began = time.monotonic()
    ours.hurry(0.3)
    deliver(ours, folder, checkpoints=True)
    ours.finish()
    assert time.monotonic() - began < PATIENCE_SECONDS
    assert "NotADirectoryError" in caplog.text
    assert "It is tried again" in caplog.text
    assert f"what is in {folder} did not get to the output's URL" in caplog.text


def test_checkpoints_that_cannot_be_fetched_hold_no_run_back(output: Path, tmp_path: Path) -> None:
    take_away(tmp_path)
    carrier_of(output).bring([run_with(output, 100)], None).result(PATIENCE_SECONDS)


def test_an_adapter_is_waited_for_until_the_url_is_back_or_nobody_wants_it(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = run_with(output)
    leave_adapter(folder)
    deliver(carrier_of(output), folder, checkpoints=False)
    take_away(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "bob"))
    other = depot.opened(f"file://{tmp_path}/shared")
    theirs = carrier_of(other)
    adapter = paths.run_folder(other, "s", "run", "token") / "adapter"
    wanted, unwanted = theirs.bring([], adapter), theirs.bring([], adapter.with_name("other"))
    with pytest.raises(TimeoutError):
        wanted.result(0.3)
    assert unwanted.cancel()
    assert caplog.text.count("A run waits for the adapter that it starts from") == 2, "said once for each"
    give_back(tmp_path)
    wanted.result(PATIENCE_SECONDS)
    assert adapter.is_dir()


@pytest.mark.parametrize("damaged", [False, True])
def test_an_adapter_that_the_url_does_not_have_whole_is_tried_some_times(
    output: Path, tmp_path: Path, damaged: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(carrier, "ABSENT_SECONDS", (0.05, 0.05))
    folder = run_with(output)
    if damaged:
        leave_adapter(folder)
        deliver(carrier_of(output), folder, checkpoints=False)
        (weights,) = (tmp_path / "shared").rglob("weights")
        weights.write_bytes(b"3")
        shutil.rmtree(folder / "adapter")
    carrier_of(output).bring([], folder / "adapter").result(PATIENCE_SECONDS)
    assert not (folder / "adapter").exists()
    assert caplog.text.count("is not whole at the output's URL; a run waits some time for it") == 1
    assert caplog.text.count("is not as it was written") == (3 if damaged else 0)


def test_an_adapter_that_comes_late_gets_to_the_url_all_the_same_and_is_waited_for_once(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(carrier, "DELIVER_SECONDS", 0.5)
    take_away(tmp_path)
    ours, folder = carrier_of(output), run_with(output)
    leave_adapter(folder)
    deliver(ours, folder, checkpoints=False)
    assert f"what is in {folder} is not at the output's URL yet" in caplog.text
    began = time.monotonic()
    for number in range(10):
        leave_adapter(folder.with_name(f"other-{number}"))
        deliver(ours, folder.with_name(f"other-{number}"), checkpoints=False)
    assert time.monotonic() - began < 0.5 * 10 / 2
    give_back(tmp_path)
    wait_for(tmp_path, ["adapter.manifest"] * 11)
    ours.finish()
    assert "did not get to" not in caplog.text


def test_of_a_run_that_nobody_goes_on_from_only_the_adapter_is_carried(output: Path, tmp_path: Path) -> None:
    ours, folder = carrier_of(output), run_with(output, 100, 200)
    leave_adapter(folder)
    deliver(ours, folder, checkpoints=False)
    assert there(tmp_path) == ["adapter.manifest"]


def test_an_adapter_waits_for_no_checkpoint(output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its own run, or of another that is on its way at that moment."""
    monkeypatch.setattr(carrier, "DELIVER_SECONDS", 0.5)
    leave, reached, push = threading.Event(), threading.Event(), depot.Depot.push

    def slow(self: depot.Depot, folder: Path) -> None:
        if folder.parent.name == "checkpoints":
            reached.set()
            leave.wait(PATIENCE_SECONDS)
        push(self, folder)

    monkeypatch.setattr(depot.Depot, "push", slow)
    ours, folder = carrier_of(output), run_with(output, 100)
    ours.follow(folder)
    assert reached.wait(PATIENCE_SECONDS)
    leave_adapter(folder)
    deliver(ours, folder, checkpoints=True)
    assert there(tmp_path) == ["adapter.manifest"]
    leave.set()
    wait_for(tmp_path, ["100.manifest", "adapter.manifest"])


def test_who_is_told_to_end_waits_no_longer(output: Path, tmp_path: Path) -> None:
    take_away(tmp_path)
    told: list[str] = []
    ours, folder = Carrier(output, lambda: told[0] if told else None), run_with(output, 100)
    ours.deliver(folder, lambda: None, checkpoints=True)
    threading.Timer(0.3, told.append, ["signal 15"]).start()
    began = time.monotonic()
    ours.finish()
    assert 0.2 < time.monotonic() - began < PATIENCE_SECONDS
    give_back(tmp_path)
    ours.hurry(PATIENCE_SECONDS)
    ours.settle_all()
    assert there(tmp_path) == ["100.manifest"], "what is left of the notice is used"


def test_while_one_runs_end_waits_nobody_else_does(output: Path, tmp_path: Path) -> None:
    take_away(tmp_path)
    ours, folder, said = carrier_of(output), run_with(output), []
    leave_adapter(folder)
    began = time.monotonic()
    ours.deliver(folder, lambda: said.append(there(tmp_path)), checkpoints=False)
    ours.settle()
    assert time.monotonic() - began < carrier.DELIVER_SECONDS / 2
    assert ours.is_delivering
    give_back(tmp_path)
    ours.settle_all()
    assert said == [["adapter.manifest"]], "once, when the adapter is there"


def test_a_folder_that_cannot_be_carried_is_in_nobodys_way(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter without a file, and behind it an adapter and a checkpoint of others."""
    monkeypatch.setattr(carrier, "DELIVER_SECONDS", 0.2)
    ours, whole = carrier_of(output), run_with(output, 100)
    (whole.with_name("empty") / "adapter").mkdir(parents=True)
    deliver(ours, whole.with_name("empty"), checkpoints=False)
    monkeypatch.setattr(carrier, "DELIVER_SECONDS", PATIENCE_SECONDS)
    leave_adapter(whole)
    deliver(ours, whole, checkpoints=True)
    assert there(tmp_path) == ["100.manifest", "adapter.manifest"]


def held_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Shell, subprocess.Popen[str]]:
    """A worker with stage 2, whose adapter another machine has trained, while the URL is away."""
    monkeypatch.setenv("MVSWEEP_OUTPUT", f"file://{tmp_path}/shared")
    monkeypatch.setenv("MVSWEEP_REHEARSAL_SECONDS", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "ann"))
    shell = Shell.at(tmp_path, f"sqlite:///{tmp_path / 'mvsweep.sqlite3'}", SWEEP.replace("trials: 4", "trials: 1"))
    shell.run("create", "flow.yaml")
    ended(shell.worker("--engine", "rehearsal", "--until-idle"))
    shell.run("promote", "flow")
    ended(shell.worker("--engine", "rehearsal", "--count", "1"))
    take_away(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "bob"))
    worker = shell.worker("--engine", "rehearsal", "--hang-seconds", "10", "--until-idle")
    shell.wait_until(lambda report: any(run.stage == 2 for run in report.running))
    return shell, worker


@pytest.mark.slow
def test_a_stage_waits_for_its_adapter_while_the_url_is_away_and_then_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than any that trains may be silent for; and the engine, which has not heard of it, may die meanwhile."""
    shell, worker = held_back(tmp_path, monkeypatch)
    (engine,) = (each for each in psutil.Process(worker.pid).children() if "worker.child" in " ".join(each.cmdline()))
    engine.kill()
    time.sleep(12)
    assert len(shell.status().running) == 1
    give_back(tmp_path)
    log = ended(worker)
    assert "A run waits for the adapter that it starts from" in log
    assert "killed by signal 9" in log
    assert re.findall(r"ended ([a-z_]+)", log) == ["finished", "finished"], "stages 2 and 3, at the first attempt"


@pytest.mark.slow
def test_the_next_trial_trains_while_the_end_of_the_one_before_waits_for_the_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the one slot that there is: both are the worker's, and only one of them is trained."""
    monkeypatch.setenv("MVSWEEP_OUTPUT", f"file://{tmp_path}/shared")
    monkeypatch.setenv("MVSWEEP_REHEARSAL_SECONDS", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "ann"))
    shell = Shell.at(tmp_path, f"sqlite:///{tmp_path / 'mvsweep.sqlite3'}", SWEEP.replace("trials: 4", "trials: 2"))
    shell.run("create", "flow.yaml")
    take_away(tmp_path)
    worker = shell.worker("--engine", "rehearsal", "--slots", "1", "--until-idle")
    shell.wait_until(lambda report: len(report.running) == 2)
    give_back(tmp_path)
    log = ended(worker)
    assert re.findall(r"ended ([a-z_]+)", log) == ["finished", "finished"]
    assert there(tmp_path) == ["adapter.manifest"] * 2


@pytest.mark.slow
def test_a_stage_that_waits_for_its_adapter_can_be_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shell, worker = held_back(tmp_path, monkeypatch)
    shell.run("stop", "flow", "--now")
    assert "ended lease_expired" in ended(worker, 1)


def test_with_a_folder_on_a_disk_there_is_nothing_to_carry(tmp_path: Path) -> None:
    ours = carrier_of(tmp_path)
    assert ours.bring([tmp_path / "run"], None).done()
    deliver(ours, tmp_path / "run", checkpoints=True)
    ours.finish()
