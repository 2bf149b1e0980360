"""How the adapters of a pass are applied: one run's by plain matmuls, those of several by grouped ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mathverify_sweep.training.packed.dropout import Dropouts
from mathverify_sweep.training.packed.grouped import ManyRuns, Stack
from mathverify_sweep.training.packed.layers import Adapters, Layers, OneRun
from mathverify_sweep.training.packed.stream import Stream
from mathverify_sweep.training.packed.weights import Views, Weights


class Bundle(Protocol):
    """The runs of a pass."""

    def adapters(self, layers: Layers) -> Adapters | None:
        """Theirs on layers that read the same rows; None when those have none."""


@dataclass(frozen=True)
class Alone:
    """One run, whose weights and gradients are where they belong; or the base alone."""

    weights: Weights | None
    dropouts: Dropouts

    def adapters(self, layers: Layers) -> Adapters | None:
        found = (self.weights.views.get(name) for name in layers.names) if self.weights is not None else ()
        views = next((views for views in found if views is not None), None)
        return None if views is None else OneRun(views, _numbers(layers, views), self.dropouts[layers.behind])


@dataclass(frozen=True)
class Several:
    """The runs of a stack, who share a stream."""

    stack: Stack
    stream: Stream
    dropouts: Dropouts

    def adapters(self, layers: Layers) -> Adapters | None:
        views = self.stack.views(layers.names)
        if views is None:
            return None
        if self.stack.places == 1:
            # A product as deep as the pass has tokens is cut into pieces by plain matmuls only: a fifth of the time.
            return OneRun(views, _numbers(layers, views), self.dropouts[layers.behind])
        runs = self.stream.runs_behind if layers.behind else self.stream.runs
        return ManyRuns(views, runs, _numbers(layers, views), self.dropouts[layers.behind])


def _numbers(layers: Layers, views: Views) -> tuple[int, ...]:
    """Of the layers with adapters."""
    return tuple(number for name, number in zip(layers.names, layers.numbers, strict=True) if name in views.layers)
