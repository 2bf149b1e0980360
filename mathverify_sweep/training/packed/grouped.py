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

from mathverify_sweep.training.packed.layers import dropout_mask, has_dropout, side_by_side
from mathverify_sweep.training.packed.stream import Span
from mathverify_sweep.training.packed.weights import Views, Weights, moved


class Stack:
    """The adapters of several runs for one pass, all laid out as the widest of them."""

    def __init__(self, runs: Sequence[Weights]) -> None:
        self._runs = runs
        self._layout = max(runs, key=lambda weights: weights.padded_rank).layout
        first = runs[0].compute
        self._values = torch.empty(len(runs), self._layout.size, dtype=first.dtype, device=first.device)
        self._gradient = torch.zeros(self._values.shape, dtype=torch.float32, device=first.device)
        self._views: dict[str, Views] = {}
        for weights, values in zip(runs, self._values, strict=True):
            if weights.layout == self._layout:
                values.copy_(weights.compute)
            else:
                torch.index_select(weights.compute, 0, moved(weights.layout, self._layout, first.device), out=values)

    def views(self, layer: str) -> Views | None:
        """Of the block of a layer: (runs, rows, columns) each; None when it has no adapters."""
        block = self._layout.by_layer.get(layer)
        if block is None:
            return None
        if block.layers[0] not in self._views:
            self._views[block.layers[0]] = Views(block, self._values, self._gradient)
        return self._views[block.layers[0]]

    def hand_back(self) -> None:
        """Adds the gradients of this pass to each run's own."""
        for weights, gradient in zip(self._runs, self._gradient, strict=True):
            if weights.layout == self._layout:
                weights.gradient.add_(gradient)
            else:
                index = moved(self._layout, weights.layout, gradient.device)
                weights.gradient.add_(gradient.index_select(0, index))


class Rows:
    """Which rows of a pass belong to the runs of a stack, in its order."""

    def __init__(self, spans: Sequence[Span], device: torch.device) -> None:
        self.spans = spans
        self.ends = torch.tensor([span.end for span in spans], dtype=torch.int32, device=device)
        scales = [span.share.weights.scale for span in spans if span.share.weights is not None]
        counts = torch.tensor([span.end - span.start for span in spans], device=device)
        # float32: bfloat16 would round a scale by up to 0.4 %.
        self.scales = torch.tensor(scales, device=device).repeat_interleave(counts, output_size=spans[-1].end)[:, None]
        self.have_dropout = any(has_dropout(span.share) for span in spans)


@dataclass(frozen=True)
class ManyRuns:
    """The adapters of a stack on layers that read the same rows. `numbers` are those of the layers with adapters."""

    views: Views
    rows: Rows
    numbers: Sequence[int]

    @property
    def layers(self) -> Sequence[str]:
        return self.views.layers

    def low(self, x: Tensor) -> Tensor:
        """A x, already scaled."""
        a = self.views.a.transpose(1, 2)
        if not self.rows.have_dropout:
            return self._scaled(grouped_mm(x, a, offs=self.rows.ends))
        parts = zip(self._masks(x), a.split(self.views.rank, dim=2), strict=True)
        return self._scaled(side_by_side([grouped_mm(x * mask, part, offs=self.rows.ends) for mask, part in parts]))

    def high(self, low: Tensor, at: int) -> Tensor:
        """B times what `low` gives."""
        return grouped_mm(low[:, self._columns(at)], self.views.b[at], offs=self.rows.ends)

    def merged(self, weight: Tensor, at: int) -> None:
        """Nothing: they are several runs."""

    def backward(self, x: Tensor, low: Tensor, gradients: Sequence[Tensor], *, wants_x: bool) -> Tensor | None:
        views, ends = self.views, self.rows.ends
        for at, gradient in enumerate(gradients):
            views.b_gradient[at].add_(grouped_mm(low[:, self._columns(at)].t(), gradient, offs=ends))
        products = [grouped_mm(g, b.transpose(1, 2), offs=ends) for g, b in zip(gradients, views.b, strict=True)]
        low_gradient = self._scaled(side_by_side(products))
        if not self.rows.have_dropout:
            views.a_gradient.add_(grouped_mm(low_gradient.t(), x, offs=ends))
            return grouped_mm(low_gradient, views.a, offs=ends) if wants_x else None
        x_gradient = torch.zeros_like(x)
        a, a_gradient = (matrix.split(views.rank, dim=1) for matrix in (views.a, views.a_gradient))
        for at, mask in enumerate(self._masks(x)):
            part = low_gradient[:, self._columns(at)]
            a_gradient[at].add_(grouped_mm(part.t(), x * mask, offs=ends))
            x_gradient.addcmul_(grouped_mm(part, a[at], offs=ends), mask)
        return x_gradient

    def _scaled(self, matrix: Tensor) -> Tensor:
        return (matrix * self.rows.scales).to(matrix.dtype)

    def _columns(self, at: int) -> slice:
        return slice(at * self.views.rank, (at + 1) * self.views.rank)

    def _masks(self, x: Tensor) -> list[Tensor]:
        """One for each layer with adapters; ones where a run has no dropout."""
        masks = []
        for number in self.numbers:
            mask = torch.ones_like(x)
            for span in self.rows.spans:
                if has_dropout(span.share):
                    mine = mask[span.start : span.end]
                    mine.copy_(dropout_mask(span.share, number, mine))
            masks.append(mask)
        return masks
