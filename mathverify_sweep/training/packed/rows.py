"""Causal attention within rows that lie end to end, in Triton: for many short rows on a GPU.

A program takes one piece of one row, so short rows leave little of it idle, and a row's numbers hang on the row alone.
The queries that share a head of keys and values are gone through by the program that sums up that head's gradients:
nothing is repeated, and nothing is added up in an order that chance decides. Imported only where there is a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mathverify_sweep.training.packed.pieces import Pieces

_LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class Tile:
    """How a kernel works: tokens of its own piece, tokens of the other side at a time, warps, loads under way."""

    own: int
    other: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Tiles:
    """Of the forward, and of the gradients of queries and of keys and values."""

    forward: Tile
    queries: Tile
    keys: Tile


BY_SIZE = {
    64: Tiles(Tile(64, 64, 4, 3), Tile(64, 32, 4, 3), Tile(64, 64, 4, 3)),
    128: Tiles(Tile(64, 64, 4, 2), Tile(64, 32, 4, 2), Tile(64, 64, 4, 2)),
}
"""By the size of a head, the fastest of those that `benchmarks.kernels` tries. Heads of other sizes have none."""


def attend(q: Tensor, k: Tensor, v: Tensor, cut: Callable[[int], Pieces], scaling: float, tiles: Tiles) -> Tensor:
    """softmax(scaling * q k) v of each token over its row up to itself.

    (tokens, heads, size) each, of keys and values possibly fewer heads; `cut` gives the rows in pieces of a size.
    """
    attended: Tensor = _Attention.apply(q, k, v, cut, scaling, tiles)  # type: ignore[no-untyped-call]
    return attended


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, cut: Callable[[int], Pieces], scaling: float, tiles: Tiles
    ) -> Tensor:
        q, k, v = (tensor if tensor.stride(2) == 1 else tensor.contiguous() for tensor in (q, k, v))
        attended, sums = forward(q, k, v, cut(tiles.forward.own), scaling, tiles.forward)
        ctx.save_for_backward(q, k, v, attended, sums)
        ctx.cut, ctx.scaling, ctx.tiles = cut, scaling, tiles
        return attended

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, attended, sums = ctx.saved_tensors
        cut, scaling, tiles = ctx.cut, ctx.scaling, ctx.tiles
        seen = Seen(q, k, v, gradient.contiguous(), sums, scaling)
        q_gradient, along = query_gradient(seen, attended, cut(tiles.queries.own), tiles.queries)
        k_gradient, v_gradient = key_gradients(seen, along, cut(tiles.keys.own), tiles.keys)
        return q_gradient, k_gradient, v_gradient, None, None, None


def forward(q: Tensor, k: Tensor, v: Tensor, pieces: Pieces, scaling: float, tile: Tile) -> tuple[Tensor, Tensor]:
    """What attention gives, and of each query the logarithm (base 2) of the sum it is divided by: (heads, tokens)."""
    tokens, heads, size = q.shape
    attended = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    sums = torch.empty(heads, tokens, dtype=torch.float32, device=q.device)
    _forward[(heads, len(pieces))](
        q,
        k,
        v,
        attended,
        sums,
        pieces.table,
        *q.stride()[:2],
        *k.stride()[:2],
        *v.stride()[:2],
        tokens,
        scaling * _LOG2_E,
        heads=heads,
        group=heads // k.shape[1],
        size=size,
        own=tile.own,
        other=tile.other,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return attended, sums


@dataclass(frozen=True)
class Seen:
    """What both kernels of the backward read: what the forward did, its `sums`, and the gradient, contiguous."""

    q: Tensor
    k: Tensor
    v: Tensor
    gradient: Tensor
    sums: Tensor
    scaling: float


def query_gradient(seen: Seen, attended: Tensor, pieces: Pieces, tile: Tile) -> tuple[Tensor, Tensor]:
    """The gradient of the queries, and of each query what its gradient has along its answer: (heads, tokens)."""
    q, k, v = seen.q, seen.k, seen.v
    tokens, heads, size = q.shape
    q_gradient = torch.empty_like(attended)
    along = torch.empty_like(seen.sums)
    _query_gradient[(heads, len(pieces))](
        q,
        k,
        v,
        attended,
        seen.gradient,
        seen.sums,
        along,
        q_gradient,
        pieces.table,
        *q.stride()[:2],
        *k.stride()[:2],
        *v.stride()[:2],
        tokens,
        seen.scaling,
        seen.scaling * _LOG2_E,
        heads=heads,
        group=heads // k.shape[1],
        size=size,
        own=tile.own,
        other=tile.other,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return q_gradient, along


def key_gradients(seen: Seen, along: Tensor, pieces: Pieces, tile: Tile) -> tuple[Tensor, Tensor]:
    """The gradients of keys and of values."""
    q, k, v = seen.q, seen.k, seen.v
    tokens, heads, size = q.shape
    k_gradient, v_gradient = (torch.empty(k.shape, dtype=k.dtype, device=k.device) for _ in range(2))
    _key_gradients[(k.shape[1], len(pieces))](
        q,
        k,
        v,
        seen.gradient,
        seen.sums,
        along,
        k_gradient,
        v_gradient,
        pieces.table,
        *q.stride()[:2],
        *k.stride()[:2],
        *v.stride()[:2],
        tokens,
        seen.scaling,
        seen.scaling * _LOG2_E,
        heads=heads,
        group=heads // k.shape[1],
        size=size,
        own=tile.own,
        other=tile.other,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return k_gradient, v_gradient


# In all kernels tokens are counted from the beginning of their row, and what lies behind its end is read as zero: it is
# another row's and may be no number.


@triton.jit(do_not_specialize=["tokens"])  # type: ignore[untyped-decorator]
def _forward(  # type: ignore[no-untyped-def]
    q, k, v, attended, sums, table,
    q_row, q_head, k_row, k_head, v_row, v_head, tokens, factor,
    heads: tl.constexpr, group: tl.constexpr, size: tl.constexpr, own: tl.constexpr, other: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    piece = table + tl.program_id(1) * 4
    start = tl.load(piece + 1).to(tl.int64)
    length = (tl.load(piece + 2) - start).to(tl.int32)
    begin = (tl.load(piece + 3) - start).to(tl.int32)
    if begin >= length:
        return
    m = begin + tl.arange(0, own)
    d = tl.arange(0, size)
    inside = m < length
    q += start * q_row + head * q_head
    k += start * k_row + head // group * k_head
    v += start * v_row + head // group * v_head
    queries = tl.load(q + m[:, None] * q_row + d[None, :], mask=inside[:, None], other=0.0)
    highest = tl.full([own], float("-inf"), tl.float32)
    total = tl.zeros([own], tl.float32)
    answer = tl.zeros([own, size], tl.float32)
    for at in range(0, tl.minimum(begin + own, length), other):
        n = at + tl.arange(0, other)
        there = n < length
        keys = tl.load(k + n[None, :] * k_row + d[:, None], mask=there[None, :], other=0.0)
        scores = tl.dot(queries, keys) * factor
        scores = tl.where(n[None, :] <= m[:, None], scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        shrink = tl.exp2(highest - higher)
        values = tl.load(v + n[:, None] * v_row + d[None, :], mask=there[:, None], other=0.0)
        answer = tl.dot(weights.to(values.dtype), values, answer * shrink[:, None])
        total = total * shrink + tl.sum(weights, 1)
        highest = higher
    attended += (start * heads + head) * size
    answer = (answer / total[:, None]).to(attended.dtype.element_ty)
    tl.store(attended + m[:, None] * (heads * size) + d[None, :], answer, mask=inside[:, None])
    tl.store(sums + head * tokens.to(tl.int64) + start + m, highest + tl.log2(total), mask=inside)


@triton.jit(do_not_specialize=["tokens"])  # type: ignore[untyped-decorator]
def _query_gradient(  # type: ignore[no-untyped-def]
    q, k, v, attended, gradient, sums, along, q_gradient, table,
    q_row, q_head, k_row, k_head, v_row, v_head, tokens, scaling, factor,
    heads: tl.constexpr, group: tl.constexpr, size: tl.constexpr, own: tl.constexpr, other: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    piece = table + tl.program_id(1) * 4
    start = tl.load(piece + 1).to(tl.int64)
    length = (tl.load(piece + 2) - start).to(tl.int32)
    begin = (tl.load(piece + 3) - start).to(tl.int32)
    if begin >= length:
        return
    m = begin + tl.arange(0, own)
    d = tl.arange(0, size)
    inside = m < length
    q += start * q_row + head * q_head
    k += start * k_row + head // group * k_head
    v += start * v_row + head // group * v_head
    packed = (start * heads + head) * size + m[:, None] * (heads * size) + d[None, :]
    ours = head * tokens.to(tl.int64) + start + m
    queries = tl.load(q + m[:, None] * q_row + d[None, :], mask=inside[:, None], other=0.0)
    high = tl.load(gradient + packed, mask=inside[:, None], other=0.0)
    answer = tl.load(attended + packed, mask=inside[:, None], other=0.0)
    within = tl.sum(high.to(tl.float32) * answer.to(tl.float32), 1)
    tl.store(along + ours, within, mask=inside)
    # No sum is too large for a query that is not there: its weights are zero.
    total = tl.load(sums + ours, mask=inside, other=float("inf"))
    result = tl.zeros([own, size], tl.float32)
    for at in range(0, tl.minimum(begin + own, length), other):
        n = at + tl.arange(0, other)
        there = n < length
        keys = tl.load(k + n[None, :] * k_row + d[:, None], mask=there[None, :], other=0.0)
        values = tl.load(v + n[None, :] * v_row + d[:, None], mask=there[None, :], other=0.0)
        scores = tl.dot(queries, keys) * factor - total[:, None]
        weights = tl.exp2(tl.where(n[None, :] <= m[:, None], scores, float("-inf")))
        back = weights * (tl.dot(high, values) - within[:, None])
        result = tl.dot(back.to(keys.dtype), tl.trans(keys), result)
    result = (result * scaling).to(q_gradient.dtype.element_ty)
    tl.store(q_gradient + packed, result, mask=inside[:, None])


@triton.jit(do_not_specialize=["tokens"])  # type: ignore[untyped-decorator]
def _key_gradients(  # type: ignore[no-untyped-def]
    q, k, v, gradient, sums, along, k_gradient, v_gradient, table,
    q_row, q_head, k_row, k_head, v_row, v_head, tokens, scaling, factor,
    heads: tl.constexpr, group: tl.constexpr, size: tl.constexpr, own: tl.constexpr, other: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    piece = table + tl.program_id(1) * 4
    start = tl.load(piece + 1).to(tl.int64)
    length = (tl.load(piece + 2) - start).to(tl.int32)
    begin = (tl.load(piece + 3) - start).to(tl.int32)
    if begin >= length:
        return
    n = begin + tl.arange(0, own)
    d = tl.arange(0, size)
    there = n < length
    q += start * q_row + head * group * q_head
    gradient += (start * heads + head * group) * size
    first = head * group * tokens.to(tl.int64) + start
    keys = tl.load(k + start * k_row + head * k_head + n[:, None] * k_row + d[None, :], mask=there[:, None], other=0.0)
    values = tl.load(
        v + start * v_row + head * v_head + n[:, None] * v_row + d[None, :], mask=there[:, None], other=0.0
    )
    k_result = tl.zeros([own, size], tl.float32)
    v_result = tl.zeros([own, size], tl.float32)
    # The heads of queries one after the other in one loop, so that loads are under way all the time.
    steps = tl.cdiv(length - begin, other)
    for step in range(0, group * steps):
        member = step // steps
        m = begin + step % steps * other + tl.arange(0, other)
        inside = m < length
        queries = tl.load(q + member * q_head + m[:, None] * q_row + d[None, :], mask=inside[:, None], other=0.0)
        high = tl.load(
            gradient + member * size + m[:, None] * (heads * size) + d[None, :], mask=inside[:, None], other=0.0
        )
        ours = first + member * tokens.to(tl.int64) + m
        total = tl.load(sums + ours, mask=inside, other=float("inf"))
        within = tl.load(along + ours, mask=inside, other=0.0)
        scores = tl.dot(queries, tl.trans(keys)) * factor - total[:, None]
        weights = tl.exp2(tl.where(n[None, :] <= m[:, None], scores, float("-inf")))
        v_result = tl.dot(tl.trans(weights.to(high.dtype)), high, v_result)
        back = weights * (tl.dot(high, tl.trans(values)) - within[:, None])
        k_result = tl.dot(tl.trans(back.to(queries.dtype)), queries, k_result)
    packed = (start * (heads // group) + head) * size + n[:, None] * (heads // group * size) + d[None, :]
    k_result = (k_result * scaling).to(k_gradient.dtype.element_ty)
    tl.store(k_gradient + packed, k_result, mask=there[:, None])
    tl.store(v_gradient + packed, v_result.to(v_gradient.dtype.element_ty), mask=there[:, None])
