"""Attention over rows that lie end to end, for `transformers`: every token sees its own row up to itself.

Registered under a name, so that models build no mask: a dense one over a stream would hold tokens squared. The stream
comes as the keyword `stream` that models hand through. On CUDA one kernel takes all rows, ours or PyTorch's; elsewhere
rows of like length are padded to rectangles, of one share each, so that a run's numbers are its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from mathverify_sweep.training import device
from mathverify_sweep.training.packed.stream import Group, Stream

NAME = "mathverify_sweep_packed"

_SHORT = 256
"""Tokens of a row up to which its scores take no more memory than the rest of what a layer keeps."""


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
    window = None if sliding_window is None or sliding_window >= stream.longest else sliding_window
    return _way(query, window)(query, key, value, stream, scaling, window), None


AttentionInterface.register(NAME, attend)


def _way(query: Tensor, window: int | None) -> Callable[..., Tensor]:
    """By what is attended: PyTorch's kernel is for long rows, ours has been tried on one kind of GPU."""
    if not query.is_cuda or query.dtype is torch.float32:
        return _over_rectangles
    if window is None and device.is_hopper(query.device):
        from mathverify_sweep.training.packed import rows

        if query.dtype is torch.bfloat16 and query.shape[3] in rows.BY_SIZE:
            return _over_pieces
    return _over_rows


def _over_pieces(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    stream: Stream,
    scaling: float,
    window: None,  # noqa: ARG001 - called like the others
) -> Tensor:
    from mathverify_sweep.training.packed import rows

    q, k, v = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
    return rows.attend(q, k, v, stream.rows, scaling, rows.BY_SIZE[q.shape[2]]).unsqueeze(0)


def _over_rows(query: Tensor, key: Tensor, value: Tensor, stream: Stream, scaling: float, window: int | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # not there in every build of PyTorch for CPUs

    size = query.shape[3]
    if scaling != size**-0.5:  # the kernel's own
        query = query * (scaling * size**0.5)
    q, k, v = (tensor.squeeze(0).transpose(0, 1).contiguous() for tensor in (query, key, value))
    longest, ends = stream.longest, stream.row_ends
    behind = -1 if window is None else window - 1
    # The kernel of PyTorch 2.11 takes fewer heads of keys than of queries without being told.
    told: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in signature(varlen_attn).parameters else {}
    attended = varlen_attn(q, k, v, ends, ends, longest, longest, window_size=(behind, 0), **told)
    assert isinstance(attended, Tensor)
    return attended.unsqueeze(0)


def _over_rectangles(
    query: Tensor, key: Tensor, value: Tensor, stream: Stream, scaling: float, window: int | None
) -> Tensor:
    """One node for autograd, since the rectangles' cutting and padding would be dozens."""
    q, k, v = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
    attended: Tensor = _Rectangles.apply(q, k, v, stream, scaling, window)  # type: ignore[no-untyped-call]
    return attended.unsqueeze(0)


class _Rectangles(torch.autograd.Function):
    """(tokens, heads, size) each: softmax(scale * q k) v within each row, group by group.

    By matmuls of a rectangle's rows and heads at once, which on a CPU take rows of some dozens to hundreds of tokens
    faster than the kernels for long rows do. The scores of long rows are computed again for the backward, not kept.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, stream: Stream, scaling: float, window: int | None
    ) -> Tensor:
        attended = torch.empty_like(q)
        kept: list[Tensor | None] = []
        heads = q.shape[1]
        for group in stream.groups:
            queries, keys, values = (_rectangle(tensor, group, heads) for tensor in (q, k, v))
            scores = _scores(queries, keys, scaling, window)
            _put_back(torch.bmm(scores, values), group, attended)
            kept += [queries, keys, values, scores if group.longest <= _SHORT else None]
        ctx.save_for_backward(*kept)
        ctx.stream, ctx.scaling, ctx.window, ctx.shapes = stream, scaling, window, (q.shape, k.shape)
        return attended

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q_shape, k_shape = ctx.shapes
        q_gradient, k_gradient, v_gradient = (gradient.new_empty(shape) for shape in (q_shape, k_shape, k_shape))
        saved = iter(ctx.saved_tensors)
        for group in ctx.stream.groups:
            queries, keys, values, scores = next(saved), next(saved), next(saved), next(saved)
            if scores is None:
                scores = _scores(queries, keys, ctx.scaling, ctx.window)
            high = _rectangle(gradient, group, q_shape[1], padding=0.0)
            back = torch.bmm(high, values.transpose(1, 2))
            back.sub_((back * scores).sum(-1, keepdim=True)).mul_(scores).mul_(ctx.scaling)
            _put_back(torch.bmm(back, keys), group, q_gradient)
            _put_back(torch.bmm(back.transpose(1, 2), queries), group, k_gradient)
            _put_back(torch.bmm(scores.transpose(1, 2), high), group, v_gradient)
        return q_gradient, k_gradient, v_gradient, None, None, None


def _scores(queries: Tensor, keys: Tensor, scaling: float, window: int | None) -> Tensor:
    unseen = _unseen(queries.shape[1], window, queries.dtype, queries.device)
    return torch.baddbmm(unseen, queries, keys.transpose(1, 2), alpha=scaling).softmax(-1)


def _rectangle(tensor: Tensor, group: Group, heads: int, padding: float | None = None) -> Tensor:
    """(tokens of the stream, fewer or as many heads, size) to (rows * heads, longest, size).

    Padding is what `sources` says, or this number.
    """
    tokens = tensor if group.end - group.start == len(tensor) else tensor[group.start : group.end]
    if group.sources is not None and group.places is not None:
        if padding is None:
            tokens = tokens.index_select(0, group.sources)
        else:
            places = tokens.new_full((len(group.sources), *tokens.shape[1:]), padding)
            tokens = places.index_copy_(0, group.places, tokens)
    rectangle = tokens.reshape(group.rows, group.longest, *tokens.shape[1:]).transpose(1, 2)
    return _as_many_heads(rectangle, heads).reshape(group.rows * heads, group.longest, -1)


def _put_back(rectangle: Tensor, group: Group, tensor: Tensor) -> None:
    """The other way round, into the group's tokens; heads that were repeated are summed up."""
    heads = tensor.shape[1]
    rows = rectangle.view(group.rows, heads, -1, *rectangle.shape[1:])
    rows = rows.squeeze(2) if rows.shape[2] == 1 else rows.sum(2)
    tokens = rows.transpose(1, 2).flatten(0, 1)
    tensor[group.start : group.end] = tokens if group.places is None else tokens.index_select(0, group.places)


def _as_many_heads(tensor: Tensor, heads: int) -> Tensor:
    """Of (rows, heads, tokens, size), with each head repeated until there are so many."""
    return tensor if tensor.shape[1] == heads else tensor.repeat_interleave(heads // tensor.shape[1], dim=1)


@lru_cache(maxsize=64)
def _unseen(length: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(length, length): minus infinity where a token (first dimension) does not see another.

    It sees itself, and before it all tokens, or the nearest `window` - 1 of them.
    """
    seen = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    if window is not None:
        seen = seen.triu(1 - window)
    return torch.zeros(length, length, dtype=dtype, device=device).masked_fill_(~seen, float("-inf"))
