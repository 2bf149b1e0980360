"""Adapters of several runs on one layer by grouped matmuls: for GPUs, where many small ones wait for their launches.

The runs of a pass lie beside each other in a `Stack`, their ranks padded to the widest. Their values are copied
together once a pass, which costs a few hundred microseconds for hundreds of megabytes, and their gradients are handed
back once a pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mathverify_sweep.training.packed.dropout import Dropout
from mathverify_sweep.training.packed.layers import through
from mathverify_sweep.training.packed.pieces import Cut
from mathverify_sweep.training.packed.products import add_outer, own, side_by_side, suit, summed
from mathverify_sweep.training.packed.weights import Layout, Views, Weights, moved


class Stack:
    """Memory for the adapters of some runs in one layout, and for the gradients of one pass."""

    def __init__(self, layout: Layout, places: int, like: Tensor) -> None:
        """`like` has the dtype and the device of the values."""
        self.layout = layout
        self._values = torch.zeros(places, layout.size, dtype=like.dtype, device=like.device)
        self._gradient = torch.zeros(places, layout.size, dtype=torch.float32, device=like.device)
        self._views: dict[str, Views] = {}

    def load(self, runs: Sequence[Weights]) -> None:
        """Their values, one in each of the first places, and no gradient."""
        self._gradient.zero_()
        for weights, values in zip(runs, self._values, strict=False):
            if weights.layout == self.layout:
                values.copy_(weights.compute)
            else:
                torch.index_select(weights.compute, 0, moved(weights.layout, self.layout, values.device), out=values)

    def hand_back(self, runs: Sequence[Weights]) -> None:
        """Adds the gradients of this pass to each run's own."""
        for weights, gradient in zip(runs, self._gradient, strict=False):
            if weights.layout == self.layout:
                weights.gradient.add_(gradient)
            else:
                index = moved(self.layout, weights.layout, gradient.device)
                weights.gradient.add_(gradient.index_select(0, index))

    @property
    def places(self) -> int:
        """For how many runs it has room."""
        return len(self._values)

    def views(self, layers: Sequence[str]) -> Views | None:
        """Of the block of these layers: (places, rows, columns) each, of a single place (rows, columns). None when the
        block has no adapters.
        """
        block = next((self.layout.by_layer[layer] for layer in layers if layer in self.layout.by_layer), None)
        if block is None:
            return None
        if block.layers[0] not in self._views:
            memory = (self._values, self._gradient) if self.places > 1 else (self._values[0], self._gradient[0])
            self._views[block.layers[0]] = Views(block, *memory)
        return self._views[block.layers[0]]


@dataclass(frozen=True)
class ManyRuns:
    """The adapters of a stack on layers that read the same rows.

    `numbers` are those of the layers with adapters.
    """

    views: Views
    runs: Cut
    numbers: Sequence[int]
    dropout: Dropout | None

    @property
    def layers(self) -> Sequence[str]:
        return self.views.layers

    @cached_property
    def suits(self) -> bool:
        """Whether kernels of ours are for layers of these sizes."""
        return suit([matrix.shape[2] for matrix in (self.views.a, *self.views.b)])

    def low(self, x: Tensor) -> Tensor:
        a = self.views.a.transpose(1, 2)
        if self.dropout is None:
            return own([(x, a)], self.runs, suits=self.suits)
        parts = zip(self.numbers, torch.split(a, self.views.rank, dim=2), strict=True)
        pairs = [(self.dropout(x, number), part) for number, part in parts]
        return side_by_side([own([pair], self.runs, suits=self.suits) for pair in pairs])

    def output(self, x: Tensor, weight: Tensor, low: Tensor, at: int) -> Tensor:
        return summed([(x, weight.t())], (low[:, self._columns(at)], self.views.b[at]), self.runs, suits=self.suits)

    def merged(self, weight: Tensor, at: int) -> None:
        """Nothing: they are several runs."""

    def backward(
        self, x: Tensor, low: Tensor, gradients: Sequence[Tensor], weights: Sequence[Tensor] | None
    ) -> Tensor | None:
        views, runs, suits = self.views, self.runs, self.suits
        gradients = [gradient.contiguous() for gradient in gradients]
        for at, gradient in enumerate(gradients):
            add_outer(views.b_gradient[at], low[:, self._columns(at)], gradient, runs, suits=suits)
        low_gradient = own([(g, b.transpose(1, 2)) for g, b in zip(gradients, views.b, strict=True)], runs, suits=suits)
        if self.dropout is None:
            add_outer(views.a_gradient, low_gradient, x, runs, suits=suits)
            if weights is None:
                return None
            return summed(list(zip(gradients, weights, strict=True)), (low_gradient, views.a), runs, suits=suits)
        x_gradient = torch.zeros_like(x)
        a, a_gradient = (torch.split(matrix, views.rank, dim=1) for matrix in (views.a, views.a_gradient))
        for at, number in enumerate(self.numbers):
            part = low_gradient[:, self._columns(at)]
            add_outer(a_gradient[at], part, self.dropout(x, number), runs, suits=suits)
            x_gradient.add_(self.dropout(own([(part, a[at])], runs, suits=suits), number))
        return x_gradient if weights is None else through(x_gradient, gradients, weights)

    def _columns(self, at: int) -> slice:
        return slice(at * self.views.rank, (at + 1) * self.views.rank)
