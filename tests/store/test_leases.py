"""Expiry: decided by one observer's own clock and a counter, never by comparing clocks, never by an outage."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from mathverify_sweep.errors import StorageError
from mathverify_sweep.specs import RunResult, RunSpec
from mathverify_sweep.states import MAX_FAILURES, EndReason, RunState
from mathverify_sweep.store import runs, studies
from mathverify_sweep.store.leases import Observed, Watch, expire
from mathverify_sweep.store.runs import Budget, Claim, WorkerIdentity

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ANN = WorkerIdentity("ann", "host-a", 11, "cuda:0")
PERIOD = 60.0


class Clock:
    """A monotonic clock that stands still until it is told."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def study(engine: Engine) -> Engine:
    studies.create(engine, studies.StudyRecord("s", "{}", "f", None, None, NOW))
    return engine


@pytest.fixture
def claim(study: Engine, spec: RunSpec) -> Claim:
    runs.enqueue(study, spec, NOW)
    claim = runs.claim_waiting(study, "s", ANN, NOW)
    assert claim is not None
    return claim


def look_every(watch: Watch, clock: Clock, engine: Engine, seconds: float, times: int) -> list[Observed]:
    """The last of several looks."""
    expired: list[Observed] = []
    for _ in range(times):
        clock.seconds += seconds
        expired = watch.look(engine, "s")
    return expired


def test_a_lease_expires_after_two_periods_of_the_same_counter(study: Engine, claim: Claim) -> None:
    clock = Clock()
    watch = Watch(PERIOD, clock)
    assert watch.look(study, "s") == []
    assert look_every(watch, clock, study, 30, 3) == []
    (observed,) = look_every(watch, clock, study, 30, 1)
    assert (observed.run_id, observed.lease_token, observed.worker) == (claim.run_id, claim.lease_token, ANN)


def test_a_renewal_starts_the_two_periods_anew(study: Engine, claim: Claim) -> None:
    clock = Clock()
    watch = Watch(PERIOD, clock)
    look_every(watch, clock, study, 30, 4)
    assert runs.renew(study, claim, NOW)
    assert look_every(watch, clock, study, 30, 4) == []
    assert len(look_every(watch, clock, study, 30, 1)) == 1


@pytest.mark.usefixtures("claim")
def test_an_observer_that_looks_once_a_period_and_comes_late_still_sees_the_dead(study: Engine) -> None:
    clock = Clock()
    assert len(look_every(Watch(PERIOD, clock), clock, study, PERIOD + 5, 3)) == 1


@pytest.mark.usefixtures("claim")
def test_an_outage_expires_nobody(study: Engine) -> None:
    clock = Clock()
    watch = Watch(PERIOD, clock)
    look_every(watch, clock, study, 30, 4)
    away = sa.create_engine(f"sqlite:////{__file__}/x")
    clock.seconds += 30
    with pytest.raises(StorageError):
        watch.look(away, "s")
    assert look_every(watch, clock, study, 30, 4) == []
    assert len(look_every(watch, clock, study, 30, 1)) == 1


@pytest.mark.usefixtures("claim")
def test_an_observer_that_slept_starts_over(study: Engine) -> None:
    clock = Clock()
    watch = Watch(PERIOD, clock)
    watch.look(study, "s")
    assert look_every(watch, clock, study, 3600, 1) == []
    assert look_every(watch, clock, study, 30, 3) == []
    assert len(look_every(watch, clock, study, 30, 1)) == 1


def observed_of(engine: Engine) -> Observed:
    clock = Clock()
    (observed,) = look_every(Watch(0.0, clock), clock, engine, 0, 1)
    return observed


def test_an_expired_run_is_tried_again_from_where_it_was(study: Engine, claim: Claim, spec: RunSpec) -> None:
    runs.renew(study, claim, NOW + timedelta(seconds=50))
    expired = expire(study, observed_of(study), NOW + timedelta(seconds=500))
    assert expired is not None
    old, new = runs.runs(study, "s")
    assert (old.state, old.end_reason) == (RunState.FAIL, EndReason.LEASE_EXPIRED)
    assert old.busy_seconds == 50.0  # after its last renewal nobody knows
    assert old.result is not None
    assert "worker ann (host host-a, pid 11, cuda:0) was last heard of at 2026-01-01T00:00:50" in old.result.message
    assert (new.run_id, new.state, new.attempt, new.failures) == (expired.next_run_id, RunState.WAITING, 2, 1)
    assert (new.continues, new.spec) == (claim.run_id, spec)


