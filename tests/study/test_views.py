"""Claims about what reports read of Optuna."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from sqlalchemy.engine import Engine

from mathverify_sweep.config import SweepConfig
from mathverify_sweep.errors import StudyError
from mathverify_sweep.specs import RunResult
from mathverify_sweep.states import EndReason, RunState
from mathverify_sweep.study import views
from mathverify_sweep.study.study import StudyHandle, create, open_study

CONFIG = {
    "study": "s",
    "search_space": {
        "learning_rate": {"low": 1e-5, "high": 1e-1, "log": True},
        "lora_dropout": {"low": 0.0, "high": 0.1},
    },
    "sampler": {"type": "random"},
}
pytestmark = pytest.mark.parametrize("backend", ["sqlite"])


@pytest.fixture
def handle(engine: Engine) -> Iterator[StudyHandle]:
    create(engine, SweepConfig.model_validate(CONFIG), "f", datetime(2026, 1, 1, tzinfo=UTC))
    with open_study(engine, "s") as handle:
        yield handle


def finish(handle: StudyHandle, trials: int, flat: bool = False) -> None:
    for _ in range(trials):
        asked = handle.ask()
        assert asked is not None
        value = 0.5 if flat else -abs(math.log10(asked.params.learning_rate) + 3) + 0.1 * asked.params.lora_dropout
        handle.tell(asked.trial_number, RunResult(end_reason=EndReason.FINISHED, value=value))


def test_a_trial_is_a_plain_value(engine: Engine, handle: StudyHandle) -> None:
    finish(handle, 1)
    asked = handle.ask()
    assert asked is not None
    handle.report(1, 1250, 0.6)
    ended, running = views.trials(engine, "s")
    assert (ended.number, ended.state, running.state) == (0, RunState.COMPLETE, RunState.RUNNING)
    assert running.params == {"learning_rate": asked.params.learning_rate, "lora_dropout": asked.params.lora_dropout}
    assert (running.value, running.intermediate, running.duration) == (None, {1250: 0.6}, None)
    assert ended.duration is not None
    assert handle.trials() == views.trials(engine, "s")


def test_importances_say_which_axis_matters_the_same_each_time(engine: Engine, handle: StudyHandle) -> None:
    finish(handle, 12)
    found = views.parameter_importances(engine, "s")
    assert found == views.parameter_importances(engine, "s")
    assert list(found) == ["learning_rate", "lora_dropout"]
    assert sum(found.values()) == pytest.approx(1)
    assert found["learning_rate"] > 0.6


def test_importances_of_few_or_equal_trials_are_not_guessed(engine: Engine, handle: StudyHandle) -> None:
    assert views.parameter_importances(engine, "s") == {}
    finish(handle, views.MIN_TRIALS - 1)
    assert views.parameter_importances(engine, "s") == {}


def test_importances_of_equal_trials_are_not_guessed(engine: Engine, handle: StudyHandle) -> None:
    finish(handle, 6, flat=True)
    assert views.parameter_importances(engine, "s") == {}


def test_an_unknown_study_is_an_error(engine: Engine, handle: StudyHandle) -> None:
    finish(handle, 1)
    with pytest.raises(StudyError, match="Did you mean 's'"):
        views.trials(engine, "s1")
