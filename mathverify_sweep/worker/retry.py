"""What follows an ended run: another attempt, as which spec, or none."""

from __future__ import annotations

from mathverify_sweep.specs import RunResult, RunSpec
from mathverify_sweep.states import ENDINGS, MAX_FAILURES, EndReason

_MOST_ROWS = 16
"""Rows of full length in a pass, for a run that was out of memory before its engine had chosen."""


def next_attempt(spec: RunSpec, result: RunResult, failures: int) -> RunSpec | None:
    """The spec of the next attempt; None when there is none. `failures` counts this one and those before it."""
    if result.end_reason is EndReason.OUT_OF_MEMORY:
        return _with_half_the_memory(spec, result.micro_batch_tokens)
    ending = ENDINGS[result.end_reason]
    if not ending.retried or failures >= MAX_FAILURES:
        return None
    return spec


def _with_half_the_memory(spec: RunSpec, used_tokens: int) -> RunSpec | None:
    """Half the tokens in a forward pass, same effective batch size; None when one row filled the pass already."""
    used_tokens = used_tokens or spec.micro_batch_tokens or _MOST_ROWS * spec.max_length  # 0: it did not get to start
    if used_tokens <= spec.max_length:
        return None
    return spec.model_copy(update={"micro_batch_tokens": max(used_tokens // 2, spec.max_length)})
