"""What a stage knows of each slice of the data up to it: on rows that it or an earlier stage was trained on, where what
falls from stage to stage is forgotten, and on validation rows, which nobody was trained on.

A slice is a piece of the nested order of training rows. Its held-back rows are the piece of validation at the same
shares of its own random order. Of a stage that solves only held-back rows count: it has looked at them already, while
every row that it was trained on would have to be written anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from mathverify_sweep.data.encode import EncodedRow
from mathverify_sweep.specs import RunSpec, SliceFigures

Read = Callable[[Sequence[EncodedRow]], Sequence[float]]
"""The log-odds of rows that are numbered from 0, in that order, by the run's model as it stands."""


@dataclass(frozen=True)
class Slice:
    """Training rows `first` to `end` of the nested order: a sample of them, and the held-back rows' places."""

    first: int
    end: int
    met: tuple[EncodedRow, ...]
    held_back: slice


def of(spec: RunSpec, nested: Sequence[EncodedRow], all_training: int, all_validation: int) -> tuple[Slice, ...]:
    """The slices of a stage; `nested` are its encoded rows in the nested order, those that do not fit left out."""
    sampled = 0 if spec.data.task == "solving" else spec.slice_rows
    found = []
    for first, end in pairwise((0, *spec.slices)):
        met = [row for row in nested if first <= row.index < min(end, first + sampled)]
        places = slice(*(all_validation * min(at, all_training) // all_training for at in (first, end)))
        found.append(Slice(first, end, tuple(met), places))
    return tuple(found)


def figures(
    slices: Sequence[Slice], validation_odds: Sequence[float], labels: Sequence[bool], read: Read
) -> tuple[SliceFigures, ...]:
    """Accuracy at log-odds 0 on each slice; all of their rows are read at once."""
    if not slices:
        return ()
    rows = [row for each in slices for row in each.met]
    said = list(read([replace(row, index=number) for number, row in enumerate(rows)]))
    right = np.equal(np.array(validation_odds) >= 0, np.array(labels))
    found = []
    for each in slices:
        mine, said = said[: len(each.met)], said[len(each.met) :]
        met = [(odds >= 0) == row.is_correct for odds, row in zip(mine, each.met, strict=True)]
        held_back = right[each.held_back]
        found.append(
            SliceFigures(
                first_row=each.first,
                end_row=each.end,
                met_rows=len(met),
                met_accuracy=float(np.mean(met)) if met else None,
                held_back_rows=len(held_back),
                held_back_accuracy=float(np.mean(held_back)) if len(held_back) else None,
            )
        )
    return tuple(found)
