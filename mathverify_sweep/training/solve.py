"""Solutions, generated greedily behind their questions and compared by their final number.

What a row comes to has the form of log-odds: 1 when it is solved and -1 when it is not. So an accuracy of such figures
is pass@1, and all that compares runs row by row compares these too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from mathverify_sweep.data.encode import EncodedRow
from mathverify_sweep.data.solving import final_number, is_same
from mathverify_sweep.training.base import BaseModel
from mathverify_sweep.training.batches import micro_batches

SOLVED, UNSOLVED = 1.0, -1.0


@dataclass(frozen=True)
class Writing:
    """How solutions are written: `longest` tokens at most, one that has no end by then is read as far as it got.

    Greedily, or with a `temperature` drawn `samples` times by the seed. On one machine the same draws come again.
    """

    longest: int
    samples: int = 1
    temperature: float = 0.0
    seed: int = 0


def solved(
    base: BaseModel, model: nn.Module, rows: Sequence[EncodedRow], answers: Sequence[str], budget: int, longest: int
) -> list[float]:
    """Of each answer whether it is arrived at, greedily; `rows` are prompts, each with its answer at its index."""
    return arrived(finals(base, model, rows, len(answers), budget, Writing(longest)), answers)


def arrived(found: Sequence[tuple[str | None, ...]], answers: Sequence[str]) -> list[float]:
    """Of each answer whether the one solution's final number is it, in the form of log-odds."""
    return [SOLVED if is_same(told, answer) else UNSOLVED for (told,), answer in zip(found, answers, strict=True)]


def finals(
    base: BaseModel, model: nn.Module, rows: Sequence[EncodedRow], count: int, budget: int, how: Writing
) -> list[tuple[str | None, ...]]:
    """The final numbers of what is written behind each of the `count` rows that `rows` were encoded from, at its index.

    None where there is none, and in rows that were left out because their question does not fit. `budget`: padded
    tokens at once.
    """
    result: list[tuple[str | None, ...]] = [(None,) * how.samples] * count
    nn.Module.eval(model)
    if how.temperature:  # a run's own dropout is drawn from the same numbers, and must not begin anew at each look
        torch.manual_seed(how.seed)
    with torch.no_grad(), base.autocast():
        # With what is written, a row is as long as both; keys and values of all of it are kept.
        for batch in micro_batches([how.samples * (len(row.prompt_ids) + how.longest) for row in rows], budget):
            chosen = [rows[position] for position in batch]
            texts = _written(base, model, chosen, how)
            for at, row in enumerate(chosen):
                own = texts[at * how.samples : (at + 1) * how.samples]
                result[row.index] = tuple(map(final_number, own))
    return result


def _written(base: BaseModel, model: Any, rows: Sequence[EncodedRow], how: Writing) -> list[str]:
    """What the model writes behind these prompts, all of one behind each other. Padded in front, so that all begin to
    write at one place."""
    tokenizer = base.tokenizer
    assert isinstance(tokenizer.pad_token_id, int)
    width = max(len(row.prompt_ids) for row in rows)
    padding = [width - len(row.prompt_ids) for row in rows]
    ids = [[tokenizer.pad_token_id] * n + [*row.prompt_ids] for n, row in zip(padding, rows, strict=True)]
    mask = [[0] * n + [1] * (width - n) for n in padding]
    drawn = {"do_sample": True, "temperature": how.temperature, "top_k": 0} if how.temperature else {"do_sample": False}
    told = model.generate(
        input_ids=torch.tensor(ids, device=base.device),
        attention_mask=torch.tensor(mask, device=base.device),
        generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
            **drawn,
            # Said, since what is not said is taken from the model's own defaults.
            top_p=1.0,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            num_return_sequences=how.samples,
            max_new_tokens=how.longest,
            use_cache=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ),
    )
    texts: list[str] = tokenizer.batch_decode(told[:, width:], skip_special_tokens=True)
    return texts
