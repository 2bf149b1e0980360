"""W&B for real, offline, and everything that may go wrong with it. No network is needed."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mathverify_sweep import environment, tracking
from mathverify_sweep.specs import OF_VERDICTS, BaseModelSpec, DataSpec, Metrics, RunResult, RunSpec, TrainParams
from mathverify_sweep.states import EndReason
from mathverify_sweep.tracking import QUEUE_LIMIT, Tracker, TrackingSettings

PATIENCE = 60.0
"""Seconds that a busy machine may take for what takes one."""

METRICS = Metrics(
    rows=200,
    accuracy=0.9,
    accuracy_low=0.85,
    accuracy_high=0.94,
    precision=0.88,
    recall=0.87,
    f1=0.875,
    log_loss=0.3,
    auc=0.95,
    true_positives=70,
    false_positives=10,
    true_negatives=110,
    false_negatives=10,
    threshold=0.1,
    accuracy_at_threshold=0.905,
)


def spec(stage: int | None = None) -> RunSpec:
    return RunSpec(
        study_name="fractions",
        trial_number=7,
        stage=stage,
        base_model=BaseModelSpec(),
        data=DataSpec(),
        data_fingerprint="f00d",
        params=TrainParams(learning_rate=3e-4, lora_r=8),
        train_rows=1_000,
        start_from=("abc",) if stage else (),
    )


def result(reason: EndReason) -> RunResult:
    told = {"rows_seen": 1_000, "started_from": "abc", "rows_digest": "d1ce"}
    return RunResult(end_reason=reason, value=0.9, metrics=METRICS, **told)


def inspect(folder: str, *options: str) -> str:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *options, folder]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def summarised(folder: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(inspect(folder, "--summary"))
    return loaded


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_of_a_run_that_solves_the_summary_has_pass_at_1_and_no_figures_of_verdicts() -> None:
    solved = Metrics(task="solving", rows=200, accuracy=0.9, accuracy_low=0.85, accuracy_high=0.94)
    told = tracking._summary(spec(), result(EndReason.FINISHED).model_copy(update={"metrics": solved}))
    assert (told["accuracy"], told["rows"]) == (0.9, 200)
    assert not OF_VERDICTS & told.keys()


def test_an_offline_run_holds_config_curves_summary_and_lineage(tmp_path: Path) -> None:
    tracker = Tracker(TrackingSettings(project="sums"))
    run = tracker.start("r1-a", spec(stage=2), tmp_path / "r1")
    for rows_seen in (250, 500):
        run.log(rows_seen, {"loss": 1 / rows_seen, "validation_accuracy": rows_seen / 1_000})
    run.finish(result(EndReason.FINISHED))
    tracker.close(PATIENCE)

    assert run.link is not None
    assert Path(run.link).is_relative_to(tmp_path / "r1" / "wandb")
    told = summarised(run.link)
    assert (told["run_id"], told["name"], told["project"]) == ("r1-a", "trial-7-stage-2", "sums")
    assert told["tags"] == ["stage", "trial-7"]
    assert (told["state"], told["exit_code"]) == ("finished", 0)
    config = told["config"]
    assert (config["learning_rate"], config["lora_r"], config["alpha"]) == (3e-4, 8, 16)
    assert (config["trial_number"], config["stage"], config["start_from"]) == (7, 2, ["abc"])
    assert config["data_fingerprint"] == "f00d"
    summary = told["summary"]
    assert (summary["validation_accuracy"], summary["auc"], summary["end_reason"]) == (0.9, 0.95, "finished")
    assert summary["started_from"] == "abc"
    assert summary["rows_digest"] == "d1ce"
    code = json.loads(environment.described())
    assert (config["code_commit"], config["code_version"]) == (code["commit"], code["version"])
    table = json.loads((Path(run.link) / "files" / summary["final"]["path"]).read_text())
    assert ["accuracy_high", 0.94] in table["data"]

    records = [json.loads(line) for line in inspect(run.link).splitlines()]
    rows = [record["history"]["item"] for record in records if record["type"] == "history"]
    assert [(r["rows_seen"], r["validation_accuracy"]) for r in rows if "loss" in r] == [(250, 0.25), (500, 0.5)]
    assert any(r.get("metric", {}).get("step_metric") == "rows_seen" for r in records)
    assert any(r.get("run", {}).get("run_group") == "fractions" for r in records)


def test_another_attempt_holds_the_curve_of_those_before_it(tmp_path: Path) -> None:
    tracker = Tracker(TrackingSettings())
    run = tracker.start("r1-a", spec(), tmp_path / "again", earlier=[(250, {"loss": 0.75}), (500, {"loss": 0.5})])
    run.log(750, {"loss": 0.25})
    run.finish(result(EndReason.FINISHED))
    tracker.close(PATIENCE)

    assert run.link is not None
    records = [json.loads(line) for line in inspect(run.link).splitlines()]
    rows = [record["history"]["item"] for record in records if record["type"] == "history"]
    assert [(row["rows_seen"], row["loss"]) for row in rows if "loss" in row] == [(250, 0.75), (500, 0.5), (750, 0.25)]


def test_the_death_of_wandbs_own_process_costs_the_runs_that_were_open(tmp_path: Path) -> None:
    # In a process of its own: W&B never waits for its dead child, which Python mentions at the end.
    code = f"from tests.test_tracking import *; outlive_wandb(Path({str(tmp_path)!r}))"
    ended = subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1], capture_output=True)

    link = ended.stdout.decode().splitlines()[-1]
    assert summarised(link)["summary"]["loss"] == 0.5


def outlive_wandb(folder: Path) -> None:
    """Lose W&B's process under one run, and draw another; prints where that one is."""
    tracker = Tracker(TrackingSettings())
    lost = tracker.start("lost", spec(), folder / "lost")
    deadline = time.monotonic() + PATIENCE
    while lost.link is None and time.monotonic() < deadline:
        time.sleep(0.05)
    for child in psutil.Process().children(recursive=True):
        child.kill()
    lost.log(10, {"loss": 1.0})
    lost.finish(result(EndReason.FINISHED))
    kept = tracker.start("kept", spec(), folder / "kept")
    kept.log(10, {"loss": 0.5})
    kept.finish(result(EndReason.FINISHED))
    tracker.close(PATIENCE)
    sys.stdout.write(f"{kept.link}\n")


