"""What counts as diverged."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest

from mathverify_sweep.errors import TrainingEnded
from mathverify_sweep.states import EndReason
from mathverify_sweep.training.divergence import WINDOW, DivergenceWatch


def steps_until_diverged(losses: Iterable[float]) -> int | None:
    watch = DivergenceWatch()
    for step, loss in enumerate(losses, start=1):
        try:
            watch.check(loss, 1.0, 8 * step)
        except TrainingEnded:
            return step
    return None


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_what_is_no_number_ends_a_run_at_once(loss: float, norm: float) -> None:
    watch = DivergenceWatch()
    watch.check(1.0, 1.0, 8)
    with pytest.raises(TrainingEnded, match="after 16 rows") as ended:
        watch.check(loss, norm, 16)
    assert ended.value.reason is EndReason.DIVERGED


def test_a_loss_that_leaps_and_stays_ends_a_run_within_half_a_window() -> None:
    assert steps_until_diverged([0.6] * 50 + [9.0] * 50) == 50 + WINDOW // 2


def test_a_run_that_explodes_from_its_second_step_on_ends_when_the_window_is_full() -> None:
    assert steps_until_diverged([0.9] + [9.0] * 50) == WINDOW


def test_single_wild_steps_end_nothing() -> None:
    assert steps_until_diverged(([0.5] * 9 + [80.0]) * 20) is None


def test_a_run_no_better_than_a_coin_ends_as_bad_not_as_diverged() -> None:
    assert steps_until_diverged([0.05] * 100 + [math.log(2)] * 100) is None


def test_a_base_that_starts_high_may_stay_there() -> None:
    assert steps_until_diverged([7.0, 9.0, 8.0] * 40) is None
