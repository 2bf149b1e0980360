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
from mathverify_sweep.data.solving import is_same
from mathverify_sweep.specs import RunSpec
from mathverify_sweep.training import adapters, base, device
from mathverify_sweep.training.base import BaseModel
from mathverify_sweep.training.evaluate import log_odds
from mathverify_sweep.training.material import Library, require_positions
from mathverify_sweep.training.solve import SOLVED, UNSOLVED, Writing, finals

Score = Callable[[Sequence[Row]], list[float]]
"""Rows to their log-odds, in their order; 0 for a row that does not fit `max_length` even when cut."""

Finals = list[tuple[str | None, ...]]
"""Of each row the final numbers of the solutions that were written for it, None where there is none."""


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

    def sample(self, spec: RunSpec, adapter: Path, rows: Sequence[Row], samples: int, temperature: float) -> Finals:
        """Of each row the final numbers of so many solutions, drawn by the spec's seed. Raises ModelError."""
        loaded = self._library.base(spec.base_model)
        how = Writing(spec.max_new_tokens, samples, temperature, spec.seed)
        with adapters.attached(loaded, spec, adapter) as model:
            return write(loaded, model, spec, how, rows)


def write(loaded: BaseModel, model: nn.Module, spec: RunSpec, how: Writing, rows: Sequence[Row]) -> Finals:
    """The final numbers of the solutions that the base's model writes, as the spec's prompt has it."""
    text = prompts.find(spec.params.prompt_template, spec.prompt_texts, spec.data.task)
    asked = encode_solving(rows, text, loaded.tokenizer, spec.max_length, None)
    require_positions(loaded, asked, how.longest)
    tokens = base.evaluation_tokens(loaded, base.micro_batch_tokens(loaded, spec))
    return finals(loaded, model, asked.rows, len(rows), tokens, how)


def read(loaded: BaseModel, model: nn.Module, spec: RunSpec, rows: Sequence[Row]) -> list[float]:
    """`Score` by the base's model, with or without an adapter on it, as the spec's prompt has it."""
    if spec.data.task == "solving":
        found = write(loaded, model, spec, Writing(spec.max_new_tokens), rows)
        return [SOLVED if is_same(told, row.answer) else UNSOLVED for (told,), row in zip(found, rows, strict=True)]
    text = prompts.find(spec.params.prompt_template, spec.prompt_texts)
    encoded = encode(rows, text, loaded.tokenizer, spec.max_length)
    require_positions(loaded, encoded)
    tokens = base.evaluation_tokens(loaded, base.micro_batch_tokens(loaded, spec))
    return log_odds(loaded, model, encoded.rows, len(rows), tokens)
