"""How many tokens at once make a device busy: measured once per model and GPU, and remembered in the user's cache."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from mathverify_sweep import remembered
from mathverify_sweep.data.encode import EncodedRow
from mathverify_sweep.paths import token_budgets_file
from mathverify_sweep.specs import RunSpec
from mathverify_sweep.training import device
from mathverify_sweep.training.packed.model import PackedModel
from mathverify_sweep.training.packed.plan import CPU_EVALUATION_TOKENS, CPU_TOKENS, Budget, Plan, candidates
from mathverify_sweep.training.packed.stream import Share

log = logging.getLogger(__name__)

NEAR_PEAK = 0.95
"""Of the best rate: from there on more tokens cost memory, and more waiting between steps, for hardly any speed."""

_ROW = 256
"""Tokens of a made-up row: about what a worked solution has."""

_FILLED = 0.75
"""Of a budget that a pass holds: micro-batches are whole, so the last one that does not fit leaves a gap."""

_REPEATS = 3


def budget(model: PackedModel, plan: Plan, spec: RunSpec, asked: int | None) -> Budget:
    """As asked for; else a CPU's is known, and a GPU's the smallest that is near its best rate with this model."""
    if model.base.device.type == "cpu":
        return Budget(asked or CPU_TOKENS, asked or CPU_EVALUATION_TOKENS, asked or CPU_TOKENS)
    tokens = asked or _remembered_or_measured(model, plan, spec)
    recorded = plan.together and plan.is_launch_bound(tokens)
    # What is launched beside recorded passes cannot use their memory.
    most = max(tokens, plan.most_tokens - tokens) if recorded else plan.most_tokens
    # Forward only, a layer's activations are gone when the next one is through.
    return Budget(tokens, (2 if recorded else 4) * tokens, asked or most)


def smallest_near_peak(rates: Mapping[int, float]) -> int:
    """Of token budgets with their tokens a second: the smallest that reaches 95 % of the best rate."""
    peak = max(rates.values())
    return min(tokens for tokens, rate in rates.items() if rate >= NEAR_PEAK * peak)


def rates(
    model: PackedModel, spec: RunSpec, budgets: Sequence[int], clock: Callable[[], float] = time.perf_counter
) -> dict[int, float]:
    """Trained tokens a second at each budget, ascending, as far up as memory reaches: at the first in any case.

    Passes are as full as passes are.
    """
    weights = model.weights(spec, None)
    measured: dict[int, float] = {}
    for tokens in budgets:
        share = Share(weights, _made_up(model, min(_ROW, spec.max_length), int(_FILLED * tokens)), whole=1.0)
        model.expect(Budget(tokens, tokens, tokens), spec.max_length)
        try:
            model.train([share])  # the first chooses kernels and takes memory
            _finish(model)
            began = clock()
            for _ in range(_REPEATS):
                model.train([share])
            _finish(model)
            measured[tokens] = _REPEATS * share.tokens / (clock() - began)
        except RuntimeError as error:
            if not (device.is_out_of_memory(error) and measured):
                raise
            device.free_memory(model.base.device)
            break
    return measured


def _remembered_or_measured(model: PackedModel, plan: Plan, spec: RunSpec) -> int:
    file = token_budgets_file()
    known = remembered.read(file)
    base = model.base.spec
    way = f"{plan.way} filled={_FILLED}"
    key = " ".join(map(str, (base.name, base.revision, base.quantization, model.base.compute_dtype, way, _gpu())))
    if isinstance(known.get(key), int):
        return min(int(known[key]), plan.most_tokens)
    measured = rates(model, spec, candidates(plan, spec.max_length))
    found = smallest_near_peak(measured)
    log.info("tokens at once and tokens a second: %s", ", ".join(f"{t}: {r:.0f}" for t, r in measured.items()))
    remembered.write(file, key, found)
    return found


def _made_up(model: PackedModel, length: int, tokens: int) -> list[EncodedRow]:
    dice = random.Random(0)
    words = range(model.base.model.config.get_text_config().vocab_size)
    return [
        EncodedRow(tuple(dice.choices(words, k=length)), is_correct=True, index=i)
        for i in range(max(1, tokens // length))
    ]


def _gpu() -> str:
    return torch.cuda.get_device_name()


def _finish(model: PackedModel) -> None:
    if model.base.device.type == "cuda":
        torch.cuda.synchronize(model.base.device)
