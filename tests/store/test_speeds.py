"""How fast a worker is stays as it was measured before it trained, on both databases."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy.engine import Engine

from mathverify_sweep.specs import RunSpec
from mathverify_sweep.store import runs, speeds, studies
from mathverify_sweep.store.runs import WorkerIdentity

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_study_has_the_rates_of_its_own_workers_as_they_were_first_said(engine: Engine, spec: RunSpec) -> None:
    for name in ("s", "t"):
        studies.create(engine, studies.StudyRecord(name, "{}", "f", None, None, NOW))
        runs.enqueue(engine, spec.model_copy(update={"study_name": name}), NOW)
        worker = WorkerIdentity(f"worker-of-{name}", "host", 1, "cpu")
        assert runs.claim_waiting(engine, name, worker, NOW)
        speeds.record(engine, worker.worker_id, f'"first of {name}"')
        speeds.record(engine, worker.worker_id, '"second"')
    assert speeds.of_study(engine, "s") == {"worker-of-s": '"first of s"'}
