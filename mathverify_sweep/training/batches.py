"""Which rows make a step, and how a step is cut into micro-batches. Plain arithmetic: no torch here.

The effective batch is the trial's and decides the mathematics. A micro-batch is the machine's and decides memory and
speed only.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

from mathverify_sweep.data.encode import EncodedRow
from mathverify_sweep.specs import RunSpec


def training_order(rows: Sequence[EncodedRow], spec: RunSpec) -> list[EncodedRow]:
    """The rows as a run of the spec meets them. The same rows and spec give the same order on every machine.

    `rows` are the first of the nested order, as far as they fit; their `index` is their place in it. Two runs with the
    same seed, epochs and cuts begin with the same rows, however long they are.
    """
    dice = random.Random(f"{spec.seed} replay {spec.skip_rows}")  # a string: the same numbers in every Python
    replayed = set(dice.sample(range(spec.skip_rows), spec.replay_rows))
    ordered: list[EncodedRow] = []
    for begin, end in pairwise((0, *spec.blocks, spec.train_rows)):
        block = [
            row for row in rows if begin <= row.index < end and (row.index >= spec.skip_rows or row.index in replayed)
        ]
        ordered += _shuffled(block, spec, begin)
    if spec.leaves_state:
        del ordered[len(ordered) - len(ordered) % spec.params.effective_batch_size :]
    return ordered


def micro_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Positions in `lengths`, longest first, cut so that rows times the longest row stays within the budget.

    Every position is in exactly one micro-batch; a row that is longer than the budget has one of its own. Longest
    first, so that what does not fit in memory fails at once.
    """
    longest_first = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    for position in longest_first:
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > token_budget:
            batches.append([])
        batches[-1].append(position)
    return batches


def total_weight(rows: Sequence[EncodedRow], prompt_loss_weight: float) -> float:
    """What an effective batch's weighted loss is divided by: 1 per token that is learnt (of a row that is judged, the
    verdict), and the weight per predicted prompt token.

    The first token of a prompt is predicted by nothing, so it does not count.
    """
    return sum(row.learnt + prompt_loss_weight * (len(row.prompt_ids) - row.learnt) for row in rows)


def _shuffled(block: Sequence[EncodedRow], spec: RunSpec, begin: int) -> list[EncodedRow]:
    """The rows of a block, `spec.epochs` times, in another order each time; the last time as far as it goes."""
    wanted = max(1, round(spec.epochs * len(block))) if block else 0
    met: list[EncodedRow] = []
    while len(met) < wanted:
        again = list(block)
        place = (begin, len(met))  # where all runs begin, the seed alone decides
        random.Random(f"{spec.seed} {place}" if any(place) else spec.seed).shuffle(again)
        met += again
    return met[:wanted]
