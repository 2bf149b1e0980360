"""Which rows make a step, and how a step is cut into micro-batches. Plain arithmetic: no torch here.

The effective batch is the trial's and decides the mathematics. A micro-batch is the machine's and decides memory and
speed only.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from mathverify_sweep.data.encode import EncodedRow


def training_order(rows: Sequence[EncodedRow], seed: int) -> list[EncodedRow]:
    """The rows as a run meets them, each once. The same rows and seed give the same order on every machine."""
    ordered = list(rows)
    random.Random(seed).shuffle(ordered)
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
    """What an effective batch's weighted loss is divided by: 1 per verdict, and the weight per predicted prompt token.

    The first token of a prompt is predicted by nothing, so it does not count.
    """
    return sum(1.0 + prompt_loss_weight * (len(row.prompt_ids) - 1) for row in rows)
