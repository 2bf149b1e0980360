"""Rows as token ids: the prompt, and room for the verdict's one token.

A long solution is cut in its middle; nothing else is ever cut. Takes any fast tokenizer of `transformers`, and refuses
one whose verdicts are not one token each.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from mathverify_sweep.data.prompts import VERDICTS, render
from mathverify_sweep.data.rows import Row
from mathverify_sweep.data.solving import written
from mathverify_sweep.errors import ModelError

CUT = " … "
"""Stands where the middle of a long solution was."""

BATCH = 1000
"""Rows tokenised at once: enough for the tokenizer's threads, few enough that their copies take tens of megabytes."""


class Tokenizer(Protocol):
    """What is used of a `PreTrainedTokenizerFast`."""

    @property
    def is_fast(self) -> bool: ...

    def __len__(self) -> int: ...

    def __call__(self, text: list[str], **options: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """The tokens before the verdict, the verdict, and which of the given rows this is.

    A row that is to be written on instead of judged has `prompt_ids` up to the last token but one of its text, and that
    last token as `end`; the last `learnt` of the tokens that follow another one are what it learns.
    """

    prompt_ids: tuple[int, ...]
    is_correct: bool
    index: int
    learnt: int = 1
    end: int | None = None

    def last(self, answers: tuple[int, int]) -> int:
        """The token behind the others: the end, or else the verdict, by the tokens of False and True."""
        return answers[self.is_correct] if self.end is None else self.end


@dataclass(frozen=True)
class Encoded:
    """Rows in the given order, and how many were left out because they do not fit even when cut."""

    rows: tuple[EncodedRow, ...]
    left_out: int


def answer_ids(tokenizer: Tokenizer) -> tuple[int, int]:
    """The tokens of the verdicts after a prompt, False first; ModelError when a verdict is not one token of its own."""
    false_id, true_id = _verdict_ids(tokenizer, "Verdict:")
    return false_id, true_id


def beginning(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The special tokens that the tokenizer puts before a text."""
    (bare,) = _tokens(tokenizer, ["Question"])
    (whole,) = tokenizer(["Question"], add_special_tokens=True, verbose=False)["input_ids"]
    at = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return tuple(whole[:at])


def encode(rows: Sequence[Row], template_text: str, tokenizer: Tokenizer, max_length: int) -> Encoded:
    """Every row's prompt in at most `max_length - 1` tokens; it begins as the tokenizer begins a text (BOS or not)."""
    if not tokenizer.is_fast:
        raise ModelError("the tokenizer must be a fast one (a tokenizer.json beside the model), got a slow one")
    if _verdict_ids(tokenizer, template_text) != answer_ids(tokenizer):
        raise ModelError(
            f"a verdict must be the same token after every prompt, after {template_text[-20:]!r} it is not"
        )
    ids = _Ids(tokenizer)
    encoded: list[EncodedRow] = []
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        for index, prompt in enumerate(ids.of([render(template_text, row) for row in batch]), start=start):
            kept = prompt if len(prompt) < max_length else _cut(rows[index], template_text, ids, max_length - 1)
            if kept is not None:
                encoded.append(EncodedRow(kept, rows[index].is_correct, index))
    return Encoded(tuple(encoded), len(rows) - len(encoded))


def encode_solving(
    rows: Sequence[Row], template_text: str, tokenizer: Tokenizer, max_length: int, end: int | None
) -> Encoded:
    """Every row's prompt, and with `end` its solution behind it, to be learnt and to end in that token.

    Nothing is cut: what is longer than `max_length` tokens is left out.
    """
    ids = _Ids(tokenizer)
    encoded: list[EncodedRow] = []
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        prompts = ids.of([template_text.format(question=row.question) for row in batch])
        solutions = _tokens(tokenizer, [written(row) for row in batch])
        for index, (prompt, solution) in enumerate(zip(prompts, solutions, strict=True), start=start):
            whole = prompt if end is None else (*prompt, *solution)
            if len(whole) < max_length:
                learnt = 1 if end is None else len(solution) + 1
                encoded.append(EncodedRow(whole, True, index, learnt, end))
    return Encoded(tuple(encoded), len(rows) - len(encoded))


def digest(rows: Sequence[EncodedRow]) -> str:
    """SHA-256 of rows in their order: the tokens and the verdict or end of each, and how many tokens it has."""
    found = hashlib.sha256()
    for row in rows:
        written = () if row.end is None else (row.learnt, row.end)
        found.update(array("q", (len(row.prompt_ids), row.is_correct, *row.prompt_ids, *written)).tobytes())
    return found.hexdigest()


class _Ids:
    """Texts to ids that begin as the tokenizer begins a text, but do not end as it ends one: the verdict comes next."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.begin = beginning(tokenizer)
        # One int object per token of the vocabulary instead of one per token of the data: a quarter of the memory.
        self.shared = list(range(len(tokenizer)))

    def of(self, texts: list[str]) -> Iterator[tuple[int, ...]]:
        for ids in _tokens(self.tokenizer, texts):
            begins = self.begin if tuple(ids[: len(self.begin)]) != self.begin else ()
            yield (*begins, *map(self.shared.__getitem__, ids))

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Of each token of a text its first and its last character."""
        options = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
        spans: list[tuple[int, int]] = self.tokenizer([text], **options)["offset_mapping"][0]
        return spans


def _cut(row: Row, template_text: str, ids: _Ids, limit: int) -> tuple[int, ...] | None:
    """The prompt with as much of both ends of the solution as fits `limit` tokens; None when not even the marker does.

    Tokens at the two edges may merge with their new neighbours, so the result is counted and shortened until it fits.
    """
    spans = ids.spans(row.solution)
    (bare,) = ids.of([render(template_text, replace(row, solution=CUT))])
    room = limit - len(bare)
    while room > 0:
        head, tail = spans[: (room + 1) // 2], spans[len(spans) - room // 2 :]
        kept = row.solution[: head[-1][1]] + CUT + (row.solution[tail[0][0] :] if tail else "")
        (prompt,) = ids.of([render(template_text, replace(row, solution=kept))])
        if len(prompt) <= limit:
            return prompt
        room -= len(prompt) - limit
    return bare if len(bare) <= limit else None


def _verdict_ids(tokenizer: Tokenizer, prompt: str) -> tuple[int, int]:
    bare, *with_verdict = _tokens(tokenizer, [prompt, *(prompt + verdict for verdict in VERDICTS)])
    for verdict, ids in zip(VERDICTS, with_verdict, strict=True):
        if ids[:-1] != bare:
            raise ModelError(
                f"the tokenizer must read {verdict!r} after {prompt[-20:]!r} as one token of its own, "
                f"got {len(ids) - len(bare)} more tokens. Another base model, or another end of the prompt, is needed"
            )
    false_id, true_id = (ids[-1] for ids in with_verdict)
    if false_id == true_id:
        raise ModelError(f"the tokenizer must tell {VERDICTS[0]!r} from {VERDICTS[1]!r}, got token {true_id} for both")
    return false_id, true_id


def _tokens(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    options = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
    ids: list[list[int]] = tokenizer(texts, **options)["input_ids"]
    return ids
