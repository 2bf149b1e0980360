"""Rows of any origin, judged by trained adapters over one loaded base model: for what is no split of a study."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from torch import nn

from mathverify_sweep.data import prompts
from mathverify_sweep.data.encode import encode, encode_solving
from mathverify_sweep.data.rows import Row
from mathverify_sweep.specs import RunSpec
from mathverify_sweep.training import adapters, base, device
from mathverify_sweep.training.base import BaseModel
from mathverify_sweep.training.evaluate import log_odds
from mathverify_sweep.training.material import Library, require_positions
from mathverify_sweep.training.solve import solved

Score = Callable[[Sequence[Row]], list[float]]
"""Rows to their log-odds, in their order; 0 for a row that does not fit `max_length` even when cut."""


class Judge:
    """On one device: "cpu", or "cuda:0". The base model that was asked for last stays loaded."""

    def __init__(self, device_name: str) -> None:
        self._library = Library(device.find(device_name))

    @contextmanager
    def reading(self, spec: RunSpec, adapter: Path) -> Iterator[Score]:
        """Within it, rows are judged by this adapter of the spec's shape, in batches of as many tokens as fit.

        Raises ModelError.
        """
        loaded = self._library.base(spec.base_model)
        with adapters.attached(loaded, spec, adapter) as model:
            yield partial(read, loaded, model, spec)


def read(loaded: BaseModel, model: nn.Module, spec: RunSpec, rows: Sequence[Row]) -> list[float]:
    """`Score` by the base's model, with or without an adapter on it, as the spec's prompt has it."""
    text = prompts.find(spec.params.prompt_template, spec.prompt_texts, spec.data.task)
    tokens = base.evaluation_tokens(loaded, base.micro_batch_tokens(loaded, spec))
    if spec.data.task == "solving":
        asked = encode_solving(rows, text, loaded.tokenizer, spec.max_length, None)
        require_positions(loaded, asked, spec.max_new_tokens)
        return solved(loaded, model, asked.rows, [row.answer for row in rows], tokens, spec.max_new_tokens)
    encoded = encode(rows, text, loaded.tokenizer, spec.max_length)
    require_positions(loaded, encoded)
    return log_odds(loaded, model, encoded.rows, len(rows), tokens)
