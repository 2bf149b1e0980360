"""What a study is expected to do before it has begun; held against formulas, and against one that was run."""

from __future__ import annotations

from typing import Any

import pytest

from mathverify_sweep import sweep_file
from mathverify_sweep.config import SweepConfig
from mathverify_sweep.study import expected

SPACE = {
    "learning_rate": {"low": 1e-5, "high": 1e-1, "log": True},
    "lora_r": {"choices": [8, 16, 32, 64]},
    "lr_scheduler_type": {"choices": ["linear", "cosine_with_restarts"]},
    "lr_num_cycles": {"low": 2, "high": 5, "when": {"lr_scheduler_type": "cosine_with_restarts"}},
}


def config(**pruner: Any) -> SweepConfig:
    """The shape of the SmolLM2 study: 31 trials of 10,000 rows, rungs at 2,500 and 5,000 of which each keeps half."""
    return SweepConfig.model_validate(
        {
            "study": "s",
            "search_space": SPACE,
            "data": {"train_rows": 10_000},
            "pruner": {"type": "asha", "min_rows": 2_500, "reduction_factor": 2} | pruner,
            "budget": {"trials": 31},
        }
    )


def test_settings_are_points_of_the_space_from_all_over_it() -> None:
    found = expected.settings(config(), 32)
    assert {params.lora_r for params in found} == {8, 16, 32, 64}
    ranks = [params.lora_r for params in found]
    assert all(ranks.count(rank) == 8 for rank in {*ranks})
    assert expected.settings(config(), 32) == found


def test_a_space_without_axes_has_one_setting() -> None:
    fixed = SweepConfig.model_validate({"study": "s", "search_space": {"lora_r": 8}})
    assert {params.lora_r for params in expected.settings(fixed, 3)} == {8}


def test_without_a_pruner_every_trial_trains_all_its_rows() -> None:
    silent, told = config(type="none", min_rows=None), config(type="none")
    assert expected.pruned(silent) == expected.unpruned(silent) == expected.Trials(310_000, 0, 31)
    assert expected.pruned(told) == expected.unpruned(told) == expected.Trials(310_000, 31 * 3, 31)


def test_a_trial_is_as_long_as_its_own_steps_and_looks_at_the_rungs_below_its_end() -> None:
    enqueue = [{"max_steps": 1, "effective_batch_size": 8}, {"max_steps": 300, "effective_batch_size": 16}]
    raw = {
        "study": "s",
        "search_space": {"max_steps": {"choices": [1, 300, 400]}, "effective_batch_size": {"choices": [8, 16]}},
        "enqueue": enqueue,
        "data": {"train_rows": 6_400},
        "pruner": {"type": "none", "min_rows": 1_600},
        "budget": {"trials": 2},
    }
    two = SweepConfig.model_validate(raw)
    assert expected.unpruned(two) == expected.pruned(two) == expected.Trials(8 + 4_800, 2, 2)
    more = expected.unpruned(SweepConfig.model_validate(raw | {"budget": {"trials": 8}}))
    assert 4_808 < more.rows < 4_808 + 6 * 6_400, "the others are drawn"


def test_the_published_ladder_trains_what_its_trials_say() -> None:
    assert expected.unpruned(sweep_file.require("published/000/sweep")).rows == 49_608


def test_at_the_first_rung_trials_are_pruned_as_often_as_the_rule_of_asha_says() -> None:
    # The i-th trial at a rung goes on when it is among the best i // 2 so far, and the first one always.
    passing = sum(max(1, i // 2) / i for i in range(1, 32))
    found = expected.pruned(config())
    assert found.looks == pytest.approx(31 + passing, rel=0.05)
    assert found.finished < passing


def test_a_study_that_was_run_is_told_before_from_its_sweep_file_alone() -> None:
    # docs/results/smollm2_verification.md
    found = expected.pruned(config())
    assert found.rows == pytest.approx(175_304, rel=0.1)
    assert found.finished == pytest.approx(11, abs=2)


@pytest.mark.parametrize("kind", ["hyperband", "median"])
def test_every_pruner_spares_something(kind: str) -> None:
    study = config(type=kind)
    assert study.trials * 2_500 < expected.pruned(study).rows < expected.unpruned(study).rows


def test_of_a_long_study_the_rest_goes_like_its_beginning() -> None:
    def of(trials: int) -> expected.Trials:
        study = config()
        return expected.pruned(study.model_copy(update={"budget": study.budget.model_copy(update={"trials": trials})}))

    assert of(10 * expected.MOST_TRIALS).rows == pytest.approx(10 * of(expected.MOST_TRIALS).rows)
