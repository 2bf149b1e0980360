"""One run's adapter as flat memory: every matrix a view of it, its gradient beside it.

Flat, so that clearing, measuring and updating cost a few operations instead of some for each of hundreds of matrices.
A is kept as PEFT keeps it, (rank, in), and B transposed, (rank, out), so that a padded rank only adds rows of zeros;
they stay zeros, for no optimizer moves a zero without a gradient. Gradients are float32 whatever the adapter is kept
in. Matmuls read `compute`, a copy in their dtype with the scale already on A, which `refresh` renews: so a pass
multiplies with no scale, and what it leaves in A's gradient is that of scale * A until `settle` puts the scale on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate

import torch
from torch import Tensor

from mathverify_sweep.specs import TrainParams

READING_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Linear layers that `transformers` gives the same rows, in all families that can be packed."""

_ALIGNED = 64
"""Every matrix begins at a multiple of so many numbers: where the kernels of all devices like it."""

_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class Block:
    """Where the adapters of layers that read the same rows lie in flat memory.

    A of all of them in one piece, (layers * rank, in), for one matmul; of each layer B transposed, (rank, out).
    """

    layers: tuple[str, ...]
    rank: int
    inputs: int
    outputs: tuple[int, ...]
    a_start: int
    b_starts: tuple[int, ...]

    def a(self, flat: Tensor) -> Tensor:
        """A of all its layers, of one flat memory or of a stack of them."""
        return self._view(flat, self.a_start, len(self.layers) * self.rank, self.inputs)

    def b(self, flat: Tensor) -> list[Tensor]:
        """B transposed of each layer, of one flat memory or of a stack of them."""
        starts = zip(self.b_starts, self.outputs, strict=True)
        return [self._view(flat, start, self.rank, columns) for start, columns in starts]

    def _view(self, flat: Tensor, start: int, rows: int, columns: int) -> Tensor:
        part = flat[..., start : start + rows * columns]
        return part.view(*flat.shape[:-1], rows, columns)


class Views:
    """The adapters of a block as matmuls take them, and their gradients. Kept, since views cost time too."""

    def __init__(self, block: Block, values: Tensor, gradient: Tensor) -> None:
        self.layers, self.rank = block.layers, block.rank
        self.a, self.b = block.a(values), block.b(values)
        self.a_gradient, self.b_gradient = block.a(gradient), block.b(gradient)


