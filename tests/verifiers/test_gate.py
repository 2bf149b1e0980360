"""Finalists within noise are told apart on rows that nobody has seen, and the report says why each was chosen.

Trials and their runs are played, each a share of rows that it gets right: what is tested is what is queued, read,
dropped and said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from sqlalchemy.engine import Engine

from mathverify_sweep import metrics
from mathverify_sweep.config import SweepConfig
from mathverify_sweep.data import dataset
from mathverify_sweep.data.rows import Row, groups
from mathverify_sweep.errors import StudyError
from mathverify_sweep.resampling import total_p_value
from mathverify_sweep.specs import RunResult
from mathverify_sweep.states import EndReason
from mathverify_sweep.store import runs
from mathverify_sweep.store.runs import Claim, WorkerIdentity
from mathverify_sweep.study.study import StudyHandle, create, open_study
from mathverify_sweep.verifiers import gate as page
from mathverify_sweep.verifiers import verifier

NOW = datetime(2026, 3, 2, tzinfo=UTC)
ME = WorkerIdentity("w", "host", 1, "cpu")
CONFIG = {
    "study": "s",
    "data": {"generated_rows": 2000, "train_rows": 100, "gate_share": 0.3, "test_share": 0.1},
    "search_space": {"learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}},
    "gate": {"finalists": 3, "looks": 3},
}
sqlite = pytest.mark.parametrize("backend", ["sqlite"])


class Played:
    """A study whose trials get so much of validation right, and their further runs so much of the gate."""

    def __init__(self, database: Engine, handle: StudyHandle, output: Path) -> None:
        self.database, self.handle = database, handle
        self.data = dataset.load(handle.config.data_spec)
        self.place = verifier.Place(database, output, cast(Any, None))
        self.dice = np.random.default_rng(0)

    def odds(self, rows: tuple[Row, ...], ability: float) -> np.ndarray:
        truth = np.array([1.0 if row.is_correct else -1.0 for row in rows])
        is_wrong = self.dice.permutation(len(rows)) >= round(ability * len(rows))
        return np.where(is_wrong, -truth, truth)

    def trial(self, ability: float) -> None:
        asked = self.handle.ask()
        assert asked is not None
        spec = self.handle.config.trial_spec(asked.trial_number, asked.params, self.handle.data_fingerprint)
        runs.enqueue(self.database, spec, NOW)
        result = self.finish(ability)
        self.handle.tell(asked.trial_number, result)

    def finish(self, ability: float, gate: float | None = None) -> RunResult:
        """The run that waits longest is trained."""
        claim = runs.claim_waiting(self.database, "s", ME, NOW)
        assert claim is not None
        return self.ended(claim, ability, gate)

    def ended(self, claim: Claim, ability: float, gate: float | None) -> RunResult:
        odds = self.odds(self.data.validation, ability)
        labels = [row.is_correct for row in self.data.validation]
        found = metrics.judge(odds, labels, groups(self.data.validation))
        result = RunResult(
            end_reason=EndReason.FINISHED, value=found.accuracy, metrics=found, log_odds=tuple(odds), adapter="a"
        )
        runs.finish(self.database, claim, result, NOW)
        if gate is not None:
            runs.save_log_odds(self.database, claim.run_id, "gate", list(self.odds(self.data.gate, gate)))
        return result

    def train_what_waits(self, abilities: Mapping[int, float]) -> int:
        count = 0
        while claim := runs.claim_waiting(self.database, "s", ME, NOW):
            assert claim.trial_number is not None
            self.ended(claim, 0.8, abilities[claim.trial_number])
            count += 1
        return count

    def through(self, abilities: Mapping[int, float], top: int = 1) -> page.GateReport:
        """Said again until it has chosen, as its user would."""
        while (report := page.gate(self.place, self.handle, top, NOW)).waiting:
            assert self.train_what_waits(abilities) == report.waiting
        return report


@pytest.fixture
def played(engine: Engine, tmp_path: Path) -> Iterator[Played]:
    config = SweepConfig.model_validate(CONFIG)
    create(engine, config, dataset.load(config.data_spec).fingerprint, NOW)
    with open_study(engine, "s") as handle:
        yield Played(engine, handle, tmp_path)


@sqlite
def test_a_trial_ahead_beyond_the_noise_of_validation_is_chosen_without_another_run(played: Played) -> None:
    for ability in (0.6, 0.95, 0.7):
        played.trial(ability)
    report = page.gate(played.place, played.handle, 1, NOW)
    (one,) = report.finalists
    assert (one.trial_number, one.verdict, report.waiting, report.looks) == (1, "chosen", 0, ())
    assert one.why == "ahead of all others beyond the noise of validation"


@sqlite
def test_the_lucky_one_is_found_out_on_the_gate_and_costs_no_further_runs(played: Played) -> None:
    for ability in (0.80, 0.80, 0.80):
        played.trial(ability)
    lucky = page.gate(played.place, played.handle, 1, NOW).finalists[0].trial_number
    others = [number for number in range(3) if number != lucky]
    report = played.through({lucky: 0.6, others[0]: 0.85, others[1]: 0.84})
    verdicts = {one.trial_number: one for one in report.finalists}
    assert verdicts[lucky].verdict == "dropped"
    assert len(verdicts[lucky].run_ids) == 1, "dropped at the first look"
    assert "look 1: " in verdicts[lucky].why
    assert "<=" in verdicts[lucky].why
    assert len(report.looks) == 3
    assert [verdicts[number].verdict for number in others].count("chosen") == 1


@sqlite
def test_equals_are_chosen_by_the_gate_after_all_looks_and_that_is_said(played: Played) -> None:
    for _ in range(4):
        played.trial(0.8)
    report = played.through(dict.fromkeys(range(4), 0.8), top=2)
    assert len(report.finalists) == 3, "as many as the settings allow"
    assert [look.number for look in report.looks] == [1, 2, 3]
    assert report.looks[0].rows < report.looks[1].rows < report.looks[2].rows == len(played.data.gate)
    chosen = [one for one in report.finalists if one.verdict == "chosen"]
    (other,) = (one for one in report.finalists if one.verdict == "dropped")
    assert len(chosen) == 2
    assert all((one.accuracy or 0) >= (other.accuracy or 0) for one in chosen)
    assert all("not told apart" in one.why for one in report.finalists)
    seeds = {runs.get(played.database, run_id).spec.seed for run_id in chosen[0].run_ids}  # type: ignore[union-attr]
    assert seeds == {1001, 1002, 1003}
    assert page.gate(played.place, played.handle, 2, NOW) == report, "said again, it changes nothing"
    assert runs.claim_waiting(played.database, "s", ME, NOW) is None


@sqlite
def test_a_finalist_whose_further_run_fails_is_dropped(played: Played) -> None:
    for _ in range(2):
        played.trial(0.8)
    report = page.gate(played.place, played.handle, 1, NOW)
    assert report.waiting == 2
    claim = runs.claim_waiting(played.database, "s", ME, NOW)
    assert claim is not None
    runs.finish(played.database, claim, RunResult(end_reason=EndReason.DIVERGED), NOW)
    played.train_what_waits(dict.fromkeys(range(2), 0.8))
    verdicts = {one.trial_number: one for one in page.gate(played.place, played.handle, 1, NOW).finalists}
    assert verdicts[claim.trial_number or 0].why == "trained again with another seed it ended diverged"


@sqlite
def test_more_cannot_be_chosen_than_there_are_finalists(played: Played) -> None:
    for _ in range(4):
        played.trial(0.8)
    with pytest.raises(StudyError, match=r"gate\.finalists must be at least the 4"):
        page.gate(played.place, played.handle, 4, NOW)


def test_alpha_is_spent_late_and_never_more_than_there_is() -> None:
    shares = [page.spent(0.05, look / 3) for look in (1, 2, 3)]
    assert shares == pytest.approx([0.000687, 0.016375, 0.05], abs=1e-6)
    assert page.spent(0.05, 1.0) == pytest.approx(0.05)


def test_an_equal_is_dropped_in_all_looks_together_no_more_often_than_alpha() -> None:
    dice = np.random.default_rng(3)
    alpha, dropped = 0.1, 0
    levels = np.diff([0.0, *(page.spent(alpha, look / 3) for look in (1, 2, 3))])
    for _ in range(150):
        gains = dice.choice([-1.0, 0.0, 1.0], size=240) * np.repeat(dice.integers(1, 3, 120), 2)
        questions = [str(row // 2) for row in range(240)]
        dropped += any(total_p_value(gains[: 80 * n], questions[: 80 * n]) <= levels[n - 1] for n in (1, 2, 3))
    assert dropped / 150 <= alpha + 0.05
