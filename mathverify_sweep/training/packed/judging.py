"""What adapters say of rows, forward only: several in one pass where that makes a device faster, else one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mathverify_sweep.data.encode import EncodedRow
from mathverify_sweep.training import device
from mathverify_sweep.training.packed.model import PackedModel
from mathverify_sweep.training.packed.plan import Budget
from mathverify_sweep.training.packed.stream import Share
from mathverify_sweep.training.packed.weights import Weights


@dataclass(frozen=True)
class Reader:
    """An adapter, or the base model alone, and rows as its prompt has them."""

    weights: Weights | None
    rows: Sequence[EncodedRow]


def log_odds(model: PackedModel, readers: Sequence[Reader], count: int, budget: Budget) -> list[list[float]]:
    """Of each reader one value for each of the `count` rows that its rows were encoded from, at the row's index; 0 for
    the others. The base model alone comes without others.
    """
    # Rows of like length together, since nothing else orders what is judged.
    left = [sorted(reader.rows, key=lambda row: (-len(row.prompt_ids), row.index)) for reader in readers]
    done: list[tuple[int, list[EncodedRow], Tensor]] = []
    while any(left):
        chosen = _next(left, budget.evaluation_tokens, together=model.together)
        try:
            odds = model.judge([Share(readers[number].weights, rows) for number, rows in chosen.items()])
        except RuntimeError as error:
            if not (device.is_out_of_memory(error) and sum(map(len, chosen.values())) > 1):
                raise
            budget.shrink_evaluation()
            model.expect(budget)
            device.free_memory(model.base.device)
            continue
        for (number, rows), said in zip(chosen.items(), odds, strict=True):
            done.append((number, rows, said))
            del left[number][: len(rows)]
    result = torch.zeros(len(readers), count)
    if done:
        places = [(number, row.index) for number, rows, _ in done for row in rows]
        # Fetched at the end: to fetch is to wait.
        result[tuple(torch.tensor(places).T)] = torch.cat([said for *_, said in done]).cpu()
    said_by_all: list[list[float]] = result.tolist()
    return said_by_all


def _next(left: Sequence[list[EncodedRow]], tokens: int, *, together: bool) -> dict[int, list[EncodedRow]]:
    """The rows of the next pass by reader: the budget dealt evenly to as many as can have their longest row read."""
    waiting = [number for number, rows in enumerate(left) if rows]
    longest = max(len(left[number][0].prompt_ids) for number in waiting)
    chosen = waiting[: max(1, tokens // longest) if together else 1]
    return {number: _first(left[number], tokens // len(chosen)) for number in chosen}


def _first(rows: Sequence[EncodedRow], tokens: int) -> list[EncodedRow]:
    """As many as fit, and one in any case."""
    taken: list[EncodedRow] = []
    for row in rows:
        tokens -= len(row.prompt_ids)
        if taken and tokens < 0:
            break
        taken.append(row)
    return taken
