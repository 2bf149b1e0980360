"""Rows of any origin, judged by trained adapters over one loaded base model: for what is no split of a study.

Adapters that judge and share a base are read in packed passes, all of them in each where the device gains by it; those
that write solutions do so one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from mathverify_sweep.data import prompts
from mathverify_sweep.data.encode import Encoded, encode, encode_solving
from mathverify_sweep.data.rows import Row
from mathverify_sweep.specs import RunSpec
from mathverify_sweep.training import adapters, base, device
from mathverify_sweep.training.base import BaseModel
from mathverify_sweep.training.evaluate import log_odds
from mathverify_sweep.training.material import Library, require_positions
from mathverify_sweep.training.packed import judging, ready
from mathverify_sweep.training.packed.model import unsupported
from mathverify_sweep.training.packed.ready import Ready
from mathverify_sweep.training.packed.weights import Weights
from mathverify_sweep.training.solve import Writing, arrived, finals

Score = Callable[[Sequence[Row]], list[list[float]]]
"""Rows to the log-odds of each adapter, in their order; 0 for a row that does not fit `max_length` even when cut. Of an
adapter that solves, whether it has solved them, in that form.
"""

Finals = list[tuple[str | None, ...]]
"""Of each row the final numbers of the solutions that were written for it, None where there is none."""


@dataclass(frozen=True)
class Trained:
    """An adapter's folder, and the spec of the run that left it there."""

    spec: RunSpec
    adapter: Path


class Judge:
    """On one device: "cpu", or "cuda:0". The base model that was asked for last stays loaded."""

    def __init__(self, device_name: str) -> None:
        self._library = Library(device.find(device_name))
        self._ready: Ready | None = None

    def reader(self, trained: Sequence[Trained]) -> Score:
        """What these adapters, all of one base model and task, say of rows, in batches of as many tokens as fit.

        Raises ModelError.
        """
        spec = trained[0].spec
        assert all(each.spec.base_model == spec.base_model for each in trained), "one base model at a time"
        assert all(each.spec.data.task == spec.data.task for each in trained), "one task at a time"
        if self._ready is not None and self._ready.model.base.spec != spec.base_model:
            self._ready = None
            self._library.forget_base()  # it would stay in memory beside the next one
        if spec.data.task == "solving":
            return partial(_one_by_one, self._to_write(spec), trained)
        loaded = self._library.base(spec.base_model)
        if unsupported(loaded, spec.base_model):
            return partial(_one_by_one, loaded, trained)
        self._ready = self._ready or ready.make(loaded, spec)
        return partial(_packed, self._ready, trained, [_weights(self._ready, each) for each in trained])

    def sample(self, spec: RunSpec, adapter: Path, rows: Sequence[Row], samples: int, temperature: float) -> Finals:
        """Of each row the final numbers of so many solutions, drawn by the spec's seed. Raises ModelError."""
        loaded = self._to_write(spec)
        how = Writing(spec.max_new_tokens, samples, temperature, spec.seed)
        with adapters.attached(loaded, spec, adapter) as model:
            return write(loaded, model, spec, how, rows)

    def _to_write(self, spec: RunSpec) -> BaseModel:
        """The base model as it was loaded."""
        assert self._ready is None, "a base that reads streams cannot write: another judge is needed"
        return self._library.base(spec.base_model)


def write(loaded: BaseModel, model: nn.Module, spec: RunSpec, how: Writing, rows: Sequence[Row]) -> Finals:
    """The final numbers of the solutions that the base's model writes, as the spec's prompt has it."""
    text = prompts.find(spec.params.prompt_template, spec.prompt_texts, spec.data.task)
    asked = encode_solving(rows, text, loaded.tokenizer, spec.max_length, None)
    require_positions(loaded, asked, how.longest)
    tokens = base.evaluation_tokens(loaded, base.micro_batch_tokens(loaded, spec))
    return finals(loaded, model, asked.rows, len(rows), tokens, how)


def read(loaded: BaseModel, model: nn.Module, spec: RunSpec, rows: Sequence[Row]) -> list[float]:
    """As `Score`, by the base's model, with or without an adapter on it, as the spec's prompt has the rows."""
    if spec.data.task == "solving":
        found = write(loaded, model, spec, Writing(spec.max_new_tokens), rows)
        return arrived(found, [row.answer for row in rows])
    tokens = base.evaluation_tokens(loaded, base.micro_batch_tokens(loaded, spec))
    return log_odds(loaded, model, _encoded(loaded, spec, rows).rows, len(rows), tokens)


def _packed(
    made: Ready, trained: Sequence[Trained], weights: Sequence[Weights], rows: Sequence[Row]
) -> list[list[float]]:
    encoded = [_encoded(made.model.base, each.spec, rows).rows for each in trained]
    readers = [judging.Reader(adapter, seen) for adapter, seen in zip(weights, encoded, strict=True)]
    return judging.log_odds(made.model, readers, len(rows), made.budget)


def _one_by_one(loaded: BaseModel, trained: Sequence[Trained], rows: Sequence[Row]) -> list[list[float]]:
    said = []
    for each in trained:
        with adapters.attached(loaded, each.spec, each.adapter) as model:
            said.append(read(loaded, model, each.spec, rows))
    return said


def _weights(made: Ready, trained: Trained) -> Weights:
    return made.model.weights(trained.spec, trained.adapter)


def _encoded(loaded: BaseModel, spec: RunSpec, rows: Sequence[Row]) -> Encoded:
    text = prompts.find(spec.params.prompt_template, spec.prompt_texts)
    encoded = encode(rows, text, loaded.tokenizer, spec.max_length)
    require_positions(loaded, encoded)
    return encoded
