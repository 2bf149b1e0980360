"""Several processes on one database: everything is handed out once."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import optuna
from sqlalchemy.engine import Engine

from mathverify_sweep.specs import RunSpec
from mathverify_sweep.store import runs, studies
from mathverify_sweep.store.database import prepare_sqlite
from tests.at_once import answers_of

HERE = Path(__file__).parent
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_two_workers_split_a_study_exactly(engine: Engine, spec: RunSpec) -> None:
    studies.create(engine, studies.StudyRecord("s", "{}", "f", None, None, NOW))
    queued = [runs.enqueue(engine, spec.model_copy(update={"trial_number": n, "stage": 1}), NOW) for n in range(20)]
    url = engine.url.render_as_string(hide_password=False)
    ann, bob = answers_of(2, HERE / "claiming_worker.py", url, spec.model_dump_json())
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
    got = answers_of(8, HERE / "asking_worker.py", url)
    assert sorted(x for each in got for x in each) == list(range(100))
