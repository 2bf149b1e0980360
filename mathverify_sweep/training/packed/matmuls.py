"""Matmuls of a pass's rows with matrices of their own runs, in Triton: for thin matrices, whose time is memory traffic.

What a run's adapter adds is summed up where the base's product is, before anything is written; gradients of adapters
are summed up in float32, run by run in an order that hangs on the run alone. Imported only where there is a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from mathverify_sweep.training.packed.pieces import Pieces


@dataclass(frozen=True)
class Tile:
    """How a kernel works: rows and columns of a program's part of the result, depth at a time, warps, loads under way.

    Of `add_outer` the "rows" are columns of the right side, the columns those of the left side.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


OWN = Tile(128, 64, 64, 4, 3)
SUMMED = Tile(128, 128, 64, 4, 3)
OUTER = Tile(128, 64, 64, 4, 3)
OUTER_ROWS = 2048
"""Rows of a run that one program of `add_outer` sums up."""


def times(
    base: Sequence[tuple[Tensor, Tensor]], own: tuple[Tensor, Tensor], pieces: Pieces, result: Tensor, tile: Tile
) -> Tensor:
    """The sum of up to three products `left @ right` and of that of each row with its run's own matrix.

    Left sides are (rows, depth), right sides (depth, columns) and laid out in memory alike, the own (runs, depth,
    columns); `pieces` cuts the rows of the runs every `tile.rows`. Written to `result`, (rows, columns).
    """
    assert pieces.size == tile.rows
    assert all(x.stride(1) == 1 for x, _ in (*base, own))
    columns = result.shape[1]
    (left, matrices), none = own, (own[0], own[1][0])
    sides = [*base, none, none, none][:3]
    width = min(tile.columns, max(16, triton.next_power_of_2(columns)))
    _times[(triton.cdiv(columns, width), len(pieces))](
        *(side for pair in sides for side in pair),
        left,
        matrices,
        result,
        pieces.table,
        *(x.stride(0) for x, _ in sides),
        *sides[0][1].stride(),
        left.stride(0),
        *matrices.stride(),
        result.stride(0),
        bases=len(base),
        depth_0=sides[0][0].shape[1],
        depth_1=sides[1][0].shape[1],
        depth_2=sides[2][0].shape[1],
        own_depth=left.shape[1],
        own_step=min(tile.depth, max(16, triton.next_power_of_2(left.shape[1]))),
        columns=columns,
        rows=tile.rows,
        width=width,
        step=tile.depth,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return result


def add_outer(left: Tensor, right: Tensor, pieces: Pieces, total: Tensor, tile: Tile) -> None:
    """Adds left.T @ right of each run's rows to its part of `total`.

    (rows, a) and (rows, b); `total` is (runs, a, b), float32, contiguous but for the runs. Each piece's product is
    written first, so the cut decides how many programs there are.
    """
    a, b = left.shape[1], right.shape[1]
    assert total.stride()[1:] == (b, 1)
    assert left.stride(1) == right.stride(1) == 1
    width = min(tile.columns, max(16, triton.next_power_of_2(a)))
    products = torch.empty(len(pieces), a, b, dtype=torch.float32, device=left.device)
    _outer[(triton.cdiv(a, width) * triton.cdiv(b, tile.rows), len(pieces))](
        left,
        right,
        products,
        pieces.table,
        left.stride(0),
        right.stride(0),
        a=a,
        b=b,
        rows=tile.rows,
        width=width,
        size=pieces.size,
        step=tile.depth,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    _add_up[(triton.cdiv(a * b, _AT_ONCE), len(total))](
        products, total, pieces.first, total.stride(0), count=a * b, block=_AT_ONCE
    )


_AT_ONCE = 1024


@triton.jit  # type: ignore[untyped-decorator]
def _times(  # type: ignore[no-untyped-def]
    x_0, w_0, x_1, w_1, x_2, w_2, left, matrices, result, table,
    row_0, row_1, row_2, w_depth, w_column, left_row, run, own_depth_stride, own_column, result_row,
    bases: tl.constexpr, depth_0: tl.constexpr, depth_1: tl.constexpr, depth_2: tl.constexpr,
    own_depth: tl.constexpr, own_step: tl.constexpr, columns: tl.constexpr,
    rows: tl.constexpr, width: tl.constexpr, step: tl.constexpr,
):  # fmt: skip
    piece = table + tl.program_id(1) * 4
    owner = tl.load(piece).to(tl.int64)
    begin = tl.load(piece + 3).to(tl.int64)
    count = (tl.load(piece + 2) - begin).to(tl.int32)
    if count <= 0:
        return
    own = tl.arange(0, rows)
    # Rows of the next run are as good as any: what becomes of them is not kept.
    m = tl.minimum(own, count - 1)
    n = tl.program_id(0) * width + tl.arange(0, width)
    total = tl.zeros([rows, width], tl.float32)
    if bases > 0:
        total = _product(total, x_0 + begin * row_0, row_0, w_0, w_depth, w_column, m, n, depth_0, step, columns)
    if bases > 1:
        total = _product(total, x_1 + begin * row_1, row_1, w_1, w_depth, w_column, m, n, depth_1, step, columns)
    if bases > 2:
        total = _product(total, x_2 + begin * row_2, row_2, w_2, w_depth, w_column, m, n, depth_2, step, columns)
    matrix = matrices + owner * run
    total = _product(
        total,
        left + begin * left_row,
        left_row,
        matrix,
        own_depth_stride,
        own_column,
        m,
        n,
        own_depth,
        own_step,
        columns,
    )
    at = result + begin * result_row + own[:, None] * result_row + n[None, :]
    tl.store(at, total.to(result.dtype.element_ty), mask=(own < count)[:, None] & (n < columns)[None, :])


@triton.jit  # type: ignore[untyped-decorator]
def _product(  # type: ignore[no-untyped-def]
    total, x, x_row, w, w_depth, w_column, m, n,
    depth: tl.constexpr, step: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    for at in range(0, depth, step):
        k = at + tl.arange(0, step)
        x_at = x + m[:, None] * x_row + k[None, :]
        w_at = w + k[:, None] * w_depth + n[None, :] * w_column
        if depth % step == 0:
            a = tl.load(x_at)
            b = tl.load(w_at, mask=(n < columns)[None, :], other=0.0)
        else:
            a = tl.load(x_at, mask=(k < depth)[None, :], other=0.0)
            b = tl.load(w_at, mask=(k < depth)[:, None] & (n < columns)[None, :], other=0.0)
        total = tl.dot(a, b, total)
    return total


@triton.jit  # type: ignore[untyped-decorator]
def _outer(  # type: ignore[no-untyped-def]
    left, right, products, table, left_row, right_row,
    a: tl.constexpr, b: tl.constexpr,
    rows: tl.constexpr, width: tl.constexpr, size: tl.constexpr, step: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(1)
    piece = table + number * 4
    begin = tl.load(piece + 3).to(tl.int64)
    count = tl.minimum((tl.load(piece + 2) - begin).to(tl.int32), size)
    if count <= 0:
        return
    tiles = (a + width - 1) // width
    i = tl.program_id(0) % tiles * width + tl.arange(0, width)
    j = tl.program_id(0) // tiles * rows + tl.arange(0, rows)
    left += begin * left_row
    right += begin * right_row
    total = tl.zeros([rows, width], tl.float32)
    for at in range(0, count, step):
        k = at + tl.arange(0, step)
        inside = k < count
        x = tl.load(right + k[None, :] * right_row + j[:, None], mask=inside[None, :] & (j < b)[:, None], other=0.0)
        y = tl.load(left + k[:, None] * left_row + i[None, :], mask=inside[:, None] & (i < a)[None, :], other=0.0)
        total = tl.dot(x, y, total)
    at = products + number.to(tl.int64) * (a * b) + i[None, :] * b + j[:, None]
    tl.store(at, total, mask=(i < a)[None, :] & (j < b)[:, None])


@triton.jit  # type: ignore[untyped-decorator]
def _add_up(products, total, first, run, count: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
    owner = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * block + tl.arange(0, block)
    inside = at < count
    result = tl.load(total + owner * run + at, mask=inside)
    added = tl.zeros([block], tl.float32)
    for number in range(tl.load(first + owner).to(tl.int64), tl.load(first + owner + 1).to(tl.int64)):
        added += tl.load(products + number * count + at, mask=inside, other=0.0)
    tl.store(total + owner * run + at, result + added, mask=inside)
