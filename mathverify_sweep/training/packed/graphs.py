"""Passes as CUDA graphs: recorded once for each shape, replayed with what is next in their memory.

A pass of a small model is thousands of kernels of some microseconds each, and to launch one from Python takes longer
than to run it. A recorded pass has fixed numbers of tokens, rows and runs, so what is less is padded: with tokens that
nobody reads, which belong to the last run and whose gradient is zero, and with runs that have no tokens. Not recorded
are passes in which more of a row is trained on than its verdict.
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
from mathverify_sweep.training.packed.stream import Integers, Laid, Share, Stream
from mathverify_sweep.training.packed.weights import Layout, Weights, widest

log = logging.getLogger(__name__)

_STEPS = 16
"""Sizes of passes up to the token budget: a pass is padded by a thirty-second of the budget, on average."""

_ALIGNED = 128
"""Sizes are multiples of so many tokens, and of half as many rows."""

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


class Graphs:
    """The recorded passes of one model. `trained` does forward and backward and gives the loss of each run."""

    def __init__(self, trained: Callable[[Stream, Bundle], Tensor], on: torch.device) -> None:
        self._trained, self._device = trained, on
        # One for all: each stream that multiplies takes some memory for good.
        self._side: torch.cuda.Stream | None = None
        self._sizes: list[int] = []
        self._longest = _ALIGNED
        self._recorded: OrderedDict[tuple[Shape, Layout], _Recorded] = OrderedDict()
        self._stacks: dict[tuple[Layout, int, bool], Stack] = {}
        self._pool: Any = None

    def expect(self, token_budget: int, longest: int) -> None:
        """Passes will be of so many tokens at most, rows of so many. Forgets what has been recorded for others."""
        self._recorded.clear()
        self._pool = None
        sizes = {math.ceil(token_budget * n / _STEPS / _ALIGNED) * _ALIGNED for n in range(1, _STEPS + 1)}
        self._sizes, self._longest = sorted(sizes), _rounded(longest)

    def train(self, laid: Laid, shares: Sequence[Share]) -> Tensor | None:
        """Adds each share's gradient to its run's and gives its loss; None when such a pass is not recorded."""
        tokens = next((size for size in self._sizes if size >= len(laid.ids)), None)
        fits = tokens is not None and laid.longest <= self._longest
        if tokens is None or not fits or len(laid.read) >= len(laid.row_ends):
            return None
        rows = _rounded(len(laid.row_ends) + (tokens - len(laid.ids)) // self._longest + 1)
        runs = [share.weights for share in shares if share.weights is not None]
        places = 2 ** math.ceil(math.log2(len(runs)))
        shape = Shape(tokens, rows, self._longest, places, any(map(dropout.wanted, shares)))
        recorded = self._find(shape, widest(runs))
        return recorded.replay(padded(laid, shape), runs)

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
        key = (layout, shape.runs, shape.with_dropout)
        if key not in self._stacks:
            like = torch.empty((), dtype=torch.bfloat16, device=self._device)
            self._stacks[key] = self._stacks.get((*key[:2], not shape.with_dropout)) or Stack(layout, shape.runs, like)
            few = replace(shape, tokens=2 * _ALIGNED, rows=_ALIGNED, longest=_ALIGNED)
            self._side = self._side or torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            torch.cuda.synchronize(self._device)
            with torch.cuda.stream(self._side):
                self._pass(few, self._stacks[key], Stream(padded(_nothing(), few), self._device))
            torch.cuda.synchronize(self._device)
        return self._stacks[key]

    def _record(self, shape: Shape, stack: Stack) -> _Recorded:
        graph = torch.cuda.CUDAGraph()
        stream = Stream(padded(_nothing(), shape), self._device)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._side):
                losses = self._pass(shape, stack, stream)
        except RuntimeError as error:
            # What ends a recording is heard of as an error of the recording.
            if error.__context__ is not None and device.is_out_of_memory(error.__context__):
                raise torch.OutOfMemoryError(f"while a pass of {shape} was recorded") from error
            raise
        log.debug("recorded a pass of %s", shape)
        return _Recorded(graph, stream, stack, losses)

    def _pass(self, shape: Shape, stack: Stack, stream: Stream) -> Tensor:
        dropouts = dropout.by_counter(stream) if shape.with_dropout else dropout.NO_DROPOUT
        return self._trained(stream, Several(stack, stream, dropouts))


@dataclass(frozen=True)
class _Recorded:
    """A graph, and the memory that it reads from and writes to."""

    graph: torch.cuda.CUDAGraph
    stream: Stream
    stack: Stack
    losses: Tensor

    def replay(self, laid: Laid, runs: Sequence[Weights]) -> Tensor:
        self.stream.fill(laid)
        self.stack.load(runs)
        self.graph.replay()
        self.stack.hand_back(runs)
        # A copy: the next replay, of whichever graph, writes over it.
        return self.losses[: len(runs)].clone()


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


def _rounded(count: int) -> int:
    return math.ceil(count / (_ALIGNED // 2)) * (_ALIGNED // 2)
