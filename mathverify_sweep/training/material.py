"""What runs work on: the base model, the data, and its rows as tokens. Loaded once, shared by the runs of an engine.

Refuses data whose fingerprint is not the study's, and rows that the base model has no positions for.
"""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import nn

from mathverify_sweep.data import dataset, prompts
from mathverify_sweep.data.encode import Encoded, EncodedRow, encode, encode_solving
from mathverify_sweep.errors import DataDrift, ModelError
from mathverify_sweep.specs import BaseModelSpec, DataSpec, RunSpec, Split
from mathverify_sweep.training import base, device, slices
from mathverify_sweep.training.base import BaseModel
from mathverify_sweep.training.batches import training_order
from mathverify_sweep.training.evaluate import log_odds
from mathverify_sweep.training.slices import Slice
from mathverify_sweep.training.solve import solved

_KEPT = 6
"""Of prompts and splits whose rows stay encoded: training and validation of three prompts."""


@dataclass(frozen=True)
class Material:
    """What one run works on. `train` has the rows as the run meets them; `labels` and `groups` are those of all
    validation rows, in the split's order.
    """

    base: BaseModel
    micro_batch_tokens: int
    train: Encoded
    validation: Encoded
    labels: tuple[bool, ...]
    groups: tuple[str, ...]
    slices: tuple[Slice, ...] = ()
    answers: tuple[str, ...] | None = None
    max_new_tokens: int = 0

    def first(self, count: int) -> list[EncodedRow]:
        """Of the first `count` validation rows those that fit."""
        return [row for row in self.validation.rows if row.index < count]

    def log_odds(self, model: nn.Module, rows: Sequence[EncodedRow], count: int) -> Sequence[float]:
        """As `evaluate.log_odds`. `model` is the base's, with or without an adapter on it.

        Of the task solving, which has `answers`, whether validation rows are solved, in the form of log-odds.
        """
        tokens = base.evaluation_tokens(self.base, self.micro_batch_tokens)
        if self.answers is not None:
            return solved(self.base, model, rows, self.answers[:count], tokens, self.max_new_tokens)
        return log_odds(self.base, model, rows, count, tokens)


class Library:
    """Base, data and encoded rows on one device. The runs of a study share them, so the last ones stay loaded."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # Each run collects garbage once; over all that the libraries above hold, that would take 0.4 s.
        gc.collect()
        gc.freeze()
        self._base = lru_cache(maxsize=1)(base.load)
        self._data = lru_cache(maxsize=1)(_load_data)
        self._encoded: OrderedDict[_Rows, Encoded] = OrderedDict()

    def data(self, spec: DataSpec, fingerprint: str) -> dataset.VerificationData:
        """Raises DataDrift when it is not the data of that fingerprint."""
        return self._data(spec, fingerprint)

    def base(self, spec: BaseModelSpec) -> BaseModel:
        """The base model on this library's device."""
        return self._base(spec, self._device)

    def forget_base(self) -> None:
        """The next one finds the memory free. Nobody else may hold on to it."""
        self._base.cache_clear()
        device.free_memory(self._device)

    def rows(self, spec: RunSpec, split: Split, count: int) -> Encoded:
        """The first `count` rows of a split as the spec's prompt and the base's tokenizer encode them."""
        wanted = _Rows.of(spec, split)
        known = self._encoded.pop(wanted, Encoded((), 0))
        if (done := len(known.rows) + known.left_out) < count:
            known = self._more(wanted, known, done, count)
        self._encoded[wanted] = known
        if len(self._encoded) > _KEPT:
            self._encoded.popitem(last=False)
        rows = tuple(row for row in known.rows if row.index < count)
        return Encoded(rows, count - len(rows))

    def material(self, spec: RunSpec) -> Material:
        """All that a run of this spec works on."""
        data = self.data(spec.data, spec.data_fingerprint)
        loaded = self.base(spec.base_model)
        nested = self.rows(spec, "train", len(data.training_rows(spec.train_rows)))
        validation = self.rows(spec, "validation", len(data.validation))
        if spec.data.task == "solving":
            require_positions(loaded, validation, spec.max_new_tokens)
        return Material(
            base=loaded,
            micro_batch_tokens=base.micro_batch_tokens(loaded, spec),
            train=Encoded(tuple(training_order(nested.rows, spec)), nested.left_out),
            validation=validation,
            labels=tuple(row.is_correct for row in data.validation),
            groups=tuple(dataset.groups(data.validation)),
            slices=slices.of(spec, nested.rows, len(data.train), len(data.validation)),
            answers=tuple(row.answer for row in data.validation) if spec.data.task == "solving" else None,
            max_new_tokens=spec.max_new_tokens,
        )

    def _more(self, wanted: _Rows, known: Encoded, done: int, count: int) -> Encoded:
        """The first `count` rows, of which the first `done` are known."""
        rows = self.data(wanted.data, wanted.data_fingerprint).split(wanted.split)[done:count]
        loaded = self.base(wanted.base_model)
        if wanted.data.task == "solving":
            end = loaded.tokenizer.eos_token_id
            if not isinstance(end, int):
                raise ModelError("the tokenizer must have a token that ends a text, or a solution would have no end")
            behind = end if wanted.split == "train" else None
            more = encode_solving(rows, wanted.template_text, loaded.tokenizer, wanted.max_length, behind)
        else:
            more = encode(rows, wanted.template_text, loaded.tokenizer, wanted.max_length)
        require_positions(loaded, more)
        found = (*known.rows, *(replace(row, index=row.index + done) for row in more.rows))
        if not found:
            raise ModelError(f"max_length must leave rows, none of {count} fits even when cut. Raise it")
        return Encoded(found, known.left_out + more.left_out)


def require_positions(loaded: BaseModel, encoded: Encoded, more: int = 0) -> None:
    """Raises ModelError when a row, with so many tokens written behind it, is longer than the base model can read."""
    most = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    longest = max((len(row.prompt_ids) for row in encoded.rows), default=0) + more
    if most is not None and longest > most:
        behind = f", {more} max_new_tokens included" if more else ""
        raise ModelError(
            f"max_length must leave rows of at most the base model's {most} positions, the longest has {longest}"
            f"{behind}. Lower it"
        )


@dataclass(frozen=True)
class _Rows:
    """The rows of a split as one prompt and tokenizer encode them: the key of what stays encoded."""

    data: DataSpec
    data_fingerprint: str
    base_model: BaseModelSpec
    template_text: str
    max_length: int
    split: Split

    @classmethod
    def of(cls, spec: RunSpec, split: Split) -> _Rows:
        text = prompts.find(spec.params.prompt_template, spec.prompt_texts, spec.data.task)
        return cls(spec.data, spec.data_fingerprint, spec.base_model, text, spec.max_length, split)


def _load_data(spec: DataSpec, fingerprint: str) -> dataset.VerificationData:
    data = dataset.load(spec)
    if data.fingerprint != fingerprint:
        raise DataDrift(
            f"{spec.source}: the study was created with data of fingerprint {fingerprint[:12]}, this machine reads "
            f"{data.fingerprint[:12]}. Give this worker the same file or revision"
        )
    return data