@dataclass(frozen=True)
class Layout:
    """Where all matrices of an adapter lie when its rank is padded so far: every A, then from `b_start` every B.

    The last number belongs to none: a zero.
    """

    blocks: tuple[Block, ...]
    b_start: int
    size: int

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]], rank: int) -> Layout:
        """For matrices of these shapes, named by their layers with PEFT's endings."""
        names = [name.removesuffix(_A) for name in shapes if name.endswith(_A)]
        assert len(shapes) == 2 * len(names), "an adapter has matrices A and B only"
        groups = together(names)
        inputs = [shapes[layers[0] + _A][1] for layers in groups]
        outputs = [shapes[layer + _B][0] for layers in groups for layer in layers]
        a_starts = _starts(0, [len(layers) * rank * columns for layers, columns in zip(groups, inputs, strict=True)])
        b_starts = _starts(a_starts[-1], [rank * columns for columns in outputs])
        blocks = []
        at = 0
        for layers, columns, start in zip(groups, inputs, a_starts, strict=False):
            here = slice(at, at + len(layers))
            blocks.append(Block(layers, rank, columns, tuple(outputs[here]), start, tuple(b_starts[here])))
            at += len(layers)
        return cls(tuple(blocks), a_starts[-1], b_starts[-1] + _ALIGNED)

    @cached_property
    def by_layer(self) -> dict[str, Block]:
        """Each layer's block."""
        return {layer: block for block in self.blocks for layer in block.layers}

    def matrices(self, flat: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Of each layer A (rank, in) and B transposed (rank, out) in flat memory, padding included."""
        found = {}
        for block in self.blocks:
            parts = zip(block.layers, torch.split(block.a(flat), block.rank), block.b(flat), strict=True)
            found.update({layer: (a, b) for layer, a, b in parts})
        return found


@lru_cache(maxsize=8)
def moved(source: Layout, target: Layout, device: torch.device) -> Tensor:
    """Which number of `source` stands at each place of `target`, int32: ranks become wider by zeros, or narrower."""
    numbers = torch.arange(source.size, dtype=torch.int32, device=device)
    index = torch.full((target.size,), source.size - 1, dtype=torch.int32, device=device)
    theirs = source.matrices(numbers)
    for layer, places in target.matrices(index).items():
        for place, matrix in zip(places, theirs[layer], strict=True):
            rank = min(len(place), len(matrix))
            place[:rank] = matrix[:rank]
    return index


class Weights:
    """The adapter of one run: values, gradients, and what decides how a layer applies them.

    `rank_step`: ranks are padded to a multiple of it.
    """

    def __init__(
        self,
        values: Mapping[str, Tensor],
        params: TrainParams,
        device: torch.device,
        compute: torch.dtype,
        rank_step: int,
    ) -> None:
        """`values` by PEFT's names; their dtype is the one that the adapter is kept in."""
        self.rank, self.dropout = params.lora_r, params.lora_dropout
        self.padded_rank = math.ceil(self.rank / rank_step) * rank_step
        self.scale = params.alpha / (math.sqrt(self.rank) if params.use_rslora else self.rank)
        shapes = {name.removeprefix(_PREFIX): tuple(tensor.shape) for name, tensor in values.items()}
        self.layout = Layout.of(shapes, self.padded_rank)
        (dtype,) = {tensor.dtype for tensor in values.values()}
        size = self.layout.size
        self.flat = torch.zeros(size, dtype=dtype, device=device)
        self.gradient = torch.zeros(size, dtype=torch.float32, device=device)
        self.compute = torch.zeros(size, dtype=compute, device=device)
        blocks = [(block, Views(block, self.compute, self.gradient)) for block in self.layout.blocks]
        self.views = {layer: views for block, views in blocks for layer in block.layers}
        self.load(values)

    def named(self) -> dict[str, Tensor]:
        """Views of the matrices by PEFT's names and in its shapes."""
        named = {}
        for layer, (a, b) in self.layout.matrices(self.flat).items():
            named[f"{_PREFIX}{layer}{_A}"] = a[: self.rank]
            named[f"{_PREFIX}{layer}{_B}"] = b[: self.rank].t()
        return named

    def matrices(self, flat: Tensor) -> list[Tensor]:
        """The matrices in flat memory without their padding: whole pieces of it, in a fixed order."""
        return [matrix[: self.rank] for pair in self.layout.matrices(flat).values() for matrix in pair]

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Take over values by PEFT's names."""
        for name, view in self.named().items():
            view.copy_(values[name])
        self.refresh()

    def refresh(self) -> None:
        """Let matmuls see the values as they are now."""
        split = self.layout.b_start
        torch.mul(self.flat[:split], self.scale, out=self.compute[:split])
        self.compute[split:].copy_(self.flat[split:])

    def settle(self) -> None:
        """Once all passes of an effective batch have left their gradients: makes them those of A and B."""
        self.gradient[: self.layout.b_start].mul_(self.scale)


def widest(runs: Sequence[Weights]) -> Layout:
    """The layout that all of them fit into."""
    return max(runs, key=lambda weights: weights.padded_rank).layout


def together(names: Iterable[str]) -> list[tuple[str, ...]]:
    """The layers' names, those that read the same rows in one tuple; in the order of the first of each."""
    found: dict[tuple[str, Sequence[str]], list[str]] = {}
    for name in names:
        parent, _, own = name.rpartition(".")
        kin = next((kin for kin in READING_TOGETHER if own in kin), (own,))
        found.setdefault((parent, kin), []).append(name)
    return [tuple(layers) for layers in found.values()]


def _starts(first: int, sizes: Iterable[int]) -> list[int]:
    """Where pieces of these sizes begin, aligned, one behind the other; and where the last of them ends."""
    return list(accumulate((math.ceil(size / _ALIGNED) * _ALIGNED for size in sizes), initial=first))
