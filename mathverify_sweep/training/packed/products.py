"""Products of a pass's rows with matrices of their own runs: the one place that chooses who multiplies.

PyTorch's grouped matmuls are the reference, and for whatever is large; kernels of ours are for small layers on the kind
of GPU that they have been tried on. `suits` is always what `suit` says of the layers' sizes, so all products of a layer
have one answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm

from mathverify_sweep.training import device
from mathverify_sweep.training.packed.pieces import Cut

Pair = tuple[Tensor, Tensor]
"""A left side of (rows, depth), a row's numbers beside each other, and a right one of (depth, columns), or of (runs,
depth, columns)."""

_SIZES = range(128, 2_048 + 1)
"""Numbers of a row, read or given, of layers that kernels of ours are for. Measured on an H100: both ways through
layers of SmolLM2-135M, 192 to 1,536, took 0.66 to 0.94 of PyTorch's time with eight runs of rank 16 or 64, through
those of an 8B model, 4,096 at least, 0.98 to 1.07. Below 128 they give nothing to measure, and compiled by Triton 3.6
they were wrong: 64 numbers in, 64 and 32 out, rank 64. Interpreted they were right; the cause is not known."""


def own(pairs: Sequence[Pair], runs: Cut, *, suits: bool) -> Tensor:
    """Of each pair the product of each row with its run's matrix, side by side: (rows, columns of all)."""
    if not _ours(pairs[0][0], suits):
        return side_by_side([grouped_mm(left, right, offs=runs.ends) for left, right in pairs])
    from mathverify_sweep.training.packed import matmuls

    tile = matmuls.OWN
    widths = [right.shape[2] for _, right in pairs]
    results = pairs[0][0].new_empty(len(pairs[0][0]), sum(widths))
    for pair, result in zip(pairs, torch.split(results, widths, dim=1), strict=True):
        matmuls.times([], pair, runs(tile.rows), result, tile)
    return results


def summed(base: Sequence[Pair], pair: Pair, runs: Cut, *, suits: bool) -> Tensor:
    """The sum of products with the base's matrices, and of the product of each row with its run's matrix."""
    left, right = pair
    if not _ours(left, suits):
        result = grouped_mm(left, right, offs=runs.ends)
        for rows, matrix in base:
            result.addmm_(rows, matrix)
        return result
    from mathverify_sweep.training.packed import matmuls

    tile = matmuls.SUMMED
    return matmuls.times(base, pair, runs(tile.rows), left.new_empty(len(left), right.shape[2]), tile)


def add_outer(total: Tensor, left: Tensor, right: Tensor, runs: Cut, *, suits: bool) -> None:
    """Adds left.T @ right of each run's rows to its part of `total`, (runs, columns of left, columns of right)."""
    if not _ours(left, suits):
        total.add_(grouped_mm(left.t(), right, offs=runs.ends))
        return
    from mathverify_sweep.training.packed import matmuls

    matmuls.add_outer(left, right, runs(matmuls.OUTER_ROWS), total, matmuls.OUTER)


def side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """Matrices of as many rows as one."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)


def suit(sizes: Sequence[int]) -> bool:
    """Whether kernels of ours are for layers with rows of so many numbers."""
    return all(size in _SIZES for size in sizes)


def _ours(like: Tensor, suits: bool) -> bool:
    """Whether kernels of ours multiply. They know bfloat16."""
    return suits and like.dtype is torch.bfloat16 and device.is_hopper(like.device)
