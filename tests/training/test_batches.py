"""Rows to steps to micro-batches."""

from __future__ import annotations

import random

from mathverify_sweep.data.encode import EncodedRow
from mathverify_sweep.training.batches import micro_batches, total_weight, training_order


def rows(*lengths: int) -> list[EncodedRow]:
    return [EncodedRow(tuple(range(length)), True, i) for i, length in enumerate(lengths)]


def test_an_order_has_every_row_once_and_hangs_on_the_seed() -> None:
    given = rows(*range(1, 51))
    assert training_order(given, 1) == training_order(given, 1) != training_order(given, 2)
    assert sorted(row.index for row in training_order(given, 1)) == list(range(50))


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


def test_a_prompt_weighs_by_the_tokens_that_are_predicted() -> None:
    assert total_weight(rows(5, 3), 0.0) == 2
    assert total_weight(rows(5, 3), 0.5) == 2 + 0.5 * (4 + 2)
