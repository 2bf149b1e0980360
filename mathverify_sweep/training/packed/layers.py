"""A base model's linear layers, taught to apply each run's own adapter to that run's rows.

Layers that read the same rows are one: A x of all of them is one matmul, and so is its way back. What adapters add,
B (A x), is added within the base's own matmul, which has to write the result anyway.
Gradients go straight into the runs' own memory, so autograd sees one node, and W, which is frozen, gets none. A has
the scale on it already (`weights.Weights`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from mathverify_sweep.training.packed.dropout import Dropout
from mathverify_sweep.training.packed.products import side_by_side
from mathverify_sweep.training.packed.weights import Views


class Adapters(Protocol):
    """What the runs of a pass add to layers that read the same rows. `at` counts those layers that have adapters."""

    @property
    def layers(self) -> Sequence[str]:
        """The names of those."""

    def low(self, x: Tensor) -> Tensor:
        """A x of each layer, side by side: (rows, layers * rank). `backward` wants it back."""

    def output(self, x: Tensor, weight: Tensor, low: Tensor, at: int) -> Tensor:
        """W x + B (A x) of one layer: (rows, out)."""

    def merged(self, weight: Tensor, at: int) -> Tensor | None:
        """A copy of the weight with B A on it; None unless all rows are one run's."""

    def backward(
        self, x: Tensor, low: Tensor, gradients: Sequence[Tensor], weights: Sequence[Tensor] | None
    ) -> Tensor | None:
        """From the gradients of what the layers give: adds to those of the adapters; with the weights gives that of x
        through those layers."""


@dataclass(frozen=True)
class Layers:
    """Linear layers of the base that read the same rows.

    `numbers` tell layers apart where random numbers are drawn; `weights` give (out, in) in the dtype of the matmuls;
    `adapters` gives those of the pass at hand; `anchor` is a number that requires a gradient. `behind`: they stand
    behind the last attention.
    """

    names: tuple[str, ...]
    numbers: tuple[int, ...]
    weights: Sequence[Callable[[], Tensor]]
    biases: Sequence[Tensor | None]
    behind: bool
    adapters: Callable[[Layers], Adapters | None]
    anchor: Tensor

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """(1, rows, in) to (1, rows, out) of each."""
        rows = x.squeeze(0)
        adapters = self.adapters(self)
        if torch.is_grad_enabled():
            ys: Sequence[Tensor] = _Linear.apply(rows, self.anchor, self, adapters)  # type: ignore[no-untyped-call]
        else:
            ys = self._judged(rows, adapters)
        return tuple(y.unsqueeze(0) for y in ys)

    def adapted(self, adapters: Adapters | None) -> list[int | None]:
        """Where each layer stands among those with adapters."""
        if adapters is None:
            return [None] * len(self.names)
        return [adapters.layers.index(name) if name in adapters.layers else None for name in self.names]

    def outputs(self, x: Tensor, adapters: Adapters | None, low: Tensor | None) -> list[Tensor]:
        """W x + bias + what the adapters add, of each layer."""
        ys = []
        for weight, bias, at in zip(self.weights, self.biases, self.adapted(adapters), strict=True):
            if adapters is None or low is None or at is None:
                ys.append(functional.linear(x, weight(), bias))
                continue
            y = adapters.output(x, weight(), low, at)
            ys.append(y if bias is None else y.add_(bias))
        return ys

    def _judged(self, x: Tensor, adapters: Adapters | None) -> list[Tensor]:
        """Forward only. Where all rows are one run's, its adapter is added to the weight first, if that is less work.

        In float32 only: bfloat16 would round what the adapter adds.
        """
        if adapters is None or x.dtype is not torch.float32:
            return self.outputs(x, adapters, None if adapters is None else adapters.low(x))
        ys = []
        for weight, bias, at in zip(self.weights, self.biases, self.adapted(adapters), strict=True):
            outputs, inputs = weight().shape
            pays = at is not None and len(x) * (inputs + outputs) > 2 * inputs * outputs
            merged = adapters.merged(weight(), at) if pays and at is not None else None
            if merged is None:
                return self.outputs(x, adapters, adapters.low(x))
            ys.append(functional.linear(x, merged, bias))
        return ys


