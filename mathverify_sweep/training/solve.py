"""Solutions, generated greedily behind their questions and compared by their final number.

What a row comes to has the form of log-odds: 1 when it is solved and -1 when it is not. So an accuracy of such figures
is pass@1, and all that compares runs row by row compares these too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from mathverify_sweep.data.encode import EncodedRow
from mathverify_sweep.data.solving import is_solved
from mathverify_sweep.training.base import BaseModel
from mathverify_sweep.training.batches import micro_batches

SOLVED, UNSOLVED = 1.0, -1.0


def solved(
    base: BaseModel,
    model: nn.Module,
    rows: Sequence[EncodedRow],
    answers: Sequence[str],
    token_budget: int,
    longest: int,
) -> list[float]:
    """One value for each of the answers; `rows` are prompts, each with its answer at its index.

    `longest`: tokens of a solution at most; one that has no end by then is compared as far as it got. A row that was
    left out because its question does not fit is unsolved.
    """
    result = [UNSOLVED] * len(answers)
    nn.Module.eval(model)
    with torch.no_grad(), base.autocast():
        # With what is written, a row is as long as both; keys and values of all of it are kept.
        for batch in micro_batches([len(row.prompt_ids) + longest for row in rows], token_budget):
            chosen = [rows[position] for position in batch]
            for row, text in zip(chosen, _written(base, model, chosen, longest), strict=True):
                result[row.index] = SOLVED if is_solved(text, answers[row.index]) else UNSOLVED
    return result


def _written(base: BaseModel, model: Any, rows: Sequence[EncodedRow], longest: int) -> list[str]:
    """What the model writes behind these prompts. Padded in front, so that all begin to write at one place."""
    tokenizer = base.tokenizer
    assert isinstance(tokenizer.pad_token_id, int)
    width = max(len(row.prompt_ids) for row in rows)
    padding = [width - len(row.prompt_ids) for row in rows]
    ids = [[tokenizer.pad_token_id] * n + [*row.prompt_ids] for n, row in zip(padding, rows, strict=True)]
    mask = [[0] * n + [1] * (width - n) for n in padding]
    told = model.generate(
        input_ids=torch.tensor(ids, device=base.device),
        attention_mask=torch.tensor(mask, device=base.device),
        generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False,
            max_new_tokens=longest,
            use_cache=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ),
    )
    texts: list[str] = tokenizer.batch_decode(told[:, width:], skip_special_tokens=True)
    return texts
