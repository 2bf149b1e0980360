"""Dropout on what a run's adapters read: in forward, in backward and in a repeated pass the same, and nothing is kept.

What is drawn hangs on the run's seed, its micro-batch, the layer and the place of the row among the run's own, never on
who else is in the pass. A CPU draws with a generator for each run and layer; a GPU draws number by number from a
counter (Philox), in the kernel that multiplies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from mathverify_sweep.training.packed.stream import Share, Stream

Dropout = Callable[[Tensor, int], Tensor]
"""A matrix of a pass's rows, times what dropout multiplies it with in the layer of that number."""

Dropouts = tuple[Dropout | None, Dropout | None]
"""That on all tokens of a pass, and that on those that are read, behind the last attention. None: no run wants any."""

NO_DROPOUT: Dropouts = (None, None)


def wanted(share: Share) -> bool:
    """Whether dropout touches these rows: they are trained on, by a run that wants it."""
    return share.weights is not None and share.weights.dropout > 0 and share.whole is not None


def of(stream: Stream, shares: Sequence[Share]) -> Dropouts:
    """Those of a pass of these shares."""
    if not any(map(wanted, shares)):
        return NO_DROPOUT
    if stream.device.type == "cuda":
        return by_counter(stream)
    return _by_generator(shares, stream.token_ends.tolist()), _by_generator(shares, stream.read_ends.tolist())


def by_counter(stream: Stream) -> Dropouts:
    """On a GPU; of whatever runs the stream has when they are called."""
    from mathverify_sweep.training.packed.kernels import dropped

    return partial(dropped, *stream.draws), partial(dropped, *stream.draws_behind)


def _by_generator(shares: Sequence[Share], ends: Sequence[int]) -> Dropout:
    def dropped(matrix: Tensor, number: int) -> Tensor:
        mask = torch.ones_like(matrix)
        for share, start, end in zip(shares, [0, *ends], ends, strict=False):
            if share.weights is not None and wanted(share):
                kept = 1 - share.weights.dropout
                generator = torch.Generator().manual_seed(share.noise + number)
                mask[start:end].bernoulli_(kept, generator=generator).div_(kept)
        return mask.mul_(matrix)

    return dropped
