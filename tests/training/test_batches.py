"""Rows to steps to micro-batches."""

from __future__ import annotations

import random

from mathverify_sweep.data.encode import EncodedRow
from mathverify_sweep.specs import RunSpec
from mathverify_sweep.training.batches import micro_batches, total_weight, training_order


def rows(*lengths: int) -> list[EncodedRow]:
    return [EncodedRow(tuple(range(length)), True, i) for i, length in enumerate(lengths)]


def test_an_order_has_every_row_once_and_hangs_on_the_seed(spec: RunSpec) -> None:
    given = rows(*range(1, 101))
    one, other = (spec.model_copy(update={"seed": seed}) for seed in (1, 2))
    assert training_order(given, one) == training_order(given, one) != training_order(given, other)
    assert sorted(row.index for row in training_order(given, one)) == list(range(100))


def test_an_order_is_the_one_that_it_was_before_there_were_blocks(spec: RunSpec) -> None:
    given = rows(*range(1, 101))
    expected = list(given)
    random.Random(spec.seed).shuffle(expected)
    assert training_order(given, spec) == expected


def test_rows_that_do_not_fit_move_no_other_row_into_another_block(spec: RunSpec) -> None:
    """Two runs that begin alike, of a table with gaps."""
    given = [row for row in rows(*range(1, 101)) if row.index % 7]
    piece = spec.model_copy(update={"train_rows": 60, "blocks": (30,), "leaves_state": True})
    piece = piece.model_copy(update={"params": piece.params.model_copy(update={"effective_batch_size": 8})})
    longer = spec.model_copy(update={"train_rows": 90, "blocks": (30, 60)})
    begun = training_order([row for row in given if row.index < 60], piece)
    assert len(begun) == 48, "51 rows fit: six whole batches"
    assert training_order(given, longer)[:48] == begun


def test_micro_batches_hold_every_row_once_within_the_budget() -> None:
    dice = random.Random(0)
    for _ in range(100):
        lengths = [dice.randint(1, 60) for _ in range(dice.randint(1, 40))]
        cut = micro_batches(lengths, 100)
        assert sorted(i for batch in cut for i in batch) == list(range(len(lengths)))
        assert all(len(batch) * max(lengths[i] for i in batch) <= 100 for batch in cut)


def test_a_row_longer_than_the_budget_goes_alone() -> None:
    assert micro_batches([5, 90, 5], 20) == [[1], [0, 2]]


def test_rows_of_like_length_go_together() -> None:
    assert micro_batches([10, 2, 10, 2, 10, 2], 30) == [[0, 2, 4], [1, 3, 5]]


def test_every_token_that_is_learnt_weighs_1() -> None:
    row = EncodedRow(tuple(range(5)), True, 0, learnt=3, end=9)
    assert total_weight([row], 0.0) == 3
    assert total_weight([row], 0.5) == 3 + 0.5 * 2, "the last two of the five, and the end; two of the prompt"


def test_a_prompt_weighs_by_the_tokens_that_are_predicted() -> None:
    assert total_weight(rows(5, 3), 0.0) == 2
    assert total_weight(rows(5, 3), 0.5) == 2 + 0.5 * (4 + 2)
