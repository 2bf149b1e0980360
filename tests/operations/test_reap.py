"""Who is dead: told by the process on this host, by watched renewals elsewhere, never by the clock of another host."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy.engine import Engine

from mathverify_sweep import paths, processes
from mathverify_sweep.config import PromotionConfig
from mathverify_sweep.errors import StudyError
from mathverify_sweep.operations import leftovers
from mathverify_sweep.operations.accept import accept
from mathverify_sweep.operations.reap import Clock, mend, watched
from mathverify_sweep.operations.suspects import Kind, Life, Suspect, suspects
from mathverify_sweep.specs import RunResult
from mathverify_sweep.states import EndReason, RunState
from mathverify_sweep.store import leases, promotions, runs
from mathverify_sweep.store.runs import Budget, Claim, RunRecord, WorkerIdentity
from mathverify_sweep.study import plans
from mathverify_sweep.study.late import LATE_RUN
from mathverify_sweep.study.study import StudyHandle
from mathverify_sweep.worker.outbox import Finished, Held, Outbox, Reported
from tests import example_study
from tests.example_study import NAME

NOWHERE = Path("/nowhere")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
ME = WorkerIdentity.of_this_process("gpu 0", 60.0)
ELSEWHERE = replace(ME, host="another-host")
FINISHED = RunResult(
    end_reason=EndReason.FINISHED,
    value=0.9,
    metrics=example_study.metrics(0.9),
    rows_seen=800,
    log_odds=(0.5, -1.5),
    adapter="somewhere/adapter",
)


@pytest.fixture
def study(engine: Engine) -> Iterator[StudyHandle]:
    with example_study.empty(engine) as handle:
        yield handle


@pytest.fixture
def dead() -> WorkerIdentity:
    """A worker of this host whose process has ended."""
    child = subprocess.Popen(["sleep", "60"])
    identity = replace(ME, pid=child.pid, process_start=processes.start_of(child.pid))
    child.kill()
    child.wait()
    return identity


def start(engine: Engine, study: StudyHandle, worker: WorkerIdentity) -> Claim:
    """A trial that this worker runs."""
    place = runs.reserve(engine, NAME, worker, Budget(None, None, None), NOW)
    asked = study.ask()
    assert place is not None
    assert asked is not None
    spec = study.config.trial_spec(asked.trial_number, asked.params, study.data_fingerprint)
    assert runs.attach(engine, place, asked.trial_number, spec)
    return replace(place, trial_number=asked.trial_number, spec=spec)


def lives(found: list[Suspect]) -> dict[Kind, Life]:
    return {suspect.kind: suspect.life for suspect in found}


class FakeTime:
    """Time that passes when somebody sleeps; `meanwhile` is what happens then."""

    def __init__(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        self.now = 0.0
        self._meanwhile = meanwhile
        self.clock = Clock(lambda: self.now, self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.now += seconds
        self._meanwhile()


# What is known without waiting


@pytest.mark.parametrize(
    ("change", "life"),
    [
        ({}, Life.ALIVE),
        ({"process_start": 1}, Life.DEAD),
        ({"host": "another-host", "process_start": 1}, Life.UNKNOWN),
        ({"boot_id": "another-boot"}, Life.UNKNOWN),
        ({"boot_id": None, "process_start": None}, Life.UNKNOWN),
    ],
    ids=["lives", "pid given to another process", "another host", "another boot", "an older version's row"],
)
def test_a_worker_is_judged_by_its_process_where_that_can_be_looked_up(
    engine: Engine, study: StudyHandle, change: dict[str, object], life: Life
) -> None:
    claim = start(engine, study, replace(ME, **change))  # type: ignore[arg-type]
    (suspect,) = suspects(engine, study)
    assert (suspect.kind, suspect.life, suspect.run_id) == (Kind.RUNNING, life, claim.run_id)
    assert suspect.worker is not None
    assert suspect.worker.lease_seconds == 60.0


def test_a_study_in_order_has_no_suspects(engine: Engine, study: StudyHandle) -> None:
    claim = start(engine, study, ME)
    runs.finish(engine, claim, FINISHED, NOW)
    study.tell(0, FINISHED, claim.run_id)
    assert suspects(engine, study) == []


def test_a_killed_worker_is_dead_and_mending_queues_its_trial_again(
    engine: Engine, study: StudyHandle, dead: WorkerIdentity
) -> None:
    start(engine, study, dead)
    living = start(engine, study, ME)
    mended = mend(engine, study, suspects(engine, study), NOWHERE)
    assert mended.unknown == ()
    first, second, again = runs.runs(engine, NAME)
    assert (first.end_reason, second.run_id, second.state) == (EndReason.LEASE_EXPIRED, living.run_id, RunState.RUNNING)
    assert (again.state, again.continues, again.trial_number) == (RunState.WAITING, first.run_id, 0)
    assert mend(engine, study, suspects(engine, study), NOWHERE).done == ()


def test_what_the_dead_left_unsaid_is_said_before_it_expires(
    engine: Engine, study: StudyHandle, dead: WorkerIdentity, tmp_path: Path
) -> None:
    claim = start(engine, study, dead)
    file = paths.outbox_file(tmp_path, NAME, dead.worker_id)
    left = Outbox.of(dead, file)
    held = Held.of(claim)
    left.append(Reported(held=held, rows_seen=100, value=0.7, asks=True))
    left.append(Finished(held=held, result=FINISHED, at=NOW, retry=None, tells=True, link=None))
    found = suspects(engine, study)
    assert leftovers.say(engine, study, tmp_path) == [], "whoever holds it will say it"
    left.close()
    assert mend(engine, study, found, tmp_path).done[0].startswith(f"{file.name}: said 2 thing(s)")
    assert not file.exists()
    (run,) = runs.runs(engine, NAME)
    assert (run.state, run.points) == (RunState.COMPLETE, 1)
    (trial,) = study.trials()
    assert (trial.state, trial.value, trial.intermediate) == (RunState.COMPLETE, 0.9, {100: 0.7})


def test_what_the_dead_of_another_host_left_unsaid_is_said_when_it_is_known(
    engine: Engine, study: StudyHandle, tmp_path: Path
) -> None:
    """There a lock tells nothing, nor does a pid: only that its lease expired while it was watched."""
    elsewhere = replace(ELSEWHERE, worker_id="elsewhere", boot_id="another-boot")
    claim = start(engine, study, elsewhere)
    left = Outbox.of(elsewhere, paths.outbox_file(tmp_path, NAME, elsewhere.worker_id))
    left.append(Finished(held=Held.of(claim), result=FINISHED, at=NOW, retry=None, tells=True, link=None))
    left._stream.close()  # the lock goes with it
    assert mend(engine, study, suspects(engine, study), tmp_path).done == ()
    mend(engine, study, watched(engine, study, FakeTime().clock), tmp_path)
    (run,) = runs.runs(engine, NAME)
    assert run.state is RunState.COMPLETE
    assert not left.file.exists()


def test_nobody_goes_on_from_the_checkpoints_of_a_run_that_expired_for_good(
    engine: Engine, study: StudyHandle, dead: WorkerIdentity, tmp_path: Path
) -> None:
    claim: Claim | None = start(engine, study, dead)
    folders = []
    while claim is not None:
        assert all(folder.is_dir() for folder in folders), "until then the next attempt may"
        attempt = paths.run_folder(tmp_path, NAME, claim.run_id, claim.lease_token)
        folders.append(paths.checkpoints_folder(attempt))
        (folders[-1] / "100").mkdir(parents=True)
        mend(engine, study, suspects(engine, study), tmp_path)
        claim = runs.claim_waiting(engine, NAME, dead, NOW)
    assert len(folders) == 3
    assert not any(folder.exists() for folder in folders)


def test_what_is_left_of_runs_of_another_database_is_left_out(
    engine: Engine, study: StudyHandle, dead: WorkerIdentity, tmp_path: Path
) -> None:
    claim = start(engine, study, dead)
    held = Held.of(replace(claim, run_id="of-another-database"))
    left = Outbox.of(dead, paths.outbox_file(tmp_path, NAME, dead.worker_id))
    left.append(Reported(held=held, rows_seen=100, value=0.7, asks=True))
    left.append(Finished(held=held, result=FINISHED, at=NOW, retry=None, tells=True, link=None))
    left.close()
    leftovers.say(engine, study, tmp_path)
    assert not left.file.exists()
    assert runs.get(engine, claim.run_id).state is RunState.RUNNING


def test_a_trial_is_told_when_the_dead_had_its_last_attempt(
    engine: Engine, study: StudyHandle, dead: WorkerIdentity
) -> None:
    start(engine, study, dead)
    for _ in range(2):
        mend(engine, study, suspects(engine, study), NOWHERE)
        assert runs.claim_waiting(engine, NAME, dead, NOW)
    done = mend(engine, study, suspects(engine, study), NOWHERE).done
    assert [trial.state for trial in study.trials()] == [RunState.FAIL]
    assert done[-1] == "trial 0: told Optuna how it ended"
    assert "that was its last attempt" in done[0]


def test_a_place_without_a_trial_is_dropped(engine: Engine, study: StudyHandle, dead: WorkerIdentity) -> None:
    runs.reserve(engine, NAME, dead, Budget(None, None, None), NOW)
    mend(engine, study, suspects(engine, study), NOWHERE)
    assert runs.runs(engine, NAME) == []


def test_what_is_unknown_is_left_alone_and_said(engine: Engine, study: StudyHandle) -> None:
    claim = start(engine, study, ELSEWHERE)
    mended = mend(engine, study, suspects(engine, study), NOWHERE)
    assert mended.done == ()
    assert [suspect.run_id for suspect in mended.unknown] == [claim.run_id]
    assert runs.get(engine, claim.run_id).state is RunState.RUNNING


# What is known after watching


def test_a_lease_that_is_not_renewed_for_two_periods_is_dead_wherever_it_is(engine: Engine, study: StudyHandle) -> None:
    claim = start(engine, study, ELSEWHERE)
    time = FakeTime()
    found = watched(engine, study, time.clock)
    assert lives(found) == {Kind.RUNNING: Life.DEAD}
    assert time.now >= 120.0
    mend(engine, study, found, NOWHERE)
    assert runs.get(engine, claim.run_id).end_reason is EndReason.LEASE_EXPIRED


def test_a_renewal_is_a_sign_of_life_and_ends_the_watch(engine: Engine, study: StudyHandle) -> None:
    claim = start(engine, study, ELSEWHERE)
    time = FakeTime(lambda: runs.renew(engine, claim, NOW))
    assert lives(watched(engine, study, time.clock)) == {Kind.RUNNING: Life.ALIVE}
    assert time.now < 60.0


def test_a_lease_that_is_renewed_after_the_watch_is_kept(engine: Engine, study: StudyHandle) -> None:
    claim = start(engine, study, ELSEWHERE)
    found = watched(engine, study, FakeTime().clock)
    runs.renew(engine, claim, NOW)
    (said,) = mend(engine, study, found, NOWHERE).done
    assert "left alone" in said
    assert runs.get(engine, claim.run_id).state is RunState.RUNNING


def test_a_process_that_lives_but_does_not_renew_is_dead_to_everybody(engine: Engine, study: StudyHandle) -> None:
    start(engine, study, ME)
    (suspect,) = watched(engine, study, FakeTime().clock)
    assert (suspect.life, suspect.why[-24:]) == (Life.DEAD, "though its process lives")


def test_an_observer_that_slept_knows_nothing(engine: Engine, study: StudyHandle) -> None:
    start(engine, study, ELSEWHERE)
    time = FakeTime()
    time.clock = Clock(lambda: time.now, lambda _seconds: setattr(time, "now", time.now + 3600))
    assert lives(watched(engine, study, time.clock)) == {Kind.RUNNING: Life.UNKNOWN}


# Trials that nobody runs


def test_a_trial_that_no_run_took_is_ended_once_nobody_can_be_about_to(engine: Engine, study: StudyHandle) -> None:
    place = runs.reserve(engine, NAME, ELSEWHERE, Budget(None, None, None), NOW)
    assert place is not None
    assert study.ask() is not None
    assert lives(suspects(engine, study))[Kind.UNTAKEN] is Life.UNKNOWN
    runs.release(engine, place)
    found = suspects(engine, study)
    assert lives(found) == {Kind.UNTAKEN: Life.DEAD}
    mend(engine, study, found, NOWHERE)
    assert [trial.state for trial in study.trials()] == [RunState.FAIL]


@pytest.mark.parametrize(("host", "before"), [("another-host", Life.UNKNOWN), (socket.gethostname(), Life.ALIVE)])
def test_a_trial_is_left_to_the_worker_that_is_about_to_tell_it(
    engine: Engine, study: StudyHandle, host: str, before: Life
) -> None:
    claim = start(engine, study, replace(ME, host=host))
    runs.finish(engine, claim, FINISHED, NOW)
    found = suspects(engine, study)
    assert lives(found) == {Kind.UNTOLD: before}
    mend(engine, study, found, NOWHERE)
    assert [trial.state for trial in study.trials()] == [RunState.RUNNING]


def test_a_trial_that_stood_still_while_it_was_watched_is_told(engine: Engine, study: StudyHandle) -> None:
    claim = start(engine, study, ELSEWHERE)
    runs.finish(engine, claim, FINISHED, NOW)
    time = FakeTime()
    found = watched(engine, study, time.clock)
    assert time.now >= 120.0
    mend(engine, study, found, NOWHERE)
    (trial,) = study.trials()
    assert (trial.state, trial.value) == (RunState.COMPLETE, 0.9)


def test_a_run_that_waits_for_a_failed_one_is_ended(engine: Engine, study: StudyHandle) -> None:
    claim = start(engine, study, ME)
    runs.finish(engine, claim, RunResult(end_reason=EndReason.CRASHED, message="x"), NOW)
    study.tell(0, RunResult(end_reason=EndReason.CRASHED, message="x"), claim.run_id)
    assert claim.spec is not None
    stage = claim.spec.model_copy(update={"stage": 1})
    behind = runs.enqueue(engine, stage, NOW, after=claim.run_id)
    further = runs.enqueue(engine, stage.model_copy(update={"stage": 2}), NOW, after=behind)
    (suspect,) = suspects(engine, study)
    assert (suspect.kind, suspect.run_id) == (Kind.BLOCKED, behind)
    mend(engine, study, [suspect], NOWHERE)
    assert [runs.get(engine, each).end_reason for each in (behind, further)] == [EndReason.CRASHED] * 2


# Late results


def late(engine: Engine, claim: Claim, result: RunResult = FINISHED) -> RunRecord:
    """The run of `claim`, expired, with a result that came afterwards."""
    lease = next(lease for lease in leases.running(engine, NAME) if lease.run_id == claim.run_id)
    assert leases.expire(engine, lease, NOW)
    assert not runs.finish(engine, claim, result, NOW)
    assert runs.keep_late(engine, claim, result)
    return runs.get(engine, claim.run_id)


def test_a_late_result_is_listed_until_it_is_accepted(engine: Engine, study: StudyHandle, tmp_path: Path) -> None:
    run = late(engine, start(engine, study, ELSEWHERE))
    assert lives(suspects(engine, study)) == {Kind.LATE: Life.UNKNOWN}
    accept(engine, study, run, tmp_path)
    assert suspects(engine, study) == []


@pytest.mark.parametrize("next_runs", [False, True])
def test_a_trial_that_is_open_gets_the_late_result_and_is_not_trained_again(
    engine: Engine, study: StudyHandle, tmp_path: Path, next_runs: bool
) -> None:
    claim = start(engine, study, ELSEWHERE)
    runs.progress(engine, claim, [runs.Point(100, 0.7, None, None)])
    run = late(engine, claim)
    again = runs.claim_waiting(engine, NAME, ME, NOW) if next_runs else None
    heir = accept(engine, study, run, tmp_path)
    assert accept(engine, study, run, tmp_path) == heir, "said twice"
    assert runs.get(engine, run.run_id) == run, "an ended run is never rewritten"
    assert (heir.trial_number, heir.attempt, heir.state) == (0, 2, RunState.COMPLETE)
    assert heir.result is not None
    assert (heir.result.value, heir.result.adapter) == (0.9, "somewhere/adapter")
    odds = runs.log_odds(engine, heir.run_id, "validation")
    assert odds is not None
    assert odds.tolist() == [0.5, -1.5]
    assert [point.value for point in runs.points(engine, heir.run_id)] == [0.7]
    (trial,) = study.trials()
    assert (trial.state, trial.value, trial.user_attrs["run_id"]) == (RunState.COMPLETE, 0.9, heir.run_id)
    assert runs.claim_waiting(engine, NAME, ME, NOW) is None
    if again is not None:
        assert not runs.renew(engine, again, NOW), "whoever trains it learns that it is over"


def test_a_trial_that_has_ended_keeps_its_end_and_a_new_one_gets_the_late_result(
    engine: Engine, study: StudyHandle, tmp_path: Path
) -> None:
    run = late(engine, start(engine, study, ELSEWHERE))
    again = runs.claim_waiting(engine, NAME, ME, NOW)
    assert again is not None
    worse = FINISHED.model_copy(update={"value": 0.8})
    runs.finish(engine, again, worse, NOW)
    study.tell(0, worse, again.run_id)
    heir = accept(engine, study, run, tmp_path)
    assert accept(engine, study, run, tmp_path) == heir, "said twice"
    own, new = study.trials()
    assert (own.value, new.value, new.state) == (0.8, 0.9, RunState.COMPLETE)
    assert (new.params, new.user_attrs[LATE_RUN]) == (own.params, run.run_id)
    assert (heir.trial_number, heir.continues) == (1, run.run_id)
    assert heir.spec is not None
    assert heir.spec.trial_number == 1


def late_stage(engine: Engine, study: StudyHandle) -> RunRecord:
    """The first of two stages of a promotion, expired, with a result that came afterwards."""
    first = start(engine, study, ME)
    runs.finish(engine, first, FINISHED, NOW)
    study.tell(0, FINISHED, first.run_id)
    assert first.spec is not None
    settings = PromotionConfig(stages=(50, 100))
    promotions.record(engine, NAME, 0, settings.key, plans.plan(first.spec, 100, settings), NOW)
    claim = runs.claim_waiting(engine, NAME, ELSEWHERE, NOW)
    assert claim is not None
    return late(engine, claim)


def test_a_promotion_goes_on_from_the_late_result_of_a_stage(
    engine: Engine, study: StudyHandle, tmp_path: Path
) -> None:
    run = late_stage(engine, study)
    again = runs.claim_waiting(engine, NAME, ME, NOW)
    assert again is not None
    runs.finish(engine, again, RunResult(end_reason=EndReason.CRASHED, message="x"), NOW)
    heir = accept(engine, study, run, tmp_path)
    assert (heir.stage, heir.state) == (1, RunState.COMPLETE)
    second = runs.claim_waiting(engine, NAME, ME, NOW)
    assert second is not None
    assert second.spec is not None
    assert (second.spec.stage, second.spec.start_from) == (2, (heir.run_id,))


def test_a_stage_that_was_trained_since_keeps_its_result(engine: Engine, study: StudyHandle, tmp_path: Path) -> None:
    run = late_stage(engine, study)
    again = runs.claim_waiting(engine, NAME, ME, NOW)
    assert again is not None
    runs.finish(engine, again, FINISHED, NOW)
    with pytest.raises(StudyError, match=f"was trained since, by run {again.run_id}"):
        accept(engine, study, run, tmp_path)


@pytest.mark.parametrize("result", [None, RunResult(end_reason=EndReason.CRASHED, message="x")])
def test_only_a_late_result_with_a_value_can_be_accepted(
    engine: Engine, study: StudyHandle, tmp_path: Path, result: RunResult | None
) -> None:
    claim = start(engine, study, ELSEWHERE)
    run = late(engine, claim, result) if result else runs.get(engine, claim.run_id)
    with pytest.raises(StudyError, match=r"has no late result|ended late as crashed"):
        accept(engine, study, run, tmp_path)
    assert all(suspect.kind is not Kind.LATE for suspect in suspects(engine, study))
