"""Claims about what optuna-dashboard shows of a trial."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import optuna
import pytest
from optuna_dashboard import get_note
from sqlalchemy.engine import Engine

from mathverify_sweep.config import SweepConfig
from mathverify_sweep.specs import Metrics, RunResult
from mathverify_sweep.states import EndReason
from mathverify_sweep.store import runs, studies
from mathverify_sweep.store.runs import Budget, Point, RunRecord, WorkerIdentity
from mathverify_sweep.study import artifacts, drawings
from mathverify_sweep.study.study import StudyHandle, create, open_study

NOW = datetime(2026, 1, 1, tzinfo=UTC)
POINTS = (Point(10, loss=0.7, value=0.6), Point(20, loss=0.5), Point(40, value=0.8))
sqlite_only = pytest.mark.parametrize("backend", ["sqlite"])


def figures() -> Metrics:
    numbers: dict[str, Any] = dict.fromkeys(Metrics.model_fields, 0.5)
    counts = {"true_positives": 40, "false_positives": 10, "true_negatives": 45, "false_negatives": 5}
    return Metrics.model_validate(numbers | counts | {"task": "verification", "rows": 100, "accuracy": 0.85})


@pytest.fixture
def handle(engine: Engine) -> Iterator[StudyHandle]:
    create(engine, SweepConfig(study="s"), "f", NOW)
    studies.save_baselines(engine, "s", json.dumps({"bag_of_words": figures().model_dump() | {"accuracy": 0.61}}))
    with open_study(engine, "s") as handle:
        yield handle


def ended_run(engine: Engine, handle: StudyHandle, result: RunResult) -> RunRecord:
    claim = runs.reserve(engine, "s", WorkerIdentity("w", "host-1", 1, "cuda:0"), Budget(None, None, None), NOW)
    asked = handle.ask()
    assert claim is not None
    assert asked is not None
    runs.attach(engine, claim, asked.trial_number, handle.config.trial_spec(asked.trial_number, asked.params, "f"))
    runs.finish(engine, claim, result, NOW)
    return runs.get(engine, claim.run_id)


def shown(handle: StudyHandle) -> tuple[str, list[optuna.artifacts.ArtifactMeta]]:
    trial = handle._trial(0)
    return get_note(trial), optuna.artifacts.get_all_artifact_meta(trial)


@sqlite_only
def test_a_note_and_drawings_stand_beside_the_trial(engine: Engine, handle: StudyHandle, tmp_path: Path) -> None:
    result = RunResult(end_reason=EndReason.FINISHED, value=0.85, metrics=figures(), rows_seen=80)
    run = ended_run(engine, handle, result)
    handle.show(run, POINTS, "https://wandb.ai/x", tmp_path / "artifacts")
    note, metas = shown(handle)
    for said in (run.run_id, "finished", "**0.8500**", "bag of words | 0.6100", "https://wandb.ai/x", "host-1"):
        assert said in note
    assert {meta.filename for meta in metas} == {"learning_curve.svg", "confusion_matrix.svg"}
    for meta in metas:
        assert meta.mimetype == "image/svg+xml"
        ElementTree.parse(tmp_path / "artifacts" / meta.artifact_id)
    assert handle.trials()[0].user_attrs["wandb"] == "https://wandb.ai/x"


@sqlite_only
def test_what_a_machine_is_called_or_a_crash_says_is_no_markup(engine: Engine, handle: StudyHandle) -> None:
    evil = "</script>\n<img src=x onerror=alert(1)>"
    crashed = RunResult(end_reason=EndReason.CRASHED, message=f"```\n{evil}\n```")
    run = dataclasses.replace(ended_run(engine, handle, crashed), worker=WorkerIdentity("w", evil, 1, evil))
    outside_fences = re.sub(r"^```$.*?^```$", "", artifacts.note(artifacts.Page(run, (), None, {})), flags=re.M | re.S)
    assert "Trained on" in outside_fences
    assert "<" not in outside_fences


@sqlite_only
def test_showing_twice_changes_nothing(engine: Engine, handle: StudyHandle, tmp_path: Path) -> None:
    result = RunResult(end_reason=EndReason.FINISHED, value=0.85, metrics=figures(), rows_seen=80)
    run = ended_run(engine, handle, result)
    for _ in range(2):
        handle.show(run, POINTS, None, tmp_path)
    handle.tell(0, result)
    handle.show(run, POINTS, "too late", tmp_path)
    note, metas = shown(handle)
    assert len(metas) == 2
    assert "too late" not in note


@sqlite_only
def test_a_run_that_came_to_nothing_says_why(engine: Engine, handle: StudyHandle, tmp_path: Path) -> None:
    run = ended_run(engine, handle, RunResult(end_reason=EndReason.CRASHED, message="Boom\n```at line 3"))
    handle.show(run, (), None, tmp_path)
    note, metas = shown(handle)
    assert "crashed" in note
    assert "Boom\n'''at line 3" in note
    assert metas == []


@sqlite_only
def test_a_full_disk_costs_a_drawing_and_not_the_trial(
    engine: Engine, handle: StudyHandle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = ended_run(engine, handle, RunResult(end_reason=EndReason.FINISHED, value=0.85, rows_seen=80))
    occupied = tmp_path / "a file"
    occupied.touch()
    handle.show(run, POINTS, None, occupied)
    assert "nothing to show" in caplog.text


@pytest.mark.parametrize(
    ("losses", "values"),
    [
        ([], [(10.0, 0.5)]),
        ([(1.0, 0.5)], []),
        ([(float(i), 1.0 / (i + 1)) for i in range(5000)], [(10.0, 0.5), (20.0, 0.5)]),
        ([(1.0, 0.0), (2.0, 0.0)], []),
    ],
)
def test_any_curve_can_be_drawn(losses: list[tuple[float, float]], values: list[tuple[float, float]]) -> None:
    drawn = drawings.learning_curve(losses, values, "a < b")
    ElementTree.fromstring(drawn)
    assert len(drawn) < 40_000
