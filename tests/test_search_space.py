"""Claims about search spaces: axes, their order, their conditions, their grid."""

from __future__ import annotations

from typing import Any

import pytest

from mathverify_sweep import search_space
from mathverify_sweep.search_space import Choices, Range, SearchSpace


def parsed(**entries: Any) -> SearchSpace:
    space, problems = search_space.parse(entries)
    assert problems == []
    return space


def problems(**entries: Any) -> list[str]:
    return search_space.parse(entries)[1]


def test_an_entry_is_a_value_choices_or_a_range() -> None:
    space = parsed(lora_r=8, optim={"choices": ["adamw_torch"]}, lora_dropout={"low": 0.0, "high": 0.2, "step": 0.1})
    assert space.fixed == {"lora_r": 8}
    assert [axis.distribution for axis in space.axes] == [
        Choices(("adamw_torch",)),
        Range(0.0, 0.2, whole=False, step=0.1),
    ]


def test_whether_a_range_is_whole_follows_from_the_axis() -> None:
    space = parsed(lora_r={"low": 4, "high": 64, "log": True}, lora_alpha={"low": 4, "high": 64})
    assert [str(axis.distribution) for axis in space.axes] == ["log int 4 to 64", "float 4 to 64"]


def test_sampled_values_go_over_fixed_ones_over_defaults() -> None:
    params = parsed(lora_r=8, weight_decay=0.1).params({"weight_decay": 0.2})
    assert (params.lora_r, params.weight_decay, params.optim) == (8, 0.2, "adamw_torch")


def test_an_axis_comes_after_what_its_condition_asks_for() -> None:
    space = parsed(
        lr_num_cycles={"low": 2, "high": 4, "when": {"lr_scheduler_type": ["cosine_with_restarts"]}},
        lr_scheduler_type={"choices": ["linear", "cosine_with_restarts"]},
    )
    assert [axis.name for axis in space.axes] == ["lr_scheduler_type", "lr_num_cycles"]
    cycles = space.axes[1]
    assert cycles.applies({"lr_scheduler_type": "cosine_with_restarts"})
    assert not cycles.applies({"lr_scheduler_type": "linear"})
    assert not cycles.applies({})


def test_a_condition_may_ask_for_a_fixed_value() -> None:
    space = parsed(
        lr_scheduler_type="warmup_stable_decay",
        lr_decay_share={"low": 0.1, "high": 0.5, "when": {"lr_scheduler_type": "warmup_stable_decay"}},
    )
    assert space.axes[0].applies(space.fixed)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"lora_r": {"choices": []}}, "search_space.lora_r.choices: must be a list of at least one value"),
        ({"lora_r": {"choices": [8, 8]}}, "search_space.lora_r.choices: each value once"),
        ({"lora_r": {"choices": [8], "low": 1}}, "search_space.lora_r.low: not a key"),
        ({"lora_r": {"low": 4, "high": 8, "log": "yes"}}, "search_space.lora_r.log: must be true or false"),
        ({"lora_r": {"low": 4, "high": 8, "step": 0}}, "search_space.lora_r.step: must be a number above 0"),
        ({"lora_r": {"low": 4, "high": 8, "step": 0.5}}, "search_space.lora_r.step: must be a whole number"),
        ({"lora_r": {"low": 4.5, "high": 8}}, "search_space.lora_r.low: "),
        ({"weight_decay": {"low": 0, "high": 0.1, "log": True}}, "search_space.weight_decay.low: a log range starts"),
        ({"lora_r": True}, "search_space.lora_r: "),
        ({"use_rslora": 1}, "search_space.use_rslora: "),
        ({"optim": "sgd"}, "search_space.optim: "),
        ({"lora_r": {"choices": [8, 9], "when": "always"}}, "search_space.lora_r.when: must name axes"),
        ({"lr_num_cycles": {"low": 1, "high": 3}}, "search_space.lr_num_cycles: only cosine_with_restarts reads it"),
    ],
)
def test_a_wrong_entry_says_the_rule_with_its_key(entries: dict[str, Any], said: str) -> None:
    found = problems(**entries)
    assert len(found) == 1
    assert found[0].startswith(said)


def test_a_condition_on_a_value_that_never_comes_is_told() -> None:
    found = problems(
        lr_scheduler_type={"choices": ["linear", "cosine_with_restarts"]},
        lr_num_cycles={"low": 2, "high": 4, "when": {"lr_scheduler_type": "cosine_with_restart"}},
    )
    assert found == [
        "search_space.lr_num_cycles.when.lr_scheduler_type: never 'cosine_with_restart'. "
        "It may be linear, cosine_with_restarts."
    ]


def test_a_grid_holds_every_point_once_with_axes_only_where_they_apply() -> None:
    space = parsed(
        lr_scheduler_type={"choices": ["linear", "cosine_with_restarts"]},
        lr_num_cycles={"low": 2, "high": 3, "when": {"lr_scheduler_type": "cosine_with_restarts"}},
    )
    assert space.grid() == (
        {"lr_scheduler_type": "linear"},
        {"lr_scheduler_type": "cosine_with_restarts", "lr_num_cycles": 2},
        {"lr_scheduler_type": "cosine_with_restarts", "lr_num_cycles": 3},
    )
    assert space.grid_size == 3


def test_steps_on_a_grid_stay_within_the_range() -> None:
    assert search_space.grid_values(Range(0.0, 0.3, whole=False, step=0.1)) == (0.0, 0.1, 0.2, 0.3)
    assert search_space.grid_values(Range(1, 8, whole=True, step=3)) == (1, 4, 7)


def test_a_range_without_steps_has_no_grid() -> None:
    assert parsed(learning_rate={"low": 1e-5, "high": 1e-3}).grid_size is None
    assert parsed(lora_r={"low": 4, "high": 8}).grid_size == 5


def test_a_huge_grid_is_counted_without_being_made() -> None:
    space = parsed(lora_r={"low": 1, "high": 1024}, effective_batch_size={"low": 1, "high": 4096})
    assert space.grid_size == 1024 * 4096


def test_an_axis_knows_which_values_it_takes() -> None:
    whole, stepped, free, chosen = parsed(
        lora_r={"low": 4, "high": 8},
        lora_dropout={"low": 0, "high": 0.3, "step": 0.1},
        learning_rate={"low": 1e-5, "high": 1e-3, "log": True},
        optim={"choices": ["adamw_torch", "lion_8bit"]},
    ).axes
    assert whole.takes(8)
    assert not whole.takes(9)
    assert stepped.takes(0.3)
    assert not stepped.takes(0.25)
    assert free.takes(1e-3)
    assert not free.takes(2e-3)
    assert chosen.takes("lion_8bit")
    assert not chosen.takes("paged_adamw_8bit")
