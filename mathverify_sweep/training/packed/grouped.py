"""Adapters of several runs on one layer by grouped matmuls: for GPUs, where many small ones wait for their launches.

The runs of a pass lie beside each other in a `Stack`, their ranks padded to the widest. Their values are copied
together once a pass, which costs a few hundred microseconds for hundreds of megabytes, and their gradients are handed
back once a pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm

from mathverify_sweep.training.packed.dropout import Dropout
from mathverify_sweep.training.packed.layers import side_by_side
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
    """The adapters of a stack on layers that read the same rows; those of each run end at `ends`, int32.

    `numbers` are those of the layers with adapters.
    """

    views: Views
    ends: Tensor
    numbers: Sequence[int]
    dropout: Dropout | None

    @property
    def layers(self) -> Sequence[str]:
        return self.views.layers

    def low(self, x: Tensor) -> Tensor:
        a = self.views.a.transpose(1, 2)
        if self.dropout is None:
            return grouped_mm(x, a, offs=self.ends)
        parts = zip(self.numbers, torch.split(a, self.views.rank, dim=2), strict=True)
        return side_by_side([grouped_mm(self.dropout(x, number), part, offs=self.ends) for number, part in parts])

    def high(self, low: Tensor, at: int) -> Tensor:
        return grouped_mm(low[:, self._columns(at)], self.views.b[at], offs=self.ends)

    def merged(self, weight: Tensor, at: int) -> None:
        """Nothing: they are several runs."""

    def backward(self, x: Tensor, low: Tensor, gradients: Sequence[Tensor], *, wants_x: bool) -> Tensor | None:
        views, ends = self.views, self.ends
        for at, gradient in enumerate(gradients):
            views.b_gradient[at].add_(grouped_mm(low[:, self._columns(at)].t(), gradient, offs=ends))
        products = [grouped_mm(g, b.transpose(1, 2), offs=ends) for g, b in zip(gradients, views.b, strict=True)]
        low_gradient = side_by_side(products)
        if self.dropout is None:
            views.a_gradient.add_(grouped_mm(low_gradient.t(), x, offs=ends))
            return grouped_mm(low_gradient, views.a, offs=ends) if wants_x else None
        x_gradient = torch.zeros_like(x)
        a, a_gradient = (torch.split(matrix, views.rank, dim=1) for matrix in (views.a, views.a_gradient))
        for at, number in enumerate(self.numbers):
            part = low_gradient[:, self._columns(at)]
            a_gradient[at].add_(grouped_mm(part.t(), self.dropout(x, number), offs=ends))
            x_gradient.add_(self.dropout(grouped_mm(part, a[at], offs=ends), number))
        return x_gradient

    def _columns(self, at: int) -> slice:
        return slice(at * self.views.rank, (at + 1) * self.views.rank)