class Siblings:
    """Stands in for layers that are called one by one with the same rows: the first call answers for all."""

    def __init__(self, layers: Layers) -> None:
        self._layers = layers
        self._x: Tensor | None = None
        self._left: dict[int, Tensor] = {}

    def answer(self, at: int, x: Tensor) -> Tensor:
        """What the layer at this place among them makes of the rows."""
        if x is not self._x or at not in self._left:
            self._x, self._left = x, dict(enumerate(self._layers(x)))
        y = self._left.pop(at)
        if not self._left:
            self._x = None
        return y

    def forget(self) -> None:
        """What a pass that failed has left would keep all of that pass in memory."""
        self._x = None
        self._left.clear()


class _Linear(torch.autograd.Function):
    """The anchor lets adapters have gradients in layers whose input needs none: those that read the embeddings."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, layers: Layers, adapters: Adapters | None) -> tuple[Tensor, ...]:  # noqa: ARG004
        low = None if adapters is None else adapters.low(x)
        ctx.save_for_backward(None if adapters is None else x, low)
        ctx.layers, ctx.adapters = layers, adapters
        return tuple(layers.outputs(x, adapters, low))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, None]:
        layers, adapters, wants_x = ctx.layers, ctx.adapters, ctx.needs_input_grad[0]
        x, low = ctx.saved_tensors
        x_gradient: Tensor | None = None
        pairs = list(zip(gradients, layers.weights, layers.adapted(adapters), strict=True))
        if adapters is not None:
            adapted = [gradient for gradient, _, at in pairs if at is not None]
            weights = [weight() for _, weight, at in pairs if at is not None] if wants_x else None
            x_gradient = adapters.backward(x, low, adapted, weights)
        if wants_x:
            for gradient, weight in [(gradient, weight) for gradient, weight, at in pairs if at is None]:
                x_gradient = gradient @ weight() if x_gradient is None else x_gradient.addmm_(gradient, weight())
        return x_gradient, None, None, None


@dataclass(frozen=True)
class OneRun:
    """One run's adapters on layers whose rows are all its own. `numbers` are those of the layers with adapters."""

    views: Views
    numbers: Sequence[int]
    dropout: Dropout | None

    @property
    def layers(self) -> Sequence[str]:
        return self.views.layers

    def low(self, x: Tensor) -> Tensor:
        if self.dropout is None:
            return x @ self.views.a.t()
        parts = zip(self.numbers, torch.split(self.views.a, self.views.rank), strict=True)
        return side_by_side([self.dropout(x, number) @ a.t() for number, a in parts])

    def output(self, x: Tensor, weight: Tensor, low: Tensor, at: int) -> Tensor:
        return (low[:, self._columns(at)] @ self.views.b[at]).addmm_(x, weight.t())

    def merged(self, weight: Tensor, at: int) -> Tensor:
        return torch.addmm(weight, self.views.b[at].t(), self.views.a[self._columns(at)])

    def backward(
        self, x: Tensor, low: Tensor, gradients: Sequence[Tensor], weights: Sequence[Tensor] | None
    ) -> Tensor | None:
        views = self.views
        for at, gradient in enumerate(gradients):
            _accumulate(views.b_gradient[at], low[:, self._columns(at)].t(), gradient)
        low_gradients = [gradient @ b.t() for gradient, b in zip(gradients, views.b, strict=True)]
        if self.dropout is None:
            low_gradient = side_by_side(low_gradients)
            _accumulate(views.a_gradient, low_gradient.t(), x)
            return None if weights is None else through(low_gradient @ views.a, gradients, weights)
        x_gradient = torch.zeros_like(x)
        a, a_gradient = (torch.split(matrix, views.rank) for matrix in (views.a, views.a_gradient))
        for at, (number, low_gradient) in enumerate(zip(self.numbers, low_gradients, strict=True)):
            _accumulate(a_gradient[at], low_gradient.t(), self.dropout(x, number))
            x_gradient.add_(self.dropout(low_gradient @ a[at], number))
        return x_gradient if weights is None else through(x_gradient, gradients, weights)

    def _columns(self, at: int) -> slice:
        return slice(at * self.views.rank, (at + 1) * self.views.rank)


def through(x_gradient: Tensor, gradients: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """With what comes through the weights added to it."""
    for gradient, weight in zip(gradients, weights, strict=True):
        x_gradient.addmm_(gradient, weight)
    return x_gradient


def _accumulate(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right; a product in bfloat16 is summed up in float32."""
    if left.dtype is total.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)
