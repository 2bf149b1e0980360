"""Passes as CUDA graphs: recorded once for each shape, replayed with what is next in their memory.

A pass of a small model is thousands of kernels of some microseconds each, and to launch one from Python takes longer
than to run it. A recorded pass has fixed numbers of tokens, rows and runs, so what is less is padded: with tokens that
nobody reads, which belong to the last run and whose gradient is zero, and with runs that have no tokens. Not recorded
are passes in which more of a row is trained on than its verdict, and those of rows so short that there are too many.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mathverify_sweep.training import device
from mathverify_sweep.training.packed import dropout
from mathverify_sweep.training.packed.bundles import Bundle, Several
from mathverify_sweep.training.packed.grouped import Stack
from mathverify_sweep.training.packed.plan import Budget
from mathverify_sweep.training.packed.stream import Integers, Laid, Share, Stream
from mathverify_sweep.training.packed.weights import Layout, Weights, widest

log = logging.getLogger(__name__)

_STEPS = 16
"""Sizes of passes up to the token budget: a pass is padded by a thirty-second of the budget, on average."""

_JUDGED_STEPS = 4
"""The same where rows are judged: all but the last pass are full."""

_ALIGNED = 128
"""Sizes are multiples of so many tokens, and of half as many rows."""

_JUDGED_TOKENS = 64
"""Of a judged row on average, at least. Rows that are not there cost little."""

_Pass = Callable[[Stream, Bundle], Tensor]

_MOST = 48
"""Graphs that are kept. Each has some megabytes of its own; what a pass works in, all of them share."""


@dataclass(frozen=True)
class Shape:
    """What a recorded pass has room for."""

    tokens: int
    rows: int
    longest: int
    runs: int
    with_dropout: bool
    judged: bool = False


class Graphs:
    """The recorded passes of one model. `trained` does forward and backward and gives the loss of each run, `judged`
    the log-odds of each token that is read.
    """

    def __init__(self, trained: _Pass, judged: _Pass, on: torch.device) -> None:
        self._trained, self._judged, self._device = trained, judged, on
        # One for all: each stream that multiplies takes some memory for good.
        self._side: torch.cuda.Stream | None = None
        self._sizes: list[int] = []
        self._judged_sizes: list[int] = []
        self._longest = _ALIGNED
        self._recorded: OrderedDict[tuple[Shape, Layout], _Recorded] = OrderedDict()
        self._stacks: dict[tuple[Layout, int], Stack] = {}
        self._warm: set[tuple[Layout, int, bool, bool]] = set()
        self._pool: Any = None

    def expect(self, budget: Budget, longest: int) -> None:
        """Passes will be of so many tokens at most, rows of so many. Forgets what has been recorded for others."""
        self._recorded.clear()
        self._stacks.clear()
        self._warm.clear()
        self._pool = None
        self._sizes = _steps(budget.tokens, _STEPS)
        self._judged_sizes = _steps(budget.evaluation_tokens, _JUDGED_STEPS)
        self._longest = _rounded(longest)

    def train(self, laid: Laid, shares: Sequence[Share]) -> Tensor | None:
        """Adds each share's gradient to its run's and gives its loss; None when such a pass is not recorded."""
        tokens = self._size(laid, self._sizes)
        if tokens is None or len(laid.read) >= len(laid.row_ends):
            return None
        runs = [share.weights for share in shares if share.weights is not None]
        rows = max(_ALIGNED // 2, _power_of_two(self._rows(laid, tokens)))
        shape = Shape(tokens, rows, self._longest, _power_of_two(len(runs)), any(map(dropout.wanted, shares)))
        return self._find(shape, widest(runs)).replay(laid, shape, runs)

    def judge(self, laid: Laid, runs: Sequence[Weights]) -> Tensor | None:
        """The log-odds of each row, of one run after the other; None when such a pass is not recorded."""
        tokens = self._size(laid, self._judged_sizes)
        if tokens is None or (rows := _rounded(tokens // _JUDGED_TOKENS)) < self._rows(laid, tokens):
            return None
        shape = Shape(tokens, rows, self._longest, _power_of_two(len(runs)), with_dropout=False, judged=True)
        return self._find(shape, widest(runs)).replay(laid, shape, runs)

    def _size(self, laid: Laid, sizes: Sequence[int]) -> int | None:
        """The smallest that has room for the tokens; None when none has, or a row is too long."""
        if laid.longest > self._longest:
            return None
        return next((size for size in sizes if size >= len(laid.ids)), None)

    def _rows(self, laid: Laid, tokens: int) -> int:
        """How many there are once what is missing to so many tokens has been added."""
        return len(laid.row_ends) + (tokens - len(laid.ids)) // self._longest + 1

    def _find(self, shape: Shape, layout: Layout) -> _Recorded:
        key = (shape, layout)
        if key not in self._recorded:
            if len(self._recorded) >= _MOST:
                self._recorded.popitem(last=False)
            self._recorded[key] = self._record(shape, self._stack(shape, layout))
        self._recorded.move_to_end(key)
        return self._recorded[key]

    def _stack(self, shape: Shape, layout: Layout) -> Stack:
        """One for runs of this layout. When new, few tokens go through it: libraries load and choose kernels at their
        first use, which cannot be recorded."""
        key = (layout, shape.runs)
        if key not in self._stacks:
            like = torch.empty((), dtype=torch.bfloat16, device=self._device)
            self._stacks[key] = Stack(layout, shape.runs, like)
        if (warm := (*key, shape.with_dropout, shape.judged)) not in self._warm:
            few = replace(shape, tokens=2 * _ALIGNED, rows=_ALIGNED, longest=_ALIGNED)
            self._side = self._side or torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            torch.cuda.synchronize(self._device)
            with torch.cuda.stream(self._side):
                self._pass(few, self._stacks[key], Stream(padded(_nothing(), few), self._device))
            torch.cuda.synchronize(self._device)
            self._warm.add(warm)
        return self._stacks[key]

    def _record(self, shape: Shape, stack: Stack) -> _Recorded:
        graph = torch.cuda.CUDAGraph()
        stream = Stream(padded(_nothing(), shape), self._device)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        try:
            # The outer one: a recording that fails leaves its stream in place.
            here = torch.cuda.current_stream(self._device)
            with torch.cuda.stream(here), torch.cuda.graph(graph, pool=self._pool, stream=self._side):
                results = self._pass(shape, stack, stream)
        except RuntimeError as error:
            # What ends a recording is heard of as an error of the recording.
            if error.__context__ is not None and device.is_out_of_memory(error.__context__):
                raise torch.OutOfMemoryError(f"while a pass of {shape} was recorded") from error
            raise
        log.debug("recorded a pass of %s", shape)
        return _Recorded(graph, stream, stack, results)

    def _pass(self, shape: Shape, stack: Stack, stream: Stream) -> Tensor:
        dropouts = dropout.by_counter(stream) if shape.with_dropout else dropout.NO_DROPOUT
        bundle = Several(stack, stream, dropouts)
        if not shape.judged:
            return self._trained(stream, bundle)
        with torch.no_grad():
            return self._judged(stream, bundle)


@dataclass(frozen=True)
class _Recorded:
    """A graph, and the memory that it reads from and writes to. `results` are losses of runs or log-odds of rows."""

    graph: torch.cuda.CUDAGraph
    stream: Stream
    stack: Stack
    results: Tensor

    def replay(self, laid: Laid, shape: Shape, runs: Sequence[Weights]) -> Tensor:
        rows = len(laid.read)
        self.stream.fill(padded(laid, shape))
        self.stack.load(runs)
        self.graph.replay()
        if not shape.judged:
            self.stack.hand_back(runs)
        # A copy: the next replay, of whichever graph, writes over it.
        return self.results[: rows if shape.judged else len(runs)].clone()


def padded(laid: Laid, shape: Shape) -> Laid:
    """As many tokens, rows and runs as the shape has. What is added is read by nobody and weighs nothing."""
    tokens, read = len(laid.ids), len(laid.read)
    more = np.arange(shape.tokens - tokens) % shape.longest
    ends = [*range(tokens + shape.longest, shape.tokens, shape.longest)]
    return replace(
        laid,
        ids=_longer(laid.ids, shape.tokens, 0),
        positions=np.concatenate([laid.positions, more]),
        row_ends=_longer(np.concatenate([laid.row_ends, ends]).astype(np.int32), shape.rows + 1, shape.tokens),
        token_ends=_ends(laid.token_ends, shape.runs, shape.tokens),
        read_ends=_ends(laid.read_ends, shape.runs, shape.rows),
        read=_longer(laid.read, shape.rows, shape.tokens - 1),
        targets=_longer(laid.targets, shape.rows, 0),
        weights=np.concatenate([laid.weights, np.zeros(shape.rows - read, np.float32)]),
        owners=_longer(laid.owners, shape.rows, len(laid.token_ends) - 1),
        noise=_longer(laid.noise, shape.runs, 0),
        kept=np.concatenate([laid.kept, np.ones(shape.runs - len(laid.kept), np.float32)]),
        longest=shape.longest,
    )


def _nothing() -> Laid:
    """One run with one row of one token."""
    one, none = np.ones(1, np.int32), np.zeros(1, np.int64)
    weight = np.zeros(1, np.float32)
    return Laid(none, none, np.array([0, 1], np.int32), one, one, none, none, weight, none, none, weight + 1, 1)


def _longer(numbers: Integers, count: int, value: int) -> Integers:
    return np.concatenate([numbers, np.full(count - len(numbers), value, numbers.dtype)])


def _ends(ends: Integers, runs: int, last: int) -> Integers:
    """The last run has all that is added; runs behind it have nothing."""
    return _longer(ends[:-1], runs, last)


def _steps(most: int, count: int) -> list[int]:
    return sorted({math.ceil(most * n / count / _ALIGNED) * _ALIGNED for n in range(1, count + 1)})


def _power_of_two(count: int) -> int:
    return int(2 ** math.ceil(math.log2(count)))


def _rounded(count: int) -> int:
    return math.ceil(count / (_ALIGNED // 2)) * (_ALIGNED // 2)
