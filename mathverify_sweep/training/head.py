"""Logits at the positions that are asked for, and nowhere else.

A full forward pass over a vocabulary of 128k tokens writes more logits than activations. Here the model's own forward
runs as it is, but its LM head sees chosen positions only; what the model does to logits afterwards (soft caps, scales)
is still done.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@contextmanager
def reading(model: nn.Module, positions: Tensor) -> Iterator[None]:
    """Within it, logits have the shape (len(positions), vocabulary); positions count over the flattened batch."""

    def pick(_head: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden: Tensor = inputs[0]
        return (hidden.flatten(0, 1)[positions], *inputs[1:])

    hook = _head(model).register_forward_pre_hook(pick)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def reading_answers(model: nn.Module, positions: Tensor, answers: tuple[int, int]) -> Iterator[None]:
    """Within it, logits have the shape (len(positions), 2) and are float32: the head's rows of the two answers alone.

    In bfloat16 a logit near 20 has steps of 0.125, so the odds of many rows would tie.
    """
    head = _head(model)
    rows = head.weight[list(answers)].float()
    bias = None if head.bias is None else head.bias[list(answers)].float()

    def two_rows(_head: nn.Module, inputs: tuple[Any, ...], _output: Tensor) -> Tensor:
        hidden: Tensor = inputs[0]
        with torch.autocast(hidden.device.type, enabled=False):
            return functional.linear(hidden.float(), rows, bias)

    with reading(model, positions):
        hook = head.register_forward_hook(two_rows)
        try:
            yield
        finally:
            hook.remove()


def _head(model: nn.Module) -> nn.Linear:
    head = model.get_output_embeddings()  # type: ignore[operator]
    assert isinstance(head, nn.Linear)
    return head
