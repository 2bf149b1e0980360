"""Claims about which trials are promoted."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from sqlalchemy.engine import Engine

from mathverify_sweep.config import SweepConfig
from mathverify_sweep.errors import StudyError
from mathverify_sweep.specs import RunResult
from mathverify_sweep.states import EndReason
from mathverify_sweep.study import promotion
from mathverify_sweep.study.study import StudyHandle, create, open_study

NOW = datetime(2026, 1, 1, tzinfo=UTC)
on_accuracy = pytest.mark.parametrize(("backend", "objective"), [("sqlite", "validation_accuracy")])
on_loss = pytest.mark.parametrize(("backend", "objective"), [("sqlite", "validation_log_loss")])


@pytest.fixture
def study(engine: Engine, objective: str) -> Iterator[StudyHandle]:
    """Trials with values 0.7, 0.9, 0.9, one pruned at 0.99, and one that still runs."""
    config = SweepConfig.model_validate(
        {
            "study": "s",
            "objective": objective,
            "search_space": {"learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}, "lora_r": 8},
            "data": {"train_rows": 80},
        }
    )
    create(engine, config, "f", NOW)
    with open_study(engine, "s") as handle:
        for number, value in enumerate((0.7, 0.9, 0.9)):
            handle.ask()
            handle.tell(number, RunResult(end_reason=EndReason.FINISHED, value=value))
        handle.ask()
        handle.report(3, 10, 0.99)
        handle.tell(3, RunResult(end_reason=EndReason.PRUNED))
        handle.ask()
        yield handle


@on_accuracy
def test_the_best_complete_trials_are_promoted_the_earlier_of_equals_first(study: StudyHandle) -> None:
    assert promotion.select(study, 2) == [1, 2]
    assert promotion.select(study, 3) == [1, 2, 0]


@on_loss
def test_a_low_loss_is_better(study: StudyHandle) -> None:
    assert promotion.select(study, 1) == [0]


@on_accuracy
def test_more_than_there_are_is_an_error(study: StudyHandle) -> None:
    with pytest.raises(StudyError, match="3 complete trial"):
        promotion.select(study, 4)


@on_accuracy
def test_only_a_complete_trial_can_be_promoted(study: StudyHandle) -> None:
    with pytest.raises(StudyError, match="is PRUNED"):
        promotion.spec_of(study, 3)
    with pytest.raises(StudyError, match="does not exist"):
        promotion.spec_of(study, 9)


@on_accuracy
def test_a_promotion_starts_from_the_trials_spec(study: StudyHandle) -> None:
    spec = promotion.spec_of(study, 1)
    assert spec.params.learning_rate == study.trials()[1].params["learning_rate"]
    assert (spec.params.lora_r, spec.trial_number, spec.train_rows) == (8, 1, 80)
    assert spec.data_fingerprint == "f"
