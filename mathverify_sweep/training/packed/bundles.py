"""How the adapters of a pass are applied: one run's by plain matmuls, those of several by grouped ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mathverify_sweep.training.packed.grouped import ManyRuns, Rows, Stack
from mathverify_sweep.training.packed.layers import Adapters, Layers, OneRun
from mathverify_sweep.training.packed.stream import Share, Stream
from mathverify_sweep.training.packed.weights import Views


class Bundle(Protocol):
    """The runs of a pass."""

    def adapters(self, layers: Layers) -> Adapters | None:
        """Theirs on layers that read the same rows; None when those have none."""

    def hand_back(self) -> None:
        """After a pass and its backward: the gradients to the runs."""


def bundle(stream: Stream) -> Bundle | None:
    """Of the stream's runs; None when the base alone reads it."""
    weights = [share.weights for share in stream.shares if share.weights is not None]
    if not weights:
        return None
    if len(stream.shares) == 1:
        return _One(stream.shares[0])
    tokens, read = (Rows(spans, stream.device) for spans in (stream.token_spans, stream.read_spans))
    return _Several(Stack(weights), tokens, read)


@dataclass(frozen=True)
class _One:
    share: Share

    def adapters(self, layers: Layers) -> Adapters | None:
        weights = self.share.weights
        assert weights is not None
        views = next((weights.views[name] for name in layers.names if name in weights.views), None)
        return None if views is None else OneRun(self.share, weights.scale, views, _numbers(layers, views))

    def hand_back(self) -> None:
        """Nothing: its gradients are where they belong."""


@dataclass(frozen=True)
class _Several:
    stack: Stack
    tokens: Rows
    read: Rows

    def adapters(self, layers: Layers) -> Adapters | None:
        views = next((views for name in layers.names if (views := self.stack.views(name))), None)
        rows = self.read if layers.behind else self.tokens
        return None if views is None else ManyRuns(views, rows, _numbers(layers, views))

    def hand_back(self) -> None:
        self.stack.hand_back()


def _numbers(layers: Layers, views: Views) -> tuple[int, ...]:
    """Of the layers with adapters."""
    return tuple(number for name, number in zip(layers.names, layers.numbers, strict=True) if name in views.layers)
