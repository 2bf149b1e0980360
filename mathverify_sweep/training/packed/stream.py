"""Rows of several runs, laid end to end: what one pass over the base model reads.

A run's share of a pass is a micro-batch of its own. How its rows are cut and laid out hangs on the run alone, never on
who else is in the pass. No padding: positions begin anew with every row, and `row_ends` says where rows end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mathverify_sweep.data.encode import EncodedRow
from mathverify_sweep.training.packed.pieces import Cut
from mathverify_sweep.training.packed.weights import Weights

Integers = npt.NDArray[np.integer[Any]]

ALIKE = 0.5
"""Rows whose lengths differ by less than this factor are padded to one length where attention takes no others."""


@dataclass(frozen=True)
class Share:
    """Some rows of one run, the longest first.

    With `whole` they are trained on: it is the weight of the effective batch that they are part of. Without it they are
    judged. `noise` is the first of the seeds of their dropout, one for each layer.
    """

    weights: Weights | None
    rows: Sequence[EncodedRow]
    prompt_weight: float = 0.0
    whole: float | None = None
    noise: int = 0

    @property
    def tokens(self) -> int:
        """How much of a pass they take."""
        return sum(len(row.prompt_ids) for row in self.rows)


@dataclass(frozen=True)
class Group:
    """Neighbouring rows of one share, of lengths alike: tokens `start` to `end`.

    `sources` names for each place of the (rows, longest) rectangle a token of the group, `places` for each token its
    place; both are None when all rows are of one length. What stands in for padding is never looked at: it is behind.
    """

    start: int
    end: int
    rows: int
    longest: int
    sources: Tensor | None
    places: Tensor | None


@dataclass(frozen=True)
class Laid:
    """The shares of one pass end to end, on the host.

    Of each token its id and its position in its row, int64. `row_ends` begins with 0; rows, and of each run its tokens
    and those that are `read`, end at such places, int32. Behind a token that is read one is asked for: `targets` says
    which, `weights` what it weighs in the loss of its effective batch, `owners` whose it is. Of each run `noise` is
    what its dropout is drawn from, and `kept` the share of numbers that it leaves.
    """

    ids: Integers
    positions: Integers
    row_ends: Integers
    token_ends: Integers
    read_ends: Integers
    read: Integers
    targets: Integers
    weights: npt.NDArray[np.float32]
    owners: Integers
    noise: Integers
    kept: npt.NDArray[np.float32]
    longest: int

    @classmethod
    def of(cls, shares: Sequence[Share], answers: tuple[int, int]) -> Laid:
        """By numpy: a pass has a hundred thousand tokens, and a GPU waits while Python counts them one by one."""
        rows = [row for share in shares for row in share.rows]
        lengths = np.array([len(row.prompt_ids) for row in rows])
        ends = lengths.cumsum()
        ids = np.fromiter(chain.from_iterable(row.prompt_ids for row in rows), np.int64, ends[-1])
        starts = np.repeat(ends - lengths, lengths)
        owners = np.repeat(np.arange(len(shares)), [share.tokens for share in shares])
        wholes = np.array([share.whole or 1.0 for share in shares])
        weights = np.array([share.prompt_weight for share in shares])[owners]
        weights[ends - 1] = 1.0
        targets = np.roll(ids, -1)
        targets[ends - 1] = np.array(answers)[[int(row.is_correct) for row in rows]]
        (read,) = weights.nonzero()
        return cls(
            ids=ids,
            positions=np.arange(ends[-1]) - starts,
            row_ends=np.concatenate([[0], ends]).astype(np.int32),
            token_ends=_behind_the_last(owners, len(shares)),
            read_ends=_behind_the_last(owners[read], len(shares)),
            read=read,
            targets=targets[read],
            weights=(weights[read] / wholes[owners[read]]).astype(np.float32),
            owners=owners[read],
            noise=np.array([share.noise for share in shares], np.int64),
            kept=np.array([1 - share.weights.dropout if share.weights else 1.0 for share in shares], np.float32),
            longest=int(lengths.max()),
        )


class Stream:
    """The shares of one pass as tensors, named as in `Laid`."""

    def __init__(self, laid: Laid, device: torch.device) -> None:
        self.device, self.longest = device, laid.longest
        self.row_lengths = np.diff(laid.row_ends).tolist()
        self.ids, self.positions = (self._there(numbers).unsqueeze(0) for numbers in (laid.ids, laid.positions))
        self.row_ends, self.token_ends, self.read_ends = map(
            self._there, (laid.row_ends, laid.token_ends, laid.read_ends)
        )
        self.targets, self.weights, self.owners = map(self._there, (laid.targets, laid.weights, laid.owners))
        self.noise, self.kept = map(self._there, (laid.noise, laid.kept))
        # None when every token is read.
        self.read = None if len(laid.read) == len(laid.ids) else self._there(laid.read)
        # Rows, runs, and runs of the tokens that are read, for kernels that work on pieces of them.
        self.rows = Cut(self.row_ends[1:], len(laid.ids))
        self.runs, self.runs_behind = Cut(self.token_ends, len(laid.ids)), Cut(self.read_ends, len(laid.read))
        self._rows_of_runs = np.searchsorted(laid.row_ends, laid.token_ends).tolist()

    def fill(self, laid: Laid) -> None:
        """Takes what is laid alike, as long in every part, into the same memory."""
        self.ids.copy_(torch.from_numpy(laid.ids).unsqueeze(0))
        self.positions.copy_(torch.from_numpy(laid.positions).unsqueeze(0))
        assert self.read is not None
        self.read.copy_(torch.from_numpy(laid.read))
        for name in ("row_ends", "token_ends", "read_ends", "targets", "weights", "owners", "noise", "kept"):
            getattr(self, name).copy_(torch.from_numpy(getattr(laid, name)))

    def by_run(self, losses: Tensor) -> Tensor:
        """Sums of the tokens that are read, (runs,). One run's troubles stay its own: nothing is added to them, not
        even zero times."""
        runs = torch.arange(len(self.token_ends), device=self.device)
        return torch.where(self.owners == runs[:, None], losses, 0.0).sum(1)

    @cached_property
    def draws(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of each token what its dropout is drawn from, the share that is kept, and its place among its run's."""
        tokens = torch.arange(self.ids.shape[1], dtype=torch.int32, device=self.device)
        owners = torch.searchsorted(self.token_ends, tokens, right=True)
        starts = torch.cat([self.token_ends.new_zeros(1), self.token_ends])
        return self.noise[owners], self.kept[owners], tokens - starts[owners]

    @cached_property
    def draws_behind(self) -> tuple[Tensor, Tensor, Tensor]:
        """The same of the tokens that are read."""
        noise, kept, places = self.draws
        return (noise, kept, places) if self.read is None else (noise[self.read], kept[self.read], places[self.read])

    @cached_property
    def groups(self) -> list[Group]:
        """The rows, sorted into rectangles of one run each."""
        groups = []
        first = 0
        for end in self._rows_of_runs:
            for start, stop in _alike(self.row_lengths[first:end]):
                groups.append(self._group(first + start, first + stop))
            first = end
        return groups

    def _there(self, numbers: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(numbers).to(self.device)

    def _group(self, first: int, last: int) -> Group:
        """Of rows `first` to `last`."""
        lengths = self.row_lengths[first:last]
        start, end = int(sum(self.row_lengths[:first])), int(sum(self.row_lengths[:last]))
        longest = lengths[0]
        if lengths[-1] == longest:
            return Group(start, end, len(lengths), longest, None, None)
        # All on the CPU: groups are for attention that knows rectangles only, and a GPU's knows better.
        places = torch.cat([torch.arange(n) + i * longest for i, n in enumerate(lengths)])
        sources = torch.zeros(len(lengths) * longest, dtype=torch.long)
        sources[places] = torch.arange(end - start)
        return Group(start, end, len(lengths), longest, sources.to(self.device), places.to(self.device))


def cut(rows: Sequence[EncodedRow], token_budget: int) -> list[list[EncodedRow]]:
    """An effective batch in micro-batches: as few as fit the budget, about equally large, longest rows first.

    A row that is longer than the budget has a micro-batch of its own.
    """
    longest_first = sorted(rows, key=lambda row: (-len(row.prompt_ids), row.index))
    wanted = max(1, math.ceil(sum(len(row.prompt_ids) for row in rows) / token_budget))
    for count in range(wanted, len(rows)):
        parts: list[list[EncodedRow]] = [[] for _ in range(count)]
        sizes = [0] * count
        for row in longest_first:
            emptiest = sizes.index(min(sizes))
            parts[emptiest].append(row)
            sizes[emptiest] += len(row.prompt_ids)
        if max(sizes) <= token_budget:
            return parts
    return [[row] for row in longest_first]


def _behind_the_last(owners: Integers, runs: int) -> Integers:
    """Where the numbers of each run end in this ascending array."""
    return np.searchsorted(owners, np.arange(runs), side="right").astype(np.int32)


def _alike(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """First and behind-the-last of runs of lengths that are near the first of them; longest first."""
    borders = [0]
    for i, length in enumerate(lengths):
        if length < ALIKE * lengths[borders[-1]]:
            borders.append(i)
    return list(pairwise([*borders, len(lengths)]))
