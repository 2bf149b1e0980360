"""Adapters of several runs on one layer by grouped matmuls: for GPUs, where many small ones wait for their launches.

Runs of one padded rank lie beside each other in a pass (`Stack`). Their values are copied together once a pass, which
costs a few hundred microseconds for hundreds of megabytes, and their gradients are handed back once a pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm

from mathverify_sweep.training.packed.layers import dropout_mask
from mathverify_sweep.training.packed.stream import Span
from mathverify_sweep.training.packed.weights import Pair, Weights


class Stack:
    """The adapters of runs of one padded rank, for one pass. All lie alike in their flat memory."""

    def __init__(self, runs: Sequence[Weights]) -> None:
        self._runs = runs
        self.values = torch.stack([weights.compute for weights in runs])
        self.gradient = torch.zeros(self.values.shape, dtype=torch.float32, device=self.values.device)

    def hand_back(self) -> None:
        """Adds the gradients of this pass to each run's own."""
        for weights, gradient in zip(self._runs, self.gradient, strict=True):
            weights.gradient.add_(gradient)


class Rows:
    """Which rows of a pass belong to the runs of a stack, in its order: neighbours all."""

    def __init__(self, spans: Sequence[Span], device: torch.device) -> None:
        self.spans, self.start, self.end = spans, spans[0].start, spans[-1].end
        ends = [span.end - self.start for span in spans]
        self.ends = torch.tensor(ends, dtype=torch.int32, device=device)
        scales = [span.share.weights.scale for span in spans if span.share.weights is not None]
        counts = torch.tensor([span.end - span.start for span in spans], device=device)
        # float32: bfloat16 would round a scale by up to 0.4 %.
        self.scales = torch.tensor(scales, device=device).repeat_interleave(counts)[:, None]
        self.have_dropout = any(span.share.weights.dropout > 0 for span in spans if span.share.weights is not None)

    def of(self, matrix: Tensor) -> Tensor:
        """These rows of a matrix."""
        return matrix[self.start : self.end]


@dataclass(frozen=True)
class ManyRuns:
    """The adapters of a stack on one layer."""

    stack: Stack
    pair: Pair
    rows: Rows
    layer_number: int

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a, b = self.pair.a(self.stack.values), self.pair.b(self.stack.values)
        mine = self.rows.of(x)
        mask = self._mask(mine)
        low = grouped_mm(mine if mask is None else mine * mask, a.transpose(1, 2), offs=self.rows.ends)
        scaled = (low * self.rows.scales).to(low.dtype)
        self.rows.of(y).add_(grouped_mm(scaled, b, offs=self.rows.ends))
        return scaled

    def merged(self, weight: Tensor, rows: int) -> None:
        """Nothing: they are several runs."""

    def backward(self, x: Tensor, kept: Tensor, gradient: Tensor, x_gradient: Tensor | None) -> None:
        a, b = self.pair.a(self.stack.values), self.pair.b(self.stack.values)
        ends, high, mine = self.rows.ends, self.rows.of(gradient), self.rows.of(x)
        mask = self._mask(mine)
        unscaled = grouped_mm(high, b.transpose(1, 2), offs=ends)
        low_gradient = (unscaled * self.rows.scales).to(unscaled.dtype)
        if x_gradient is not None:
            through = grouped_mm(low_gradient, a, offs=ends)
            self.rows.of(x_gradient).add_(through if mask is None else through * mask)
        rows = mine if mask is None else mine * mask
        self.pair.a(self.stack.gradient).add_(grouped_mm(low_gradient.t(), rows, offs=ends))
        self.pair.b(self.stack.gradient).add_(grouped_mm(kept.t(), high, offs=ends))

    def _mask(self, mine: Tensor) -> Tensor | None:
        if not self.rows.have_dropout:
            return None
        parts = []
        for span in self.rows.spans:
            rows = mine[span.start - self.rows.start : span.end - self.rows.start]
            mask = dropout_mask(span, self.layer_number, rows)
            parts.append(torch.ones_like(rows) if mask is None else mask)
        return torch.cat(parts)
