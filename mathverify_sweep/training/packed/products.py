"""Products of a pass's rows with matrices of their own runs: the one place that chooses who multiplies.

PyTorch's grouped matmuls are the reference, and for whatever is large; kernels of ours are for thin matrices on the
kind of GPU that they have been tried on.
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

_SMALL = 2**21
"""Numbers of a base's matrix up to which a matmul of ours is no slower than cuBLAS's."""


def own(pairs: Sequence[Pair], runs: Cut) -> Tensor:
    """Of each pair the product of each row with its run's matrix, side by side: (rows, columns of all)."""
    if not _thin(pairs[0][0]):
        return side_by_side([grouped_mm(left, right, offs=runs.ends) for left, right in pairs])
    from mathverify_sweep.training.packed import matmuls

    tile = matmuls.OWN
    widths = [right.shape[2] for _, right in pairs]
    results = pairs[0][0].new_empty(len(pairs[0][0]), sum(widths))
    for pair, result in zip(pairs, torch.split(results, widths, dim=1), strict=True):
        matmuls.times([], pair, runs(tile.rows), result, tile)
    return results


def summed(base: Sequence[Pair], pair: Pair, runs: Cut) -> Tensor:
    """The sum of products with the base's matrices, and of the product of each row with its run's matrix."""
    left, right = pair
    if not (_thin(left) and all(matrix.numel() <= _SMALL for _, matrix in base)):
        result = grouped_mm(left, right, offs=runs.ends)
        for rows, matrix in base:
            result.addmm_(rows, matrix)
        return result
    from mathverify_sweep.training.packed import matmuls

    tile = matmuls.SUMMED
    return matmuls.times(base, pair, runs(tile.rows), left.new_empty(len(left), right.shape[2]), tile)


def add_outer(total: Tensor, left: Tensor, right: Tensor, runs: Cut) -> None:
    """Adds left.T @ right of each run's rows to its part of `total`, (runs, columns of left, columns of right)."""
    if not _thin(left):
        total.add_(grouped_mm(left.t(), right, offs=runs.ends))
        return
    from mathverify_sweep.training.packed import matmuls

    matmuls.add_outer(left, right, runs(matmuls.OUTER_ROWS), total, matmuls.OUTER)


def side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """Matrices of as many rows as one."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)


def _thin(like: Tensor) -> bool:
    """Adapters are; kernels of ours know bfloat16."""
    return like.dtype is torch.bfloat16 and device.is_hopper(like.device)
