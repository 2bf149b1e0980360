"""The verdict on every row in one forward pass: log P(True) - log P(False) after the prompt, in float32.

Rows are batched by length, so padding is a few tokens a row. A row that was left out because it does not fit has the
log-odds 0.0: no opinion.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mathverify_sweep.data.encode import EncodedRow
from mathverify_sweep.training import head
from mathverify_sweep.training.base import BaseModel
from mathverify_sweep.training.batches import micro_batches


def log_odds(
    base: BaseModel, model: nn.Module, rows: Sequence[EncodedRow], count: int, token_budget: int
) -> list[float]:
    """One value for each of the `count` rows that `rows` were encoded from, at the row's index.

    `model` is the base's model, with or without an adapter on it.
    """
    result = torch.zeros(count)
    nn.Module.eval(model)
    with torch.no_grad(), base.autocast():
        for batch in micro_batches([len(row.prompt_ids) for row in rows], token_budget):
            chosen = [rows[position] for position in batch]
            result[[row.index for row in chosen]] = _batch_log_odds(base, model, chosen).cpu()
    return [float(value) for value in result]


def padded(rows: Sequence[EncodedRow], pad_id: int) -> Tensor:
    """Prompts as one (rows, longest) tensor, padded behind: a causal model never looks there, so no mask is needed."""
    width = max(len(row.prompt_ids) for row in rows)
    return torch.tensor([[*row.prompt_ids, *[pad_id] * (width - len(row.prompt_ids))] for row in rows])


def last_positions(rows: Sequence[EncodedRow], width: int) -> Tensor:
    """Where each prompt ends in the flattened (rows, width) batch: the position that predicts the verdict."""
    return torch.tensor([i * width + len(row.prompt_ids) - 1 for i, row in enumerate(rows)])


def _batch_log_odds(base: BaseModel, model: nn.Module, rows: Sequence[EncodedRow]) -> Tensor:
    assert isinstance(base.tokenizer.pad_token_id, int)
    ids = padded(rows, base.tokenizer.pad_token_id)
    positions = last_positions(rows, ids.shape[1]).to(base.device)
    with head.reading_answers(model, positions, base.answers):
        logits: Tensor = model(input_ids=ids.to(base.device), use_cache=False).logits
    return logits[:, 1] - logits[:, 0]
