"""Stretches that lie end to end, cut into pieces: which part of a pass each program of a kernel works on.

Where rows and runs end is known on the device only, and a recorded pass has as many programs whatever is in it. So
there are as many pieces as there could be, and those left over are empty. How a stretch is cut hangs on it alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Pieces:
    """Stretches cut every `size` tokens.

    `table` is (pieces, 4), int32: of each piece its stretch, where that begins and ends, and where the piece begins:
    not before its stretch's end, if it is left over. `first`, (stretches + 1), int32: the number of each stretch's
    first piece, and how many pieces there are.
    """

    size: int
    table: Tensor
    first: Tensor

    @classmethod
    def of(cls, ends: Tensor, total: int, size: int) -> Pieces:
        """Of stretches that end at `ends`, int32, the last of them at `total`. No number is read by the host."""
        borders = functional.pad(ends, (1, 0))
        first = functional.pad((borders.diff() + size - 1).div(size, rounding_mode="floor").cumsum(0), (1, 0))
        piece = torch.arange(total // size + len(ends), device=ends.device)
        stretch = torch.searchsorted(first[1:], piece, right=True)
        start, end = borders[stretch], borders[(stretch + 1).clamp(max=len(ends))]
        begin = start + (piece - first[stretch]) * size
        return cls(size, torch.stack([stretch, start, end, begin], dim=1).int(), first.int())

    def __len__(self) -> int:
        return len(self.table)


class Cut:
    """Stretches that end at `ends`, int32, the last of them at `total`, in pieces of whatever sizes are asked for."""

    def __init__(self, ends: Tensor, total: int) -> None:
        self.ends, self.total = ends, total
        self._pieces: dict[int, Pieces] = {}

    def __call__(self, size: int) -> Pieces:
        """Made once for each size: of a pass that is being recorded, within the recording."""
        if size not in self._pieces:
            self._pieces[size] = Pieces.of(self.ends, self.total, size)
        return self._pieces[size]
