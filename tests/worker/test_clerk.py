"""The clerk by itself: what becomes of what it holds when its worker is sent away."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import Engine

from mathverify_sweep.errors import StorageUnavailable
from mathverify_sweep.states import EndReason, RunState
from mathverify_sweep.store import runs
from mathverify_sweep.store.runs import WorkerIdentity
from mathverify_sweep.study.study import StudyHandle
from mathverify_sweep.worker import claims, saying
from mathverify_sweep.worker.clerk import Clerk, ClerkOptions
from mathverify_sweep.worker.outbox import Finished
from tests import example_study

NAME = example_study.NAME
ME = WorkerIdentity.of_this_process("cpu", 60.0)
PATIENCE_SECONDS = 60.0


@pytest.fixture
def study(engine: Engine) -> Iterator[StudyHandle]:
    with example_study.empty(engine) as handle:
        yield handle


def away(*_arguments: object) -> None:
    raise StorageUnavailable("the database is away.")


def sent_away_over_a_claim(engine: Engine, study: StudyHandle, output: Path, patched: pytest.MonkeyPatch) -> Clerk:
    """A clerk that claimed a run, lost the database before it knew the run's past, and is to hand back."""
    patched.setattr(claims, "with_its_past", away)
    clerk = Clerk(engine, study, ME, ClerkOptions(output, 60.0, until_idle=False, trust_gpu=False))
    clerk.ask_for_run()
    clerk.start()
    until = time.monotonic() + PATIENCE_SECONDS
    while not clerk.is_away and time.monotonic() < until:
        time.sleep(0.01)
    assert [run.state for run in runs.runs(engine, NAME)] == [RunState.RUNNING]
    clerk.ask_for_nothing()
    return clerk


def test_a_run_that_was_claimed_over_an_outage_is_handed_back_by_a_worker_that_is_sent_away(
    engine: Engine, study: StudyHandle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clerk = sent_away_over_a_claim(engine, study, tmp_path, monkeypatch)

    assert clerk.close(PATIENCE_SECONDS)

    first, again = runs.runs(engine, NAME)
    assert (first.end_reason, again.state) == (EndReason.PREEMPTED, RunState.WAITING)
    assert (again.failures, again.continues) == (0, first.run_id)
    assert clerk.next_news() is None
    assert not clerk.file.exists()


def test_while_the_database_is_away_that_is_left_for_the_next_worker(
    engine: Engine, study: StudyHandle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(saying, "say", away)
        clerk = sent_away_over_a_claim(engine, study, tmp_path, patched)
        assert not clerk.close(2.0)
        (entry,) = clerk._outbox.first()
        assert isinstance(entry, Finished)
        assert entry.held.run_id in clerk.file.read_text(), "on the disk, whenever this process ends"
    assert clerk.close(PATIENCE_SECONDS)
    assert runs.runs(engine, NAME)[0].end_reason is EndReason.PREEMPTED
