"""Whatever workers do to leases and outboxes, in whatever order, and wherever they die: what must hold, holds.

Hypothesis draws the order. The database and the outbox files are real; the workers are played, so is Optuna.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy.engine import Engine

from mathverify_sweep.errors import StorageError
from mathverify_sweep.specs import BaseModelSpec, DataSpec, RunResult, RunSpec, TrainParams
from mathverify_sweep.states import ENDINGS, EndReason, RunState, Verdict
from mathverify_sweep.store import leases, runs, studies, tables
from mathverify_sweep.store.database import connect, transaction
from mathverify_sweep.store.runs import Budget, Claim, WorkerIdentity
from mathverify_sweep.worker import retry, saying
from mathverify_sweep.worker.outbox import Finished, Held, Logged, Outbox, Reported, orphans

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PERIOD = 60.0
BUDGET = 3
ACTS: list[tuple[str, tuple[Any, ...]]] = [
    *[("take_a_new_trial", (how_far,)) for how_far in ("attached", "attached", "attached", "reserved", "released")],
    *[("attach", ()), ("promote", (0,)), ("promote", (1,))],
    *[("claim", ())] * 5,
    *[("renew", ())] * 3,
    *[("train", (reports,)) for reports in (True, False)] * 3,
    *[("end", (reason, is_said)) for reason in EndReason for is_said in (True, False)],
    *[("say", (answer_is_lost,)) for answer_is_lost in (True, False)] * 2,
    *[("say_everything", ()), ("die", ()), ("lose_memory_of_a_run", ())],
    *[("time_passes_and_the_observer_looks", (seconds,)) for seconds in (1.0, 30.0, 60.0, 80.0, 80.0)] * 2,
    *[("the_database_is_away_when_the_observer_looks", (seconds,)) for seconds in (10.0, 500.0)],
    *[("a_forged_token_writes", ())] * 3,
    *[("a_token_that_lost_writes", (which, EndReason.FINISHED)) for which in range(4)],
]
"""What can happen, as often as it is listed."""


class Optuna:
    """A study that remembers what it was told; said again, the first counts."""

    config = SimpleNamespace(study="s")

    def __init__(self) -> None:
        self.told: dict[int, RunResult] = {}

    def report(self, _trial: int, _rows: int, _value: float) -> Verdict:
        return Verdict.CONTINUE

    def show(self, *_page: Any) -> None:
        pass

    def tell(self, trial_number: int, result: RunResult, _run_id: str) -> None:
        self.told.setdefault(trial_number, result)


@dataclass
class Played:
    """A worker as far as the database sees one."""

    outbox: Outbox
    reserved: list[Claim] = field(default_factory=list)
    held: list[Claim] = field(default_factory=list)


class Leases(RuleBasedStateMachine):
    """Three workers, one observer, one clock."""

    new_database: ClassVar[Callable[[], Engine]]

    def __init__(self) -> None:
        super().__init__()
        self.engine = type(self).new_database()
        studies.create(self.engine, studies.StudyRecord("s", "{}", "f", None, None, NOW))
        self.folder = tempfile.TemporaryDirectory()
        self.workers = [Played(self._new_outbox(number)) for number in range(3)]
        self.optuna = Optuna()
        self.seconds = 1000.0
        self.watch = leases.Watch(PERIOD, lambda: self.seconds)
        self.renewed_at: dict[str, float] = {}
        self.ended: dict[str, Any] = {}
        self.next_trial = 0
        self.rows = 0

    # One rule that draws an action, not a rule an action: Hypothesis plays most examples with half of the rules only,
    # and then hardly a run gets to its end.
    @rule(number=st.integers(0, 2), act=st.sampled_from(ACTS))
    def somebody_does(self, number: int, act: tuple[str, Any]) -> None:
        name, arguments = act
        getattr(self, name)(number, *arguments)

    def take_a_new_trial(self, number: int, how_far: str) -> None:
        """As a worker does; it may die between its steps."""
        claim = runs.reserve(self.engine, "s", self._identity(number), Budget(BUDGET, None, None), self._now())
        if claim is None:
            return
        self.renewed_at[claim.run_id] = self.seconds
        self.workers[number].reserved.append(claim)
        if how_far == "attached":
            self.attach(number)
        elif how_far == "released":
            runs.release(self.engine, self.workers[number].reserved.pop())

    def attach(self, number: int) -> None:
        worker = self.workers[number]
        if not worker.reserved:
            return
        claim, spec = worker.reserved.pop(), spec_of(self.next_trial, None)
        if runs.attach(self.engine, claim, self.next_trial, spec):
            worker.held.append(Claim(claim.run_id, claim.lease_token, 1, self.next_trial, spec, None))
            self.next_trial += 1

    def promote(self, _number: int, trial: int) -> None:
        if trial < self.next_trial and not self._rows(tables.runs.c.stage == 1, tables.runs.c.trial_number == trial):
            runs.enqueue(self.engine, spec_of(trial, 1), self._now())

    def claim(self, number: int) -> None:
        claim = runs.claim_waiting(self.engine, "s", self._identity(number), self._now())
        if claim is not None:
            self.workers[number].held.append(claim)
            self.renewed_at[claim.run_id] = self.seconds

    def renew(self, number: int) -> None:
        for claim in self.workers[number].held + self.workers[number].reserved:
            if runs.renew(self.engine, claim, self._now()):
                self.renewed_at[claim.run_id] = self.seconds

    def train(self, number: int, reports: bool) -> None:
        worker = self.workers[number]
        self.rows += 1
        for claim in worker.held:
            held = Held.of(claim)
            if reports:
                worker.outbox.append(Reported(held=held, rows_seen=self.rows, value=0.5, asks=_is_trial(claim)))
            else:
                worker.outbox.append(Logged(held=held, rows_seen=self.rows, loss=0.5, learning_rate=1e-4))

    def end(self, number: int, reason: EndReason, is_said: bool) -> None:
        worker = self.workers[number]
        if worker.held:
            worker.outbox.append(self._ending(worker.held.pop(0), reason))
        if is_said:
            self.say_everything(number)

    def say(self, number: int, answer_is_lost: bool) -> None:
        worker = self.workers[number]
        first = worker.outbox.first()
        if not first:
            return
        said = saying.say(self.engine, self.optuna, Path(self.folder.name), first)  # type: ignore[arg-type]
        worker.held = [claim for claim in worker.held if claim.run_id not in said.lost]
        if not answer_is_lost:
            worker.outbox.drop_first(len(first))

    def say_everything(self, number: int) -> None:
        while not self.workers[number].outbox.is_empty:
            self.say(number, answer_is_lost=False)

    def die(self, number: int) -> None:
        """Whoever says what it left finds what is in the file, and nothing that was in memory."""
        self.workers[number].outbox._stream.close()
        (left,) = orphans([self._file(number)], {self._identity(number).worker_id})
        self.workers[number] = Played(left)

    def lose_memory_of_a_run(self, number: int) -> None:
        """An engine that is wedged: its lease is renewed no more."""
        self.workers[number].held = self.workers[number].held[1:]

    def time_passes_and_the_observer_looks(self, _number: int, seconds: float) -> None:
        self.seconds += seconds
        for lease in self.watch.look(self.engine, "s"):
            idle = self.seconds - self.renewed_at[lease.run_id]
            assert idle >= 2 * PERIOD, f"expired {idle} s after its last renewal"
            leases.expire(self.engine, lease, self._now())

    def the_database_is_away_when_the_observer_looks(self, _number: int, seconds: float) -> None:
        self.seconds += seconds
        broken = connect_nowhere()
        with pytest.raises(StorageError):
            self.watch.look(broken, "s")
        self.seconds += seconds
        assert self.watch.look(self.engine, "s") == []

    def a_token_that_lost_writes(self, _number: int, which: int, reason: EndReason) -> None:
        if not self.ended:
            return
        run = self.ended[sorted(self.ended)[which % len(self.ended)]]
        if run.trial_number is None or run.lease_token is None:
            return
        late = Claim(
            run.run_id, run.lease_token, run.attempt, run.trial_number, spec_of(run.trial_number, run.stage), None
        )
        assert not runs.renew(self.engine, late, self._now())
        assert not runs.progress(self.engine, late, [runs.Point(999, 0.9)])
        assert not runs.attach(self.engine, late, 99, spec_of(99, None))
        assert not runs.finish(self.engine, late, RunResult(end_reason=reason), self._now())
        runs.keep_late(self.engine, late, RunResult(end_reason=reason))

    def a_forged_token_writes(self, number: int) -> None:
        for claim in self.workers[number].held:
            forged = replace(claim, lease_token="f" * 16)
            assert not runs.renew(self.engine, forged, self._now())
            assert not runs.finish(self.engine, forged, RunResult(end_reason=EndReason.FINISHED), self._now())

    @invariant()
    def no_trial_runs_twice_and_attempts_have_no_gaps(self) -> None:
        chains: dict[tuple[int, int | None], list[Any]] = defaultdict(list)
        for row in self._rows():
            if row.trial_number is not None:
                chains[row.trial_number, row.stage].append(row)
        for chain in chains.values():
            assert [row.attempt for row in chain] == list(range(1, len(chain) + 1))
            assert all(row.ended_at is not None for row in chain[:-1]), "two attempts at once"
            assert sum(row.state in (RunState.COMPLETE, RunState.PRUNED) for row in chain) <= 1
            assert all(row.state == RunState.FAIL for row in chain[:-1])

    @invariant()
    def the_budget_is_kept(self) -> None:
        trials = [row for row in self._rows() if row.stage is None]
        places = len({row.trial_number for row in trials if row.trial_number is not None})
        assert places + sum(row.trial_number is None for row in trials) <= BUDGET

    @invariant()
    def an_ended_row_never_changes(self) -> None:
        said = self._points()
        for row in self._rows(tables.runs.c.ended_at.is_not(None)):
            now = SimpleNamespace(**row._mapping, said=said[row.run_id])
            before = self.ended.setdefault(row.run_id, now)
            assert before.late_result in (None, now.late_result)
            assert vars(now) == vars(before) | {"late_result": now.late_result}
            self.ended[row.run_id] = now

    @invariant()
    def optuna_is_told_the_end_of_the_last_attempt(self) -> None:
        for trial, result in self.optuna.told.items():
            last = self._rows(tables.runs.c.trial_number == trial, tables.runs.c.stage.is_(None))[-1]
            assert last.end_reason == result.end_reason

    def teardown(self) -> None:
        """All say what they have to say, the dead expire, and somebody finishes the rest: each trial has one end."""
        try:
            for number in range(3):
                self.say_everything(number)
                for claim in self.workers[number].reserved:
                    runs.release(self.engine, claim)
                self.workers[number].held.clear()
            while self._rows(tables.runs.c.ended_at.is_(None)):
                self.seconds += PERIOD
                for lease in self.watch.look(self.engine, "s"):
                    leases.expire(self.engine, lease, self._now())
                self.claim(0)
                self.end(0, EndReason.FINISHED, is_said=True)
            self.no_trial_runs_twice_and_attempts_have_no_gaps()
            self.an_ended_row_never_changes()
            trials = {row.trial_number for row in self._rows(tables.runs.c.stage.is_(None))}
            assert trials == set(range(self.next_trial))
        finally:
            for worker in self.workers:
                worker.outbox.close()
            self.engine.dispose()
            self.folder.cleanup()

    def _ending(self, claim: Claim, reason: EndReason) -> Finished:
        assert claim.spec is not None
        value = 0.5 if reason is EndReason.FINISHED else None
        result = RunResult(end_reason=reason, value=value, rows_seen=self.rows, message=f"{claim.run_id} {self.rows}")
        again = retry.next_attempt(claim.spec, result, claim.failures + ENDINGS[reason].is_failure)
        return Finished(
            held=Held.of(claim),
            result=result,
            at=self._now(),
            retry=again,
            tells=_is_trial(claim) and again is None,
            link=None,
        )

    def _rows(self, *where: sa.ColumnElement[bool]) -> list[Any]:
        with transaction(self.engine) as connection:
            return list(connection.execute(sa.select(tables.runs).where(*where).order_by(tables.runs.c.position)))

    def _points(self) -> dict[str, list[Any]]:
        found = defaultdict(list)
        with transaction(self.engine) as connection:
            for row in connection.execute(sa.select(tables.points).order_by(tables.points.c.rows_seen)):
                found[row.run_id].append(tuple(row))
        return found

    def _new_outbox(self, number: int) -> Outbox:
        return Outbox.of(self._identity(number), self._file(number))

    def _file(self, number: int) -> Path:
        return Path(self.folder.name) / f"{number}.jsonl"

    def _identity(self, number: int) -> WorkerIdentity:
        return WorkerIdentity(f"w{number}", f"host-{number}", number, "cpu", lease_seconds=PERIOD)

    def _now(self) -> datetime:
        return NOW + timedelta(seconds=self.seconds)


def spec_of(trial: int, stage: int | None) -> RunSpec:
    return RunSpec(
        study_name="s",
        trial_number=trial,
        stage=stage,
        base_model=BaseModelSpec(),
        data=DataSpec(),
        data_fingerprint="f",
        params=TrainParams(),
        train_rows=100,
    )


def connect_nowhere() -> Engine:
    return sa.create_engine("sqlite:////proc/nowhere/x.sqlite3")


def _is_trial(claim: Claim) -> bool:
    return claim.spec is not None and claim.spec.stage is None


def play(new_database: Callable[[], Engine], examples: int, steps: int) -> None:
    machine = type("Leases", (Leases,), {"new_database": staticmethod(new_database)})
    options = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=True,
        phases=(Phase.generate, Phase.shrink) if examples > 100 else (Phase.generate,),  # to shrink takes minutes
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=options)  # type: ignore[no-untyped-call]


@pytest.fixture
def sqlite_files(tmp_path: Path, migrated_sqlite: bytes) -> Callable[[], Engine]:
    """Makes a new database at each call."""
    made = iter(range(1_000_000))

    def new() -> Engine:
        file = tmp_path / f"{next(made)}.sqlite3"
        file.write_bytes(migrated_sqlite)
        engine = connect(f"sqlite:///{file}")
        sa.event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
        return engine

    return new


def test_leases_and_outboxes_keep_their_promises_on_sqlite(sqlite_files: Callable[[], Engine]) -> None:
    play(sqlite_files, examples=40, steps=60)


@pytest.mark.slow
def test_leases_and_outboxes_keep_their_promises_on_sqlite_for_long(sqlite_files: Callable[[], Engine]) -> None:
    play(sqlite_files, examples=400, steps=80)


@pytest.mark.parametrize("backend", ["postgresql"])
def test_leases_and_outboxes_keep_their_promises_on_postgresql(engine: Engine) -> None:
    def emptied() -> Engine:
        with transaction(engine) as connection:
            connection.exec_driver_sql("TRUNCATE mv_studies CASCADE")
        return connect(engine.url.render_as_string(hide_password=False))

    play(emptied, examples=10, steps=50)