def test_runs_follow_one_another_and_overlap_in_one_process(tmp_path: Path) -> None:
    tracker = Tracker(TrackingSettings())
    first = tracker.start("one", spec(), tmp_path / "one")
    second = tracker.start("two", spec(), tmp_path / "two")
    first.log(10, {"loss": 1.0})
    second.log(10, {"loss": 2.0})
    first.finish(result(EndReason.PRUNED))
    second.finish(result(EndReason.PREEMPTED))
    third = tracker.start("three", spec(), tmp_path / "three")
    tracker.close(PATIENCE)

    told = [summarised(str(run.link)) for run in (first, second, third)]
    assert [t["summary"].get("loss") for t in told] == [1.0, 2.0, None]
    # Preempted, and left open by the worker: not zero.
    assert [t["exit_code"] for t in told] == [0, 1, 1]


def test_a_disabled_tracker_writes_nothing_and_never_imports_wandb(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from tests.test_tracking import *\n"
        "tracker = Tracker(TrackingSettings(mode='disabled'))\n"
        f"run = tracker.start('x', spec(), Path({str(tmp_path)!r}) / 'x')\n"
        "run.log(1, {'loss': 1.0}); run.finish(result(EndReason.FINISHED)); tracker.close()\n"
        "assert run.link is None and 'wandb' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=Path(__file__).parents[1])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_costs_one_log_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    tracker = Tracker(TrackingSettings())
    run = tracker.start("x", spec(), tmp_path / "file" / "x")
    run.log(1, {"loss": 1.0})
    run.finish(result(EndReason.FINISHED))
    tracker.close(PATIENCE)
    assert run.link is None
    assert [record.levelno for record in caplog.records if record.name.endswith("tracking")] == [logging.WARNING]


@pytest.mark.parametrize("key", ["", "hunter2-is-no-key", "k" * 40])
def test_online_without_a_key_or_a_server_goes_offline_soon_and_keeps_the_key_to_itself(
    key: str,
    tmp_path: Path,
    silent_server: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", silent_server)
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    tracker = Tracker(TrackingSettings(mode="online", start_timeout=2.0))
    began = time.monotonic()
    runs = [tracker.start(f"run{i}", spec(), tmp_path / str(i)) for i in range(2)]
    for run in runs:
        run.log(10, {"loss": 0.5})
        run.finish(result(EndReason.FINISHED))
    assert time.monotonic() - began < 1.5, "nobody waits for W&B"
    tracker.close(PATIENCE)
    assert time.monotonic() - began < PATIENCE

    assert [summarised(str(run.link))["summary"]["loss"] for run in runs] == [0.5, 0.5]
    lines = [record.getMessage() for record in caplog.records if record.name.endswith("tracking")]
    assert len(lines) == 1, "the second run does not try again so soon"
    assert "recorded offline" in lines[0]
    said = caplog.text + "".join(capfd.readouterr())
    assert not key or key not in said


def test_points_are_dropped_rather_than_kept_for_ever(
    tmp_path: Path, silent_server: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", silent_server)
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    tracker = Tracker(TrackingSettings(mode="online", start_timeout=3.0))
    run = tracker.start("x", spec(), tmp_path)
    for rows_seen in range(QUEUE_LIMIT + 500):
        run.log(rows_seen, {"loss": 0.5})
    run.finish(result(EndReason.FINISHED))
    tracker.close(PATIENCE)
    assert sum("points behind" in record.getMessage() for record in caplog.records) == 1
    assert summarised(str(run.link))["summary"]["rows_seen"] == 1_000
