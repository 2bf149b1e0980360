"""Which runs of a pass share their adapters' matmuls: each run alone, or neighbours of one padded rank together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

from mathverify_sweep.training.packed.grouped import ManyRuns, Rows, Stack
from mathverify_sweep.training.packed.layers import Adapter, OneRun
from mathverify_sweep.training.packed.stream import Span, Stream
from mathverify_sweep.training.packed.weights import Weights


class Bundle(Protocol):
    """One or more runs of a pass."""

    def adapter(self, layer: str, number: int, *, behind: bool) -> Adapter | None:
        """Theirs on a layer, which stands behind the last attention or not; None when it has none."""

    def hand_back(self) -> None:
        """After a pass and its backward: the gradients to the runs."""


def bundles(stream: Stream, *, grouped: bool) -> list[Bundle]:
    """Every run of the stream that has an adapter is in one of them."""
    both = zip(stream.token_spans, stream.read_spans, strict=True)
    runs = [_One(span.share.weights, span, read) for span, read in both if span.share.weights is not None]
    if not grouped:
        return list(runs)
    return [_together(list(alike), stream) for _, alike in groupby(runs, key=lambda run: run.weights.padded_rank)]


@dataclass(frozen=True)
class _One:
    weights: Weights
    tokens: Span
    read: Span

    def adapter(self, layer: str, number: int, *, behind: bool) -> Adapter | None:
        views = self.weights.views.get(layer)
        return None if views is None else OneRun(self.weights, views, self.read if behind else self.tokens, number)

    def hand_back(self) -> None:
        """Nothing: its gradients are where they belong."""


def _together(runs: Sequence[_One], stream: Stream) -> Bundle:
    if len(runs) == 1:
        return runs[0]
    tokens = Rows([run.tokens for run in runs], stream.device)
    read = Rows([run.read for run in runs], stream.device)
    return _Several(Stack([run.weights for run in runs]), runs[0].weights, tokens, read)


@dataclass(frozen=True)
class _Several:
    stack: Stack
    first: Weights
    tokens: Rows
    read: Rows

    def adapter(self, layer: str, number: int, *, behind: bool) -> Adapter | None:
        pair = self.first.pairs.get(layer)
        return None if pair is None else ManyRuns(self.stack, pair, self.read if behind else self.tokens, number)

    def hand_back(self) -> None:
        self.stack.hand_back()
