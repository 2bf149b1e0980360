"""The code of a run's worker and a run's exports, on both databases."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from sqlalchemy.engine import Engine

from mathverify_sweep import environment
from mathverify_sweep.specs import RunSpec
from mathverify_sweep.store import provenance, runs, studies
from mathverify_sweep.store.provenance import ExportRecord
from mathverify_sweep.store.runs import WorkerIdentity

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_run_names_the_code_of_its_worker_which_is_kept_once(engine: Engine, spec: RunSpec) -> None:
    studies.create(engine, studies.StudyRecord("s", "{}", "f", None, None, NOW))
    code = provenance.environment_id("{}")
    run_id = runs.enqueue(engine, spec, NOW)
    runs.claim_waiting(engine, "s", WorkerIdentity.of_this_process("cpu", 60.0, code), NOW)
    for _ in range(2):
        provenance.record_environment(engine, "{}")
    worker = runs.get(engine, run_id).worker
    assert worker is not None
    assert worker.environment_id == code
    assert provenance.environment(engine, code) == "{}"
    assert provenance.environment(engine, None) is None


def test_exports_are_told_the_oldest_first(engine: Engine, spec: RunSpec) -> None:
    studies.create(engine, studies.StudyRecord("s", "{}", "f", None, None, NOW))
    run_id = runs.enqueue(engine, spec, NOW)
    merged = ExportRecord(run_id, "/b", True, "bfloat16", 100, 3, NOW)
    adapter = ExportRecord(run_id, "/a", False, "float32", None, None, NOW.replace(year=2025))
    for record in (merged, adapter):
        provenance.record_export(engine, record)
    assert provenance.exports_of(engine, run_id) == [adapter, merged]


def test_an_environment_says_commit_python_and_the_version_of_every_package() -> None:
    told = json.loads(environment.described())
    assert {"commit", "changed", "python", "packages", "platform", "threads", "version"} == told.keys()
    assert told["packages"]["SQLAlchemy"]
    assert environment.described() == environment.described()
