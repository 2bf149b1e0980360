"""Rows of several runs, laid end to end: what one pass over the base model reads.

A run's share of a pass is a micro-batch of its own. How its rows are cut and laid out hangs on the run alone, never on
who else is in the pass. No padding: positions begin anew with every row, and `ends` says where rows end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain, pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mathverify_sweep.data.encode import EncodedRow
from mathverify_sweep.training.packed.weights import Weights

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
class Span:
    """Rows `start` to `end` of a matrix belong to this share."""

    share: Share
    start: int
    end: int


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


class Stream:
    """The shares of one pass as tensors."""

    def __init__(self, shares: Sequence[Share], answers: tuple[int, int], device: torch.device) -> None:
        self.shares, self._answers, self.device = tuple(shares), answers, device
        self.lengths = [len(row.prompt_ids) for share in shares for row in share.rows]
        self._ends = list(accumulate(self.lengths))
        # By numpy: a pass has a hundred thousand tokens, and a GPU waits while Python counts them one by one.
        tokens = chain.from_iterable(row.prompt_ids for share in shares for row in share.rows)
        self.ids = self._there(np.fromiter(tokens, np.int64, self._ends[-1]))
        starts = np.repeat(np.array([0, *self._ends[:-1]]), self.lengths)
        self.positions = self._there(np.arange(self._ends[-1]) - starts)
        self.token_spans = _spans(shares, [share.tokens for share in shares])
        read = [share.tokens if _reads_prompts(share) else len(share.rows) for share in shares]
        self.read_spans = _spans(shares, read)

    @cached_property
    def ends(self) -> Tensor:
        """0 and where each row ends: int32, as variable-length kernels want it."""
        return torch.tensor([0, *self._ends], dtype=torch.int32, device=self.device)

    @cached_property
    def read(self) -> Tensor | None:
        """The tokens behind which the next one is asked for; None when that is all of them."""
        if all(_reads_prompts(share) for share in self.shares):
            return None
        last = iter(self._ends)
        read: list[int] = []
        for span in self.token_spans:
            ends = [next(last) - 1 for _ in span.share.rows]
            read += range(span.start, span.end) if _reads_prompts(span.share) else ends
        return torch.tensor(read, device=self.device)

    @cached_property
    def groups(self) -> list[Group]:
        """The rows, sorted into rectangles."""
        groups = []
        row = 0
        for share in self.shares:
            for first, last in _alike(self.lengths[row : row + len(share.rows)]):
                groups.append(self._group(row + first, row + last))
            row += len(share.rows)
        return groups

    def targets(self, share: Share) -> tuple[Tensor, Tensor]:
        """Which token is right at each position of a share that is read, and what it weighs in its effective batch."""
        assert share.whole is not None
        right = [self._answers[row.is_correct] for row in share.rows]
        weights = [1.0] * len(share.rows)
        if _reads_prompts(share):
            right = [t for row, answer in zip(share.rows, right, strict=True) for t in (*row.prompt_ids[1:], answer)]
            weights = [w for row in share.rows for w in (*[share.prompt_weight] * (len(row.prompt_ids) - 1), 1.0)]
        shares = torch.tensor(weights, device=self.device) / share.whole
        return torch.tensor(right, device=self.device), shares

    def _there(self, numbers: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(numbers).to(self.device).unsqueeze(0)

    def _group(self, first: int, last: int) -> Group:
        """Of rows `first` to `last`."""
        lengths = self.lengths[first:last]
        start, end, longest = self._ends[first] - lengths[0], self._ends[last - 1], lengths[0]
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


def _reads_prompts(share: Share) -> bool:
    return share.prompt_weight > 0


def _spans(shares: Sequence[Share], sizes: Sequence[int]) -> list[Span]:
    borders = pairwise(accumulate(sizes, initial=0))
    return [Span(share, start, end) for share, (start, end) in zip(shares, borders, strict=True)]


def _alike(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """First and behind-the-last of runs of lengths that are near the first of them; longest first."""
    borders = [0]
    for i, length in enumerate(lengths):
        if length < ALIKE * lengths[borders[-1]]:
            borders.append(i)
    return list(pairwise([*borders, len(lengths)]))
