"""Claims about the stages of every plan: which rows, from what, at which settings. Plans are pure, so no database."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mathverify_sweep.config import PromotionConfig
from mathverify_sweep.data.encode import EncodedRow
from mathverify_sweep.errors import StudyError
from mathverify_sweep.specs import PlannedStage, RunSpec
from mathverify_sweep.study import plans
from mathverify_sweep.training.batches import training_order

QUARTERS = (0.25, 0.5, 0.75, "all")


def planned(spec: RunSpec, available: int = 1000, **changes: Any) -> tuple[PlannedStage, ...]:
    return plans.plan(spec, available, PromotionConfig.model_validate({"stages": QUARTERS, **changes}))


def met(spec: RunSpec) -> list[int]:
    """Numbers of the rows that a run of the spec meets, in its order; all rows fit."""
    rows = [EncodedRow((1,), True, index) for index in range(spec.train_rows)]
    return [row.index for row in training_order(rows, spec)]


def builds_on(stages: tuple[PlannedStage, ...]) -> list[tuple[int | None, tuple[int, ...], int | None]]:
    return [(stage.after, stage.start_from, stage.goes_on_from) for stage in stages]


def test_cumulative_stages_take_more_and_more_rows_from_the_best_adapter_so_far(spec: RunSpec) -> None:
    stages = planned(spec)
    assert [(s.spec.stage, s.spec.train_rows, s.spec.skip_rows) for s in stages] == [
        (1, 250, 0),
        (2, 500, 0),
        (3, 750, 0),
        (4, 1000, 0),
    ]
    assert builds_on(stages) == [(None, (), None), (0, (0,), None), (1, (0, 1), None), (2, (0, 1, 2), None)]
    assert all(sorted(met(s.spec)) == list(range(s.spec.train_rows)) for s in stages)


def test_a_stage_is_as_long_as_the_plan_says_whatever_its_trial_was(spec: RunSpec) -> None:
    short = spec.model_copy(update={"params": spec.params.model_copy(update={"max_steps": 3}), "train_rows": 96})
    assert planned(short) == planned(spec)


def test_sequential_stages_take_what_is_new_from_the_last_adapter(spec: RunSpec) -> None:
    stages = planned(spec, plan="sequential")
    assert builds_on(stages) == [(None, (), None), (0, (0,), None), (1, (1,), None), (2, (2,), None)]
    assert [sorted(met(s.spec)) for s in stages] == [list(range(k, k + 250)) for k in (0, 250, 500, 750)]


def test_a_replay_stage_adds_a_share_of_the_old_rows_that_the_seed_draws(spec: RunSpec) -> None:
    stages = planned(spec, plan="replay", replay_share=0.2)
    for stage, old in zip(stages, (0, 250, 500, 750), strict=True):
        again = [row for row in met(stage.spec) if row < old]
        assert len(again) == len(set(again)) == round(0.2 * old)
        assert set(met(stage.spec)) - set(again) == set(range(old, old + 250))
    other = planned(spec, plan="replay", replay_share=0.2, seed=7)
    assert set(met(other[3].spec)) != set(met(stages[3].spec))


def test_scratch_is_one_run_over_the_largest_stage(spec: RunSpec) -> None:
    (stage,) = planned(spec, plan="scratch")
    assert (stage.spec.stage, stage.spec.train_rows, stage.spec.params) == (1, 1000, spec.params)
    assert builds_on((stage,)) == [(None, (), None)]


def test_a_trunk_meets_the_rows_of_every_stage_once_in_a_piece_and_a_cooldown(spec: RunSpec) -> None:
    stages = planned(spec, plan="trunk", cooldown_share=0.2)
    pieces, cooldowns = stages[::2], stages[1::2]
    assert [s.spec.stage for s in stages] == list(range(1, 9))
    assert [s.spec.train_rows for s in pieces] == [200, 400, 600, 800]
    assert [s.spec.train_rows for s in cooldowns] == [250, 500, 750, 1000]
    assert builds_on(pieces) == [(None, (), None), (0, (), 0), (2, (), 2), (4, (), 4)]
    assert builds_on(cooldowns) == [(0, (), 0), (2, (), 2), (4, (), 4), (6, (), 6)]
    for number, (piece, cooldown) in enumerate(zip(pieces, cooldowns, strict=True)):
        run = met(cooldown.spec)
        assert sorted(run) == list(range(cooldown.spec.train_rows))
        assert run[: len(met(piece.spec))] == met(piece.spec), "the cooldown begins as the trunk"
        assert number == 0 or met(piece.spec)[: len(met(pieces[number - 1].spec))] == met(pieces[number - 1].spec)


def test_a_cooldown_begins_to_fall_where_its_piece_stops_and_the_warm_up_is_the_first_stages(spec: RunSpec) -> None:
    stages = planned(spec, plan="trunk", cooldown_share=0.2)
    for piece, cooldown in zip(stages[::2], stages[1::2], strict=True):
        steps = math.ceil(cooldown.spec.train_rows / 32)
        falling = round(cooldown.spec.params.lr_decay_share * steps)
        assert steps - falling == len(met(piece.spec)) // 32
        assert piece.spec.params.warmup_steps == cooldown.spec.params.warmup_steps == 1  # 5 % of 8 steps, rounded up
        assert piece.spec.params.lr_scheduler_type == "constant_with_warmup"
        assert piece.spec.leaves_state
        assert not cooldown.spec.leaves_state


@pytest.mark.parametrize("plan", ["cumulative", "sequential", "replay", "scratch", "trunk"])
def test_plans_with_as_many_passes_take_as_many_steps(spec: RunSpec, plan: str) -> None:
    stages = planned(spec, 10_000, plan=plan, passes=2.5)
    resumed = [0 if s.goes_on_from is None else stages[s.goes_on_from].spec.rows_to_meet for s in stages]
    rows = sum(s.spec.rows_to_meet - before for s, before in zip(stages, resumed, strict=True))
    assert rows == pytest.approx(25_000, abs=len(stages))


def test_an_epoch_and_a_half_meets_half_of_the_rows_twice_each_time_in_another_order(spec: RunSpec) -> None:
    (stage,) = planned(spec, plan="scratch", passes=1.5)
    order = met(stage.spec)
    assert len(order) == stage.spec.rows_to_meet == 1500
    assert sorted(order[:1000]) == list(range(1000))
    assert len(set(order[1000:])) == 500
    assert order[1000:] != order[:500]


def test_rounds_are_as_listed_each_from_the_last_adapter(spec: RunSpec) -> None:
    """The four rounds of a published report, with a change of precision."""
    rounds = [
        {"steps": 400, "effective_batch_size": 24, "learning_rate": 2e-4},
        {"steps": 400, "effective_batch_size": 16, "learning_rate": 1e-4},
        {"steps": 400, "effective_batch_size": 16, "quantization": "none", "compute_dtype": "bfloat16"},
        {"rows": 0.5},
    ]
    stages = planned(spec, 30_000, plan="rounds", rounds=rounds)
    assert [(s.spec.skip_rows, s.spec.train_rows) for s in stages] == [
        (0, 9_600),
        (9_600, 16_000),
        (16_000, 22_400),
        (0, 15_000),
    ]
    assert [s.spec.params.effective_batch_size for s in stages] == [24, 16, 16, 32]
    assert [s.spec.params.learning_rate for s in stages] == [2e-4, 1e-4, 2e-4, 2e-4]
    assert [s.spec.base_model.quantization for s in stages] == ["nf4", "nf4", "none", "nf4"]
    assert stages[2].spec.base_model.compute_dtype == "bfloat16"
    assert builds_on(stages) == [(None, (), None), (0, (0,), None), (1, (1,), None), (2, (2,), None)]
    with pytest.raises(StudyError, match="round 3 needs the training rows 16,000 to 22,400, there are 20,000"):
        planned(spec, 20_000, plan="rounds", rounds=rounds)


def test_a_trunk_without_a_step_before_its_first_cooldown_is_refused(spec: RunSpec) -> None:
    with pytest.raises(StudyError, match=r"a whole effective batch \(32 rows\) before its first cooldown"):
        planned(spec, 100, plan="trunk")


@pytest.mark.parametrize(
    "wrong", [{"plan": "rounds"}, {"rounds": [{"rows": 3}]}, {"plan": "rounds", "rounds": [{"rows": 3, "steps": 4}]}]
)
def test_settings_that_do_not_fit_their_plan_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="round"):
        PromotionConfig.model_validate(wrong)


def test_the_key_of_a_promotion_names_what_decides_its_stages_and_is_as_it_was() -> None:
    old = PromotionConfig(stages=(100, 0.5, "all"), top=3, replay_share=0.9)
    assert old.key == '{"plan":"cumulative","stages":[100,0.5,"all"]}', "databases of earlier versions have these"
    assert PromotionConfig(plan="replay").key != PromotionConfig(plan="replay", replay_share=0.9).key
    assert PromotionConfig(seed=1).key != PromotionConfig(seed=2).key


def test_a_stage_no_larger_than_the_one_before_is_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    assert plans.sizes((20_000, 40_000, "all"), 15_000) == [15_000]
    assert "stage 40000 left out" in caplog.text
    assert plans.sizes((20_000, 40_000, 60_000, "all"), 50_000) == [20_000, 40_000, 50_000]
    assert plans.sizes((0.5, 1.0), 3) == [2, 3]
    assert plans.sizes((0.01, "all"), 3) == [1, 3]


@given(st.integers(40, 3_000), st.floats(0.05, 0.6), st.integers(1, 16), st.floats(0.6, 4), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_whatever_the_sizes_a_cooldown_begins_as_its_trunk(
    available: int, share: float, batch: int, passes: float, seed: int
) -> None:
    trial = _spec(batch)
    try:
        stages = planned(trial, available, plan="trunk", cooldown_share=share, passes=passes, seed=seed)
    except StudyError:
        return
    for piece, cooldown in zip(stages[::2], stages[1::2], strict=True):
        begun, whole = met(piece.spec), met(cooldown.spec)
        assert len(begun) % batch == 0
        assert whole[: len(begun)] == begun
        assert set(range(cooldown.spec.train_rows)) == set(whole) or piece.spec.epochs < 1


def _spec(batch: int) -> RunSpec:
    empty: dict[str, Any] = {"base_model": {}, "data": {}, "params": {"effective_batch_size": batch}}
    return RunSpec.model_validate(
        {"study_name": "s", "trial_number": 0, "data_fingerprint": "f", "train_rows": 100, **empty}
    )


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ("cumulative", [(100,), (100, 250), (100, 250, 400)]),
        ("sequential", [(100,), (100, 250), (100, 250, 400)]),
        ("scratch", [(100, 250, 400)]),
        ("trunk", [(), (100,), (), (100, 250), (), (100, 250, 400)]),
    ],
)
def test_every_stage_is_read_on_all_slices_up_to_its_own(
    spec: RunSpec, plan: str, expected: list[tuple[int, ...]]
) -> None:
    settings = PromotionConfig.model_validate({"plan": plan, "stages": [100, 250, "all"], "slice_rows": 50})
    stages = plans.plan(spec, 400, settings)
    assert [stage.spec.slices for stage in stages] == expected
    assert {stage.spec.slice_rows for stage in stages} == {50}


def test_slices_of_rounds_end_where_rounds_end(spec: RunSpec) -> None:
    rounds = [{"steps": 5}, {"steps": 5}, {"rows": 400}]
    settings = PromotionConfig.model_validate({"plan": "rounds", "rounds": rounds})
    batch = spec.params.effective_batch_size
    found = [stage.spec.slices for stage in plans.plan(spec, 400, settings)]
    assert found == [(5 * batch,), (5 * batch, 10 * batch), (5 * batch, 10 * batch, 400)]


def test_stages_that_may_be_taken_back_know_all_stages_before_them(spec: RunSpec) -> None:
    for go_back, expected in ((False, [(), (0,), (1,)]), (True, [(), (0,), (0, 1)])):
        settings = PromotionConfig.model_validate({"plan": "sequential", "stages": [100, 200, 300], "go_back": go_back})
        stages = plans.plan(spec, 300, settings)
        assert [stage.start_from for stage in stages] == expected
        assert [stage.spec.goes_back for stage in stages] == [False, go_back, go_back]
    for wrong in ({"plan": "cumulative"}, {"plan": "replay", "least_gain": 0.01}):
        with pytest.raises(ValidationError, match="go_back"):
            PromotionConfig.model_validate({**wrong, "go_back": True})
