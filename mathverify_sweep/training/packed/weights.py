"""One run's adapter as flat memory: every matrix a view of it, its gradient beside it.

Flat, so that clearing, measuring and updating cost a few operations instead of some for each of hundreds of matrices.
A is kept as PEFT keeps it, (rank, in), and B transposed, (rank, out), so that a padded rank only adds rows of zeros;
they stay zeros, for no optimizer moves a zero without a gradient. Gradients are float32 whatever the adapter is kept
in. Matmuls read `compute`, which is the adapter itself when the dtypes agree and else a copy that `refresh` renews.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor

from mathverify_sweep.specs import TrainParams

_ALIGNED = 64
"""Every matrix begins at a multiple of so many numbers: where the kernels of all devices like it."""

_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class Pair:
    """Where the adapter of one linear layer lies in flat memory: A (rank, in) and B transposed (rank, out)."""

    a_start: int
    b_start: int
    rank: int
    inputs: int
    outputs: int

    def a(self, flat: Tensor) -> Tensor:
        """A, of one flat memory or of a stack of them."""
        return self._view(flat, self.a_start, self.inputs)

    def b(self, flat: Tensor) -> Tensor:
        """B transposed, of one flat memory or of a stack of them."""
        return self._view(flat, self.b_start, self.outputs)

    def _view(self, flat: Tensor, start: int, columns: int) -> Tensor:
        part = flat[..., start : start + self.rank * columns]
        return part.view(*flat.shape[:-1], self.rank, columns)


class Views:
    """The adapter of one linear layer as matmuls take it, and its gradients. Kept, since views cost time too."""

    def __init__(self, pair: Pair, values: Tensor, gradient: Tensor) -> None:
        self.a, self.b = pair.a(values), pair.b(values)
        self.a_gradient, self.b_gradient = pair.a(gradient), pair.b(gradient)


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
        self.pairs, size = _layout(values, self.padded_rank)
        (dtype,) = {tensor.dtype for tensor in values.values()}
        self.flat = torch.zeros(size, dtype=dtype, device=device)
        self.gradient = torch.zeros(size, dtype=torch.float32, device=device)
        self.compute = self.flat if dtype is compute else torch.zeros(size, dtype=compute, device=device)
        self.views = {layer: Views(pair, self.compute, self.gradient) for layer, pair in self.pairs.items()}
        self.load(values)

    @classmethod
    def of(
        cls, model: PeftModel, params: TrainParams, device: torch.device, compute: torch.dtype, rank_step: int
    ) -> Weights:
        """A copy of the adapter that PEFT has put on the base."""
        values = get_peft_model_state_dict(model, save_embedding_layers=False)
        return cls(values, params, device, compute, rank_step)

    def put_on(self, model: PeftModel) -> None:
        """PEFT's adapter on the base becomes this one."""
        set_peft_model_state_dict(model, self.named())

    def named(self) -> dict[str, Tensor]:
        """Views of the matrices by PEFT's names and in its shapes."""
        named = {}
        for layer, pair in self.pairs.items():
            named[f"{_PREFIX}{layer}{_A}"] = pair.a(self.flat)[: self.rank]
            named[f"{_PREFIX}{layer}{_B}"] = pair.b(self.flat)[: self.rank].t()
        return named

    def matrices(self, flat: Tensor) -> list[Tensor]:
        """The matrices in flat memory without their padding: whole pieces of it, in a fixed order."""
        views = [view for pair in self.pairs.values() for view in (pair.a(flat), pair.b(flat))]
        return [view[: self.rank] for view in views]

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Take over values by PEFT's names."""
        for name, view in self.named().items():
            view.copy_(values[name])
        self.refresh()

    def refresh(self) -> None:
        """Let matmuls see the values as they are now."""
        if self.compute is not self.flat:
            self.compute.copy_(self.flat)


def _layout(values: Mapping[str, Tensor], rank: int) -> tuple[dict[str, Pair], int]:
    pairs: dict[str, Pair] = {}
    end = 0
    for name in [name for name in values if name.endswith(_A)]:
        inputs, outputs = values[name].shape[1], values[name.removesuffix(_A) + _B].shape[0]
        b_start = _aligned(end + rank * inputs)
        pairs[name.removeprefix(_PREFIX).removesuffix(_A)] = Pair(end, b_start, rank, inputs, outputs)
        end = _aligned(b_start + rank * outputs)
    assert len(values) == 2 * len(pairs), "an adapter has matrices A and B only"
    return pairs, end


def _aligned(position: int) -> int:
    return math.ceil(position / _ALIGNED) * _ALIGNED
