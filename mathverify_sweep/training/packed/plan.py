"""What fits on a device: weights unpacked or not, how many tokens at once, how many runs. Made once per base model.

Prefers speed: unpacked weights where they leave room, activations kept where they fit. Measures nothing itself;
`measure` does, where a measurement is worth its seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit
from torch import nn

from mathverify_sweep.specs import RunSpec
from mathverify_sweep.training.base import BaseModel, bytes_per_token
from mathverify_sweep.training.device import total_memory

CPU_TOKENS, CPU_EVALUATION_TOKENS = 2_048, 4_096
"""On one core the built-in model trains 160 rows a second at 400 tokens at once, 200 at 1,500, and no more above."""

MOST_SLOTS = 32
"""Runs at once on a GPU: with more, the samplers know too little of what runs when they propose."""

_SHARE_FOR_WEIGHTS = 0.35
"""Of free memory that unpacked weights may take. The rest is for activations, which make the larger difference."""

_SHARE_IN_USE = 0.9
"""Of free memory that is planned with: what the rules below leave out has to fit beside it."""

_SHARE_FOR_ACTIVATIONS = 0.8
"""Of what is planned with. The rest is for adapters."""

_BYTES_PER_ADAPTER_NUMBER = 24
"""Value, gradient, two moments: 16. A copy for matmuls and, for the length of a pass, another with its gradient: 8."""

_LAUNCH_SECONDS, _OPERATIONS = 6e-3, 4e14
"""To launch a pass takes Python 5 to 7 ms for each layer, whatever its size (SmolLM2, an H100's host). The matmuls of a
pass run at 450 to 700 TFLOP/s there, and their share of it is about two thirds."""

_LEAST_TOKENS = 4_096
"""A pass of fewer tokens wastes more of a GPU than computing activations twice does."""


@dataclass
class Budget:
    """Tokens at once in training, at which a pass makes the device busy, and in evaluation. Memory that turns out to be
    less makes them fewer.

    `of_one`: of a micro-batch of one run, which may be more: two halves of an effective batch take longer than the
    whole, and nothing comes between them that could use the room. It is also what passes of several may reach where
    they are not recorded.
    """

    tokens: int
    evaluation_tokens: int
    of_one: int

    def shrink(self, passed: int, least: int) -> bool:
        """A pass of `passed` tokens failed: half of what allowed it, but not below `least`; whether that is less.

        A pass larger than `tokens` says nothing of those that are not.
        """
        before = self.tokens, self.of_one
        most = max(least, (self.tokens if passed <= self.tokens else passed) // 2)
        if passed <= self.tokens:
            self.tokens = min(self.tokens, most)
        self.of_one = min(self.of_one, most)
        return (self.tokens, self.of_one) != before

    def shrink_evaluation(self) -> None:
        """Half of it in evaluation."""
        self.evaluation_tokens = max(1, self.evaluation_tokens // 2)


@dataclass(frozen=True)
class Plan:
    """How a base model is used on a device.

    `dequantised`: 4-bit weights unpacked once. `checkpointing`: activations computed twice. `together`: several runs in
    one pass and their adapters in grouped matmuls, for which ranks are padded to `rank_step`.
    `most_tokens`: what memory has room for at once. `layers` and the `numbers` of their weights say how long a pass is.
    """

    most_tokens: int
    dequantised: bool
    checkpointing: bool
    together: bool
    rank_step: int
    adapter_bytes: int
    layers: int
    numbers: int

    def is_launch_bound(self, tokens: int) -> bool:
        """Whether Python takes longer to launch a pass of so many than a GPU to run it."""
        return 4 * self.numbers * tokens / _OPERATIONS < self.layers * _LAUNCH_SECONDS

    def told(self, budget: Budget) -> str:
        """In one line, for the log."""
        weights = "unpacked once" if self.dequantised else "unpacked in each pass, if packed"
        activations = "computed twice" if self.checkpointing else "kept"
        return (
            f"packed engine: {budget.tokens} tokens at once ({budget.evaluation_tokens} in "
            f"evaluation), weights {weights}, activations {activations}"
        )

    @property
    def way(self) -> str:
        """What of the plan decides how many tokens make the device busy."""
        return f"dequantised={self.dequantised} checkpointing={self.checkpointing}"

    def has_room(self, adapter_numbers: int) -> bool:
        """For so many numbers in adapters."""
        return adapter_numbers * _BYTES_PER_ADAPTER_NUMBER <= self.adapter_bytes


def slots(device: torch.device, asked: int | None) -> int:
    """How many runs at once at most. On a CPU one more makes nothing faster and each wait longer."""
    return asked or (1 if device.type == "cpu" else MOST_SLOTS)


def make(base: BaseModel, spec: RunSpec) -> Plan:
    """The plan for runs like this spec's."""
    free = _free_bytes(base.device)
    unpacked = sum(map(math.prod, _packed_shapes(base))) * base.compute_dtype.itemsize
    dequantised = 0 < unpacked <= _SHARE_FOR_WEIGHTS * free
    left = _SHARE_IN_USE * (free - (unpacked if dequantised else 0))
    if base.device.type == "cpu":
        # One run in each pass. Together a run's numbers would hang on its neighbours': measured with four runs of the
        # built-in model, the gradient of one with three rows moved by 9e-7 of its largest, since matmuls of other
        # shapes sum up in another order. And matmuls of a CPU are busy with one run's few hundred rows already.
        return Plan(2**31, dequantised, spec.gradient_checkpointing, False, 1, 2**62, *_size(base))
    for_activations = _SHARE_FOR_ACTIVATIONS * left
    kept = int(for_activations / _bytes_per_token(base))
    checkpointing = spec.gradient_checkpointing or kept < max(_LEAST_TOKENS, spec.max_length)
    most = int(for_activations / bytes_per_token(base, checkpointing=True)) if checkpointing else kept
    # Grouped matmuls know bfloat16 only, and rows of 16 of them begin where they can read them.
    together = base.compute_dtype is torch.bfloat16
    layers, numbers = _size(base)
    return Plan(
        most_tokens=max(_in_steps(most), spec.max_length),
        dequantised=dequantised,
        checkpointing=checkpointing,
        together=together,
        rank_step=16 if together else 1,
        adapter_bytes=int(left - for_activations),
        layers=layers,
        numbers=numbers,
    )


def candidates(plan: Plan, longest: int) -> Sequence[int]:
    """Token budgets that are worth measuring on a GPU, ascending."""
    return [tokens for tokens in (2**n for n in range(11, 18)) if longest <= tokens <= plan.most_tokens] or [longest]


def _bytes_per_token(base: BaseModel) -> float:
    """Memory that a pass holds per token: in each layer what its two norms read and give, queries, keys, values and
    what attention makes of them, three feed-forward activations; and what is being worked on in one of them.
    """
    if base.compute_dtype is not torch.bfloat16:
        return bytes_per_token(base, checkpointing=False)
    config = base.model.config.get_text_config()
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = 2 * config.num_attention_heads + 2 * config.num_key_value_heads
    layer = 4 * config.hidden_size + heads * head + 3 * config.intermediate_size
    return float(base.compute_dtype.itemsize * (config.num_hidden_layers + 1) * layer)


def _in_steps(tokens: int) -> int:
    """So many or a ninth less: how runs are cut should not hang on some megabytes that others have on the device."""
    step = 1 << max(0, tokens.bit_length() - 4)
    return tokens // step * step


def _size(base: BaseModel) -> tuple[int, int]:
    """Its layers, and the numbers in their weights: those that each token is multiplied with."""
    layers = base.model.get_decoder().layers  # type: ignore[no-untyped-call]
    linear = [module for module in layers.modules() if isinstance(module, nn.Linear)]
    return len(layers), sum(math.prod(_shape(m) if isinstance(m, Linear4bit) else m.weight.shape) for m in linear)


def _packed_shapes(base: BaseModel) -> list[torch.Size]:
    modules = (module for module in base.model.modules() if isinstance(module, Linear4bit))
    return [_shape(module) for module in modules]


def _shape(module: Linear4bit) -> torch.Size:
    weight: Any = module.weight
    shape: torch.Size = weight.quant_state.shape
    return shape


def _free_bytes(device: torch.device) -> int:
    if device.type == "cpu":
        # Of what the machine has, half: how much of it is free changes by the minute, and a plan should not.
        return total_memory(device) // 2
    free, _total = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
