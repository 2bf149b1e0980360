"""Rows become ids with room for the verdict; only the middle of a solution is ever cut."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from mathverify_sweep.data.encode import CUT, answer_ids, encode
from mathverify_sweep.data.prompts import TEMPLATES, VERDICTS, render
from mathverify_sweep.data.rows import Row
from mathverify_sweep.errors import ModelError

PLAIN = TEMPLATES["plain"]
TINY = Path(__file__).parents[2] / "mathverify_sweep" / "base_models" / "tiny"


@cache
def _tokenizer(special: str = "<s> $A") -> Any:
    """A byte-level BPE as GPT-2's and Llama 3's, learnt from our own prompts; `special` is where BOS and EOS go."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    texts = [render(text, _row(60)) + verdict for text in TEMPLATES.values() for verdict in VERDICTS]
    backend.train_from_iterator(texts * 3, trainer)
    ids = [(token, backend.token_to_id(token)) for token in ("<s>", "</s>")]
    backend.post_processor = processors.TemplateProcessing(single=special, special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def _row(steps: int, question: str = "How many? Ärger 😀") -> Row:
    return Row(question, "4711", " ".join(f"{n} + {n} = {2 * n}; é😀" for n in range(steps)), True)


def _texts(tokenizer: Any, encoded: Any) -> list[str]:
    return [tokenizer.decode(row.prompt_ids) for row in encoded.rows]


def test_the_verdicts_are_one_token_each() -> None:
    tokenizer = _tokenizer()
    assert [tokenizer.decode([token]) for token in answer_ids(tokenizer)] == list(VERDICTS)


def test_a_tokenizer_that_splits_a_verdict_is_refused() -> None:
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "Verdict": 1, "T": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    with pytest.raises(ModelError, match="must read ' False' after 'Verdict:' as one token"):
        answer_ids(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]"))


def test_a_tokenizer_that_does_not_know_the_verdicts_is_refused() -> None:
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "Verdict": 1, ":": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ModelError, match="must tell ' False' from ' True'"):
        answer_ids(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]"))


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_short_row_is_encoded_whole(name: str) -> None:
    tokenizer = _tokenizer()
    rows = [_row(3), _row(5)]
    encoded = encode(rows, TEMPLATES[name], tokenizer, 1000)
    assert encoded.left_out == 0
    assert [row.index for row in encoded.rows] == [0, 1]
    assert [tuple(tokenizer(render(TEMPLATES[name], row))["input_ids"]) for row in rows] == [
        row.prompt_ids for row in encoded.rows
    ]


@pytest.mark.parametrize(
    ("special", "begins"), [("<s> $A", True), ("<s> $A </s>", True), ("$A </s>", False), ("$A", False)]
)
def test_a_prompt_begins_as_the_tokenizer_begins_and_never_ends_the_text(special: str, begins: bool) -> None:
    tokenizer = _tokenizer(special)
    (row,) = encode([_row(2)], PLAIN, tokenizer, 1000).rows
    assert (row.prompt_ids[0] == tokenizer.bos_token_id) is begins
    assert row.prompt_ids.count(tokenizer.bos_token_id) == begins
    assert tokenizer.eos_token_id not in row.prompt_ids


def test_a_template_that_writes_its_own_bos_gets_no_second_one() -> None:
    tokenizer = _tokenizer()
    (row,) = encode([_row(2)], "<s>" + PLAIN, tokenizer, 1000).rows
    assert row.prompt_ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("spare", [3, 4, 5, 8, 20, 41, 99])
def test_a_long_solution_is_cut_in_its_middle_and_the_limit_is_used(name: str, spare: int) -> None:
    tokenizer, row = _tokenizer(), _row(200)
    bare = len(tokenizer(render(TEMPLATES[name], Row(row.question, row.answer, CUT, True)))["input_ids"])
    limit = bare + spare
    (encoded,) = encode([row], TEMPLATES[name], tokenizer, limit).rows
    text = tokenizer.decode(encoded.prompt_ids, skip_special_tokens=True)
    head, tail = TEMPLATES[name].format(question=row.question, answer=row.answer, solution="\0").split("\0")
    assert text.startswith(head)
    assert text.endswith(tail)
    first, last = text[len(head) : len(text) - len(tail)].split(CUT)
    assert row.solution.startswith(first)
    assert row.solution.endswith(last)
    assert limit - 6 <= len(encoded.prompt_ids) + 1 <= limit


def test_a_row_on_the_limit_is_not_cut_and_one_above_it_is() -> None:
    tokenizer, row = _tokenizer(), _row(10)
    whole = len(tokenizer(render(PLAIN, row))["input_ids"]) + 1  # the verdict
    assert CUT not in _texts(tokenizer, encode([row], PLAIN, tokenizer, whole))[0]
    assert CUT in _texts(tokenizer, encode([row], PLAIN, tokenizer, whole - 1))[0]


def test_a_row_whose_question_does_not_fit_is_left_out_and_counted() -> None:
    rows = [_row(2), _row(2, question="Who? " * 200), _row(1)]
    encoded = encode(rows, PLAIN, _tokenizer(), 150)
    assert encoded.left_out == 1
    assert [row.index for row in encoded.rows] == [0, 2]


def test_many_rows_keep_their_order_and_labels() -> None:
    rows = [Row(f"q{n}", str(n), "s" * (n % 400 + 1), n % 3 == 0) for n in range(2500)]
    tokenizer = _tokenizer()
    encoded = encode(rows, PLAIN, tokenizer, 120)
    assert [row.index for row in encoded.rows] == list(range(2500))
    assert [row.is_correct for row in encoded.rows] == [row.is_correct for row in rows]
    assert max(len(row.prompt_ids) for row in encoded.rows) < 120


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

        def __len__(self) -> int:
            return 1

        def __call__(self, text: list[str], **options: Any) -> Any:
            raise AssertionError(text, options)

    with pytest.raises(ModelError, match="must be a fast one"):
        encode([_row(1)], PLAIN, Slow(), 100)


@pytest.mark.skipif(not (TINY / "tokenizer.json").exists(), reason="the built-in model is not there")
def test_the_built_in_model_reads_verdicts_and_cuts() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TINY)
    assert len(set(answer_ids(tokenizer))) == 2
    for text in TEMPLATES.values():
        encoded = encode([_row(3), _row(300)], text, tokenizer, 600)
        assert encoded.left_out == 0
        assert max(len(row.prompt_ids) for row in encoded.rows) < 600
