"""Kernels in Triton, for what PyTorch and Liger have none for. Imported only where there is a GPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_COLUMNS = 1024


def dropped(seeds: Tensor, kept: Tensor, places: Tensor, matrix: Tensor, number: int) -> Tensor:
    """`matrix` (rows, columns) with each number kept with its row's probability and divided by it, or 0.

    `seeds` int64, `kept` float32 and `places` int32 are of the rows. Number `c` of a row is decided by place * columns
    + c, drawn from the row's seed + `number`.
    """
    matrix = matrix.contiguous()
    result = torch.empty_like(matrix)
    rows, columns = matrix.shape
    grid = (rows, triton.cdiv(columns, _COLUMNS))
    _dropped[grid](matrix, result, seeds, kept, places, number, columns, block=_COLUMNS)
    return result


@triton.jit  # type: ignore[untyped-decorator]
def _dropped(matrix, result, seeds, kept, places, number, columns, block: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * block + tl.arange(0, block)
    inside = at < columns
    probability = tl.load(kept + row)
    drawn = tl.rand(tl.load(seeds + row) + number, tl.load(places + row) * columns + at)
    value = tl.load(matrix + row * columns + at, mask=inside, other=0.0).to(tl.float32)
    value = tl.where(drawn < probability, value / probability, 0.0)
    tl.store(result + row * columns + at, value.to(result.dtype.element_ty), mask=inside)
