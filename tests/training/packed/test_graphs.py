"""What is recorded has one shape: passes are padded to it, and nothing that is added counts."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from mathverify_sweep.data.encode import EncodedRow
from mathverify_sweep.training.packed.graphs import Shape, padded
from mathverify_sweep.training.packed.stream import Laid, Share, Stream

ANSWERS = (7, 8)


def shares(dice: random.Random, count: int) -> list[Share]:
    def row(index: int) -> EncodedRow:
        return EncodedRow(tuple(dice.choices(range(5, 99), k=dice.randint(1, 60))), dice.random() < 0.5, index)

    return [Share(None, [row(i) for i in range(dice.randint(1, 6))], whole=3.0, noise=n + 1) for n in range(count)]


@pytest.mark.parametrize("seed", range(40))
def test_a_padded_pass_is_the_pass_and_nothing_that_counts(seed: int) -> None:
    dice = random.Random(seed)
    laid = Laid.of(shares(dice, dice.randint(1, 4)), ANSWERS)
    tokens, rows, runs = len(laid.ids), len(laid.read), len(laid.token_ends)
    more = 0 if seed % 5 == 0 else dice.randint(1, 200)
    shape = Shape(tokens + more, rows + more // 64 + 1 + dice.randint(0, 9), 64, runs + dice.randint(0, 3), False)
    wide = padded(laid, shape)

    assert (len(wide.ids), len(wide.positions)) == (shape.tokens, shape.tokens)
    assert (len(wide.row_ends), len(wide.read), len(wide.token_ends)) == (shape.rows + 1, shape.rows, shape.runs)
    for name in ("ids", "positions"):
        assert np.array_equal(getattr(wide, name)[:tokens], getattr(laid, name))
    for name in ("read", "targets", "weights", "owners"):
        assert np.array_equal(getattr(wide, name)[:rows], getattr(laid, name))
    assert not wide.weights[rows:].any()
    # What is added belongs to the last run, in rows that fit; runs behind it have nothing.
    assert np.array_equal(wide.token_ends[: runs - 1], laid.token_ends[:-1])
    assert set(wide.token_ends[runs - 1 :].tolist()) == {shape.tokens}
    assert set(wide.read_ends[runs - 1 :].tolist()) == {shape.rows}
    lengths = np.diff(wide.row_ends)
    assert np.array_equal(lengths[:rows], np.diff(laid.row_ends))
    assert (lengths >= 0).all()
    assert lengths.max() <= shape.longest
    assert wide.row_ends[-1] == shape.tokens
    starts = wide.row_ends[:-1][lengths > 0]
    assert (wide.positions[starts] == 0).all()
    assert wide.read.max() < shape.tokens


def test_a_recorded_pass_takes_the_next_one_into_the_same_memory() -> None:
    dice = random.Random(1)
    shape = Shape(512, 64, 64, 4, False)
    first, second = (padded(Laid.of(shares(dice, count), ANSWERS), shape) for count in (2, 3))
    cpu = torch.device("cpu")
    stream = Stream(first, cpu)
    where = stream.ids.data_ptr()
    stream.fill(second)
    fresh = Stream(second, cpu)
    assert stream.ids.data_ptr() == where
    for name in ("ids", "positions", "row_ends", "token_ends", "read_ends", "read", "targets", "weights", "owners"):
        assert torch.equal(getattr(stream, name), getattr(fresh, name)), name
    losses = torch.arange(64, dtype=torch.float32)
    assert torch.equal(stream.by_run(losses), fresh.by_run(losses))
    assert stream.noise.tolist() == [1, 2, 3, 0]
