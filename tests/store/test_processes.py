"""Several processes on one database: everything is handed out once."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
from sqlalchemy.engine import Engine

from mathverify_sweep.specs import RunSpec
from mathverify_sweep.store import runs, studies
from mathverify_sweep.store.database import prepare_sqlite

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def answers_of(processes: int, script: str, *arguments: str) -> list[Any]:
    """What the scripts said, having started at once."""
    command = [sys.executable, str(Path(__file__).parent / script), *arguments]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started = [subprocess.Popen(command, text=True, **pipes) for _ in range(processes)]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    said = []
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in started:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "")
        said.append(json.loads(out))
    return said


def test_two_workers_split_a_study_exactly(engine: Engine, spec: RunSpec) -> None:
    studies.create(engine, studies.StudyRecord("s", "{}", "f", None, None, NOW))
    queued = [runs.enqueue(engine, spec.model_copy(update={"trial_number": n, "stage": 1}), NOW) for n in range(20)]
    url = engine.url.render_as_string(hide_password=False)
    ann, bob = answers_of(2, "claiming_worker.py", url, spec.model_dump_json())
    assert sorted(ann["claimed"] + bob["claimed"]) == sorted(queued)
    assert len(set(ann["reserved"] + bob["reserved"])) == len(ann["reserved"] + bob["reserved"]) == 20
    trials = [run for run in runs.runs(engine, "s") if run.stage is None]
    assert len(trials) == 20


def test_optunas_queue_on_sqlite_hands_out_each_trial_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/optuna.sqlite3"
    storage = optuna.storages.RDBStorage(url)
    prepare_sqlite(storage.engine)
    study = optuna.create_study(study_name="s", storage=storage)
    for x in range(100):
        study.enqueue_trial({"x": x})
    storage.engine.dispose()
    got = answers_of(8, "asking_worker.py", url)
    assert sorted(x for each in got for x in each) == list(range(100))
