"""What two measured rates say of any number of runs side by side, and what work takes by them."""

from __future__ import annotations

import pytest

from mathverify_sweep import rates
from mathverify_sweep.rates import Rates, Work

BUSY = Rates(
    slots=4, alone=400.0, together=1_000.0, judged=2_000.0, run_seconds=0.5, first_seconds=3.0, validation_rows=100
)


def test_what_was_measured_is_what_is_predicted_for_one_run_and_for_all_slots() -> None:
    assert BUSY.trained(1) == pytest.approx(400)
    assert BUSY.trained(4) == pytest.approx(1_000)


def test_more_runs_are_faster_but_no_more_than_there_are_slots() -> None:
    between = [BUSY.trained(k) for k in (1, 1.5, 2, 3, 4)]
    assert between == sorted(between)
    assert BUSY.trained(2) - BUSY.trained(1) > BUSY.trained(4) - BUSY.trained(3)
    assert BUSY.trained(9) == BUSY.trained(4)
    assert BUSY.trained(0.5) == BUSY.trained(1)


def test_a_device_with_one_slot_has_one_rate() -> None:
    alone = BUSY.model_copy(update={"slots": 1, "together": 400.0})
    assert alone.trained(1) == alone.trained(3) == 400


def test_work_takes_what_its_rows_and_its_runs_take() -> None:
    work = Work(runs=10, rows_trained=4_000, rows_judged=6_000)
    assert BUSY.seconds(work, 4) == pytest.approx(4 + 3 + 5)
    assert BUSY.seconds(work, 1) == pytest.approx(10 + 3 + 5)


def test_workers_that_were_measured_side_by_side_have_one_mean() -> None:
    slower = BUSY.model_copy(update={"alone": 200.0, "run_seconds": 1.5})
    both = rates.mean([BUSY, slower])
    assert (both.alone, both.run_seconds, both.together, both.slots) == (300, 1, 1_000, 4)
