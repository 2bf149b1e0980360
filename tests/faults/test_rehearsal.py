"""The engine that only takes time: the same values each time, a run's trouble its own, checkpoints that count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mathverify_sweep.data import dataset
from mathverify_sweep.errors import ConfigError, DataDrift, ModelError
from mathverify_sweep.specs import BaseModelSpec, DataSpec, RunResult, RunSpec, TrainParams
from mathverify_sweep.states import EndReason, Verdict
from mathverify_sweep.training.order import Order
from mathverify_sweep.worker.rehearsal import FAULTS, SECONDS, RehearsalEngine, Script

DATA = DataSpec(generated_rows=600)


@dataclass
class Listener:
    """Hears a run out, and interrupts it when it is told to."""

    prune_at: int | None = None
    interrupts_after: int | None = None
    reports: list[tuple[int, float]] = field(default_factory=list)
    logs: list[int] = field(default_factory=list)
    steps: int = 0

    def report(self, rows_seen: int, value: float) -> Verdict:
        self.reports.append((rows_seen, value))
        return Verdict.PRUNE if rows_seen == self.prune_at else Verdict.CONTINUE

    def log(self, rows_seen: int, _loss: float, _learning_rate: float) -> None:
        self.logs.append(rows_seen)

    def interrupted(self) -> EndReason | None:
        self.steps += 1
        return EndReason.PREEMPTED if self.steps == self.interrupts_after else None


@pytest.fixture(scope="module")
def fingerprint() -> str:
    return dataset.load(DATA).fingerprint


@pytest.fixture
def order(tmp_path: Path, fingerprint: str) -> Callable[..., Order]:
    def make(trial: int = 0, name: str = "run", resume_from: tuple[Path, ...] = (), **params: float) -> Order:
        spec = RunSpec(
            study_name="s",
            trial_number=trial,
            base_model=BaseModelSpec(),
            data=DATA,
            data_fingerprint=fingerprint,
            params=TrainParams.model_validate({"learning_rate": 1e-3, **params}),
            train_rows=400,
            max_length=64,
            rungs=(50, 100, 200),
        )
        return Order(spec, tmp_path / name, resume_from=resume_from)

    return make


def played(order: Order, listener: Listener | None = None, faults: str = "{}") -> RunResult:
    engine = RehearsalEngine(1, Script.read({FAULTS: faults}), sleep=lambda _seconds: None)
    engine.start("r", order, listener or Listener())
    while not (ended := engine.step()):
        assert engine.free_slots() == 0
    assert engine.free_slots() == 1
    return ended[0][1]


def test_a_run_reports_at_its_rungs_logs_ten_points_and_leaves_figures(order: Callable[..., Order]) -> None:
    listener = Listener()
    result = played(order(), listener)
    assert [rows for rows, _value in listener.reports] == [50, 100, 200]
    assert listener.logs == [40 * n for n in range(1, 11)]
    assert result.end_reason is EndReason.FINISHED
    assert result.metrics is not None
    assert result.value == result.metrics.accuracy
    assert len(result.log_odds) == result.metrics.rows
    assert (order().folder / "adapter").is_dir()


def test_values_depend_on_the_parameters_and_on_nothing_else(order: Callable[..., Order]) -> None:
    assert played(order()).value == played(order(name="again")).value
    good, bad = played(order()).value, played(order(learning_rate=0.09)).value
    assert good is not None
    assert bad is not None
    assert good > bad + 0.1


def test_a_verdict_and_an_interrupt_end_the_run_where_it_is(order: Callable[..., Order]) -> None:
    pruned = played(order(), Listener(prune_at=100))
    assert (pruned.end_reason, pruned.rows_seen) == (EndReason.PRUNED, 100)
    preempted = played(order(name="other"), Listener(interrupts_after=10))
    assert (preempted.end_reason, preempted.rows_seen) == (EndReason.PREEMPTED, 200)


def test_the_next_attempt_goes_on_from_the_checkpoint_and_ends_alike(order: Callable[..., Order]) -> None:
    first = order()
    played(first, Listener(interrupts_after=10))
    listener = Listener()
    resumed = played(order(name="second", resume_from=(first.folder,)), listener)
    assert listener.reports == [], "rungs that were passed are not reported again"
    assert listener.logs == [240, 280, 320, 360, 400]
    assert resumed.value == played(order(name="whole")).value


def test_a_fault_strikes_its_trials_first_attempt_and_the_star_every_one(order: Callable[..., Order]) -> None:
    reasons = {"nan": EndReason.DIVERGED, "oom": EndReason.OUT_OF_MEMORY, "crash": EndReason.CRASHED}
    for kind, reason in reasons.items():
        first = order(trial=3, name=kind)
        assert played(first, faults=f'{{"3": "{kind}"}}').end_reason is reason
        assert played(order(trial=4), faults=f'{{"3": "{kind}"}}').end_reason is EndReason.FINISHED
        again = order(trial=3, name=f"{kind}-again", resume_from=(first.folder,))
        assert played(again, faults=f'{{"3": "{kind}"}}').end_reason is EndReason.FINISHED
        assert played(again, faults=f'{{"*": "{kind}"}}').end_reason is reason


def test_one_runs_crash_leaves_its_neighbours_alone(order: Callable[..., Order]) -> None:
    engine = RehearsalEngine(2, Script.read({FAULTS: '{"0": "crash"}'}), sleep=lambda _seconds: None)
    engine.start("a", order(trial=0, name="a"), Listener())
    engine.start("b", order(trial=1, name="b"), Listener())
    ended: dict[str, RunResult] = {}
    while engine.free_slots() < 2:
        ended.update(engine.step())
    assert ended["a"].end_reason is EndReason.CRASHED
    assert "a crash was rehearsed" in ended["a"].message
    assert ended["b"].end_reason is EndReason.FINISHED


def test_other_data_and_other_peoples_adapters_are_refused(order: Callable[..., Order], tmp_path: Path) -> None:
    engine = RehearsalEngine(1, Script.read({}))
    with pytest.raises(DataDrift, match="fingerprint"):
        engine.prepare(DATA, "another")
    start = Order(order().spec, tmp_path / "x", start_adapter=tmp_path)
    with pytest.raises(ModelError, match="a rehearsal left"):
        engine.start("r", start, Listener())


@pytest.mark.parametrize(
    "environment",
    [
        {SECONDS: "0"},
        {SECONDS: "soon"},
        {FAULTS: "no JSON"},
        {FAULTS: '{"3": "flood"}'},
        {FAULTS: '{"3": "gil"}'},
        {FAULTS: '{"3": "nan:4"}'},
        {FAULTS: '{"last": "nan"}'},
        {FAULTS: '["nan"]'},
        {FAULTS: '{"3": 4}'},
    ],
)
def test_an_environment_that_makes_no_sense_is_refused(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="MVSWEEP_REHEARSAL"):
        Script.read(environment)
