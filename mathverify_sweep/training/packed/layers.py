"""A base model's linear layers, taught to apply each run's own adapter to that run's rows.

W x of all rows in one matmul, then scale * B (A x) of each run for its own rows only. Gradients go straight into the
runs' `Weights`, so autograd sees one node per layer, and W, which is frozen, gets none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from mathverify_sweep.training.packed.stream import Span
from mathverify_sweep.training.packed.weights import Views, Weights


class Adapter(Protocol):
    """What one or more runs add to a layer, on neighbouring rows of a pass."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Adds scale * B (A x) to `y` (rows, out); gives what `backward` wants back."""

    def merged(self, weight: Tensor, rows: int) -> Tensor | None:
        """A copy of the weight with scale * B A on it; None unless all these rows are one run's."""

    def backward(self, x: Tensor, kept: Tensor, gradient: Tensor, x_gradient: Tensor | None) -> None:
        """From the gradient of `y`: adds to those of the adapters, and to that of `x` where one is wanted."""


@dataclass(frozen=True)
class Layer:
    """A linear layer of the base, called in place of its own `forward`.

    `weight` gives (out, in) in the dtype of the matmuls; `adapters` gives those of the pass at hand; `anchor` is a
    number that requires a gradient.
    """

    weight: Callable[[], Tensor]
    bias: Tensor | None
    adapters: Callable[[], Sequence[Adapter]]
    anchor: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """(1, rows, in) to (1, rows, out)."""
        rows = x.squeeze(0)
        if torch.is_grad_enabled():
            y: Tensor = _Linear.apply(rows, self.anchor, self)  # type: ignore[no-untyped-call]
        else:
            y = self._judged(rows)
        return y.unsqueeze(0)

    def _judged(self, x: Tensor) -> Tensor:
        """Forward only. Where all rows are one run's, its adapter is added to the weight first, if that is less work.

        In float32 only: bfloat16 would round what the adapter adds.
        """
        weight, adapters = self.weight(), self.adapters()
        outputs, inputs = weight.shape
        pays = weight.dtype is torch.float32 and len(x) * (inputs + outputs) > 2 * inputs * outputs
        if pays and len(adapters) == 1 and (merged := adapters[0].merged(weight, len(x))) is not None:
            return functional.linear(x, merged, self.bias)
        y = functional.linear(x, weight, self.bias)
        for adapter in adapters:
            adapter.forward(x, y)
        return y


class _Linear(torch.autograd.Function):
    """The anchor lets adapters have gradients in layers whose input needs none: those that read the embeddings."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, layer: Layer) -> Tensor:  # noqa: ARG004
        y = functional.linear(x, layer.weight(), layer.bias)
        adapters = layer.adapters()
        ctx.save_for_backward(x, *(adapter.forward(x, y) for adapter in adapters))
        ctx.layer, ctx.adapters = layer, adapters
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None]:
        x, *kept = ctx.saved_tensors
        x_gradient = gradient @ ctx.layer.weight() if ctx.needs_input_grad[0] else None
        for adapter, lows in zip(ctx.adapters, kept, strict=True):
            adapter.backward(x, lows, gradient, x_gradient)
        return x_gradient, None, None


@dataclass(frozen=True)
class OneRun:
    """One run's adapter on one layer, by matmuls of its own: their numbers hang on no other run."""

    weights: Weights
    views: Views
    span: Span
    layer_number: int

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        mine = self._mine(x)
        mask = dropout_mask(self.span, self.layer_number, mine)
        low = (mine if mask is None else mine * mask) @ self.views.a.t()
        self._mine(y).addmm_(low, self.views.b, alpha=self.weights.scale)
        return low

    def merged(self, weight: Tensor, rows: int) -> Tensor | None:
        if self.span.end - self.span.start < rows:
            return None
        return torch.addmm(weight, self.views.b.t(), self.views.a, alpha=self.weights.scale)

    def backward(self, x: Tensor, kept: Tensor, gradient: Tensor, x_gradient: Tensor | None) -> None:
        scale, views, mine, high = self.weights.scale, self.views, self._mine(x), self._mine(gradient)
        low_gradient = high @ views.b.t()
        mask = dropout_mask(self.span, self.layer_number, mine)
        if x_gradient is not None and mask is None:
            self._mine(x_gradient).addmm_(low_gradient, views.a, alpha=scale)
        elif x_gradient is not None and mask is not None:
            self._mine(x_gradient).addcmul_(low_gradient @ views.a, mask, value=scale)
        _accumulate(views.a_gradient, low_gradient.t(), mine if mask is None else mine * mask, scale)
        _accumulate(views.b_gradient, kept.t(), high, scale)

    def _mine(self, matrix: Tensor) -> Tensor:
        is_all = self.span.end - self.span.start == len(matrix)
        return matrix if is_all else matrix[self.span.start : self.span.end]


def dropout_mask(span: Span, layer_number: int, rows: Tensor) -> Tensor | None:
    """What dropout multiplies a run's rows with in one layer; None where there is none.

    Drawn from a seed of the share and the layer, so backward, recomputation and a repeated pass draw the same, and
    nothing is kept.
    """
    weights = span.share.weights
    if weights is None or weights.dropout == 0 or span.share.whole is None:
        return None
    generator = torch.Generator(rows.device).manual_seed(span.share.noise + layer_number)
    kept = torch.empty_like(rows).bernoulli_(1 - weights.dropout, generator=generator)
    return kept.div_(1 - weights.dropout)


def _accumulate(total: Tensor, left: Tensor, right: Tensor, scale: float) -> None:
    """total += scale * left @ right; a product in bfloat16 is summed up in float32."""
    if left.dtype is total.dtype:
        total.addmm_(left, right, alpha=scale)
    else:
        total.add_(left @ right, alpha=scale)
