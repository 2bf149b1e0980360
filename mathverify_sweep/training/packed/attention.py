"""Attention over rows that lie end to end, for `transformers`: every token sees its own row up to itself.

Registered under a name, so that models build no mask: a dense one over a stream would hold tokens squared. The stream
comes as the keyword `stream` that models hand through. On CUDA one variable-length kernel takes all rows; elsewhere
rows of like length are padded to rectangles, of one share each, so that a run's numbers are its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

from mathverify_sweep.training.packed.stream import Group, Stream

NAME = "mathverify_sweep_packed"


def attend(
    module: nn.Module,  # noqa: ARG001 - transformers names what it passes
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    stream: Stream,
    scaling: float,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """(1, heads, tokens, size) each, of keys and values possibly fewer heads; gives (1, tokens, heads, size)."""
    assert attention_mask is None
    over = _over_rows if query.is_cuda and query.dtype is not torch.float32 else _over_rectangles
    return over(query, key, value, stream, scaling, sliding_window), None


AttentionInterface.register(NAME, attend)


def _over_rows(query: Tensor, key: Tensor, value: Tensor, stream: Stream, scaling: float, window: int | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # not there in every build of PyTorch for CPUs

    heads, size = query.shape[1], query.shape[3]
    if scaling != size**-0.5:  # the kernel's own
        query = query * (scaling * size**0.5)
    # PyTorch 2.11 has no grouped heads here.
    q, k, v = (_as_many_heads(tensor, heads).squeeze(0).transpose(0, 1).contiguous() for tensor in (query, key, value))
    longest = max(stream.lengths)
    behind = -1 if window is None or window >= longest else window - 1
    attended = varlen_attn(q, k, v, stream.ends, stream.ends, longest, longest, window_size=(behind, 0))
    assert isinstance(attended, Tensor)
    return attended.unsqueeze(0)


def _over_rectangles(
    query: Tensor, key: Tensor, value: Tensor, stream: Stream, scaling: float, window: int | None
) -> Tensor:
    parts = []
    for group in stream.groups:
        q, k, v = (_rectangle(tensor.squeeze(0), group) for tensor in (query, key, value))
        k, v = _as_many_heads(k, q.shape[1]), _as_many_heads(v, q.shape[1])
        mask = _window_mask(group.longest, window, q.device) if window is not None and window < group.longest else None
        attended = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling
        )
        parts.append(_row_after_row(attended, group))
    return torch.cat(parts).unsqueeze(0)


def _as_many_heads(tensor: Tensor, heads: int) -> Tensor:
    """Of (rows, heads, tokens, size), with each head repeated until there are so many."""
    return tensor if tensor.shape[1] == heads else tensor.repeat_interleave(heads // tensor.shape[1], dim=1)


def _window_mask(length: int, window: int, device: torch.device) -> Tensor:
    """True where a token (second to last dimension) sees another (last): itself and the window - 1 before it."""
    seen = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return seen.triu(1 - window)


def _rectangle(tensor: Tensor, group: Group) -> Tensor:
    """(heads, tokens of the stream, size) to (rows, heads, longest, size)."""
    heads, _, size = tensor.shape
    tokens = tensor[:, group.start : group.end].transpose(0, 1).reshape(-1, heads * size)
    if group.sources is not None:
        tokens = _Pick.apply(tokens, group.sources, group.places)  # type: ignore[no-untyped-call]
    return tokens.view(group.rows, group.longest, heads, size).transpose(1, 2)


def _row_after_row(tensor: Tensor, group: Group) -> Tensor:
    """(rows, heads, longest, size) to (tokens of the group, heads, size)."""
    _, heads, _, size = tensor.shape
    places = tensor.transpose(1, 2).reshape(-1, heads * size)
    if group.places is not None:
        places = _Drop.apply(places, group.places)  # type: ignore[no-untyped-call]
    return places.view(-1, heads, size)


class _Pick(torch.autograd.Function):
    """Rows `sources` of a matrix. Backward reads `places` alone: what stands in for padding has the gradient 0."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, sources: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        return tokens.index_select(0, sources)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return gradient.index_select(0, places), None, None


class _Drop(torch.autograd.Function):
    """Rows `places` of a matrix, each once."""

    @staticmethod
    def forward(ctx: Any, rectangle: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.rows = rectangle.shape[0]
        return rectangle.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        whole = gradient.new_zeros(ctx.rows, gradient.shape[1])
        return whole.index_copy_(0, places, gradient), None