def test_a_worker_whose_lease_expired_writes_nothing_but_a_late_result(study: Engine, claim: Claim) -> None:
    expire(study, observed_of(study), NOW)
    done = RunResult(end_reason=EndReason.FINISHED, value=0.9)
    assert not runs.renew(study, claim, NOW)
    assert not runs.progress(study, claim, [runs.Point(1, 0.5)])
    assert not runs.finish(study, claim, done, NOW)
    assert runs.keep_late(study, claim, done)
    old = runs.get(study, claim.run_id)
    assert (old.state, old.end_reason, old.late_result) == (RunState.FAIL, EndReason.LEASE_EXPIRED, done)


@pytest.mark.usefixtures("claim")
def test_two_observers_expire_a_run_once(study: Engine) -> None:
    observed = observed_of(study)
    assert expire(study, observed, NOW) is not None
    assert expire(study, observed, NOW) is None
    assert len(runs.runs(study, "s")) == 2


def test_a_renewal_at_the_last_moment_saves_the_run(study: Engine, claim: Claim) -> None:
    observed = observed_of(study)
    runs.renew(study, claim, NOW)
    assert expire(study, observed, NOW) is None
    assert runs.get(study, claim.run_id).state is RunState.RUNNING


@pytest.mark.usefixtures("claim")
def test_the_third_failure_is_the_last(study: Engine) -> None:
    for failure in range(1, MAX_FAILURES + 1):
        expired = expire(study, observed_of(study), NOW)
        assert expired is not None
        assert (expired.next_run_id is None) == (failure == MAX_FAILURES)
        runs.claim_waiting(study, "s", ANN, NOW)
    assert [run.state for run in runs.runs(study, "s")] == [RunState.FAIL] * MAX_FAILURES


def test_a_reservation_that_died_leaves_nothing_and_costs_no_trial(study: Engine, spec: RunSpec) -> None:
    one = Budget(1, None, None)
    dead = runs.reserve(study, "s", ANN, one, NOW)
    assert dead is not None
    expired = expire(study, observed_of(study), NOW)
    assert expired is not None
    assert (expired.trial_number, expired.next_run_id) == (None, None)
    assert runs.runs(study, "s") == []
    assert not runs.attach(study, dead, 0, spec)
    assert runs.reserve(study, "s", ANN, one, NOW) is not None


def test_a_worker_with_a_longer_period_than_the_observer_is_given_its_own(study: Engine, spec: RunSpec) -> None:
    runs.enqueue(study, spec, NOW)
    slow = replace(ANN, lease_seconds=300.0)
    assert runs.claim_waiting(study, "s", slow, NOW)
    clock = Clock()
    watch = Watch(PERIOD, clock)
    watch.look(study, "s")
    assert look_every(watch, clock, study, 60, 9) == []
    (observed,) = look_every(watch, clock, study, 60, 1)
    assert observed.worker == slow


def test_a_worker_with_a_shorter_period_is_not_judged_by_looks_that_are_further_apart(
    study: Engine, spec: RunSpec
) -> None:
    runs.enqueue(study, spec, NOW)
    assert runs.claim_waiting(study, "s", replace(ANN, lease_seconds=1.0), NOW)
    clock = Clock()
    watch = Watch(PERIOD, clock)
    watch.look(study, "s")
    assert look_every(watch, clock, study, 30, 3) == []


def test_who_a_worker_is_comes_back_from_the_database_whole(study: Engine, spec: RunSpec) -> None:
    me = WorkerIdentity.of_this_process("cpu", 60.0)
    runs.enqueue(study, spec, NOW)
    claim = runs.claim_waiting(study, "s", me, NOW)
    assert claim is not None
    assert runs.get(study, claim.run_id).worker == me
    assert (me.pid, me.lease_seconds) == (os.getpid(), 60.0)
    assert me != WorkerIdentity.of_this_process("cpu", 60.0), "two workers in one process are two"
