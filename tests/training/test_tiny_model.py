"""The built-in base model: small, readable by any tokenizer user, and unable to judge a solution before it is tuned."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedTokenizerBase

from mathverify_sweep.data.prompts import TEMPLATES, VERDICTS, render
from mathverify_sweep.data.rows import Row
from mathverify_sweep.data.synthetic import generate

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "mathverify_sweep" / "base_models" / "tiny"
ROWS = 1_000
NOT_THE_PRETRAINING_SEED = 20_001


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return generate(ROWS, NOT_THE_PRETRAINING_SEED)


def test_the_folder_is_small_and_whole() -> None:
    names = {path.name for path in FOLDER.iterdir()}
    assert names == {
        *("README.md", "config.json", "generation_config.json"),
        *("model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    }
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 8_000_000


def test_its_widths_fill_the_blocks_of_nf4() -> None:
    config = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["hidden_size"] % 64 == config["intermediate_size"] % 64 == 0


def test_a_verdict_is_one_token_more_than_its_prompt(tokenizer: PreTrainedTokenizerBase, rows: list[Row]) -> None:
    for row in rows[:100]:
        prompt = render(TEMPLATES["plain"], row)
        for verdict in VERDICTS:
            *before, last = tokenizer(prompt + verdict).input_ids
            assert before == tokenizer(prompt).input_ids
            assert tokenizer.decode([last]) == verdict


def test_prompts_are_short(tokenizer: PreTrainedTokenizerBase, rows: list[Row]) -> None:
    lengths = [len(tokenizer(render(TEMPLATES["plain"], row)).input_ids) for row in rows]
    assert sum(lengths) / len(lengths) < 50
    assert max(lengths) < 90


def test_numbers_up_to_200_are_one_token_each(tokenizer: PreTrainedTokenizerBase) -> None:
    assert all(len(tokenizer(f" {number}", add_special_tokens=False).input_ids) == 1 for number in range(201))


@pytest.mark.parametrize("text", ["Zoë's 1,234 naïve 🦊s\n\n\tran — 3 × 4 ≠ 13", "  two  spaces ", "x_1 = {'a': 2}"])
def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_the_tokenizer_has_its_special_tokens_and_a_small_vocabulary(tokenizer: PreTrainedTokenizerBase) -> None:
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id} - {None}) == 3
    assert tokenizer("", add_special_tokens=True).input_ids == [tokenizer.bos_token_id]
    assert len(tokenizer) <= 1_500


def test_quantised_and_untuned_it_knows_no_more_than_the_majority(
    tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = AutoModelForCausalLM.from_pretrained(FOLDER, quantization_config=nf4, dtype=torch.float32)
    ids = [tokenizer(render(TEMPLATES["plain"], row)).input_ids for row in rows]
    false, true = (tokenizer(verdict, add_special_tokens=False).input_ids[0] for verdict in VERDICTS)
    right = 0
    by_length = sorted(range(ROWS), key=lambda i: len(ids[i]))
    for start in range(0, ROWS, 50):
        chosen = by_length[start : start + 50]
        longest = len(ids[chosen[-1]])
        padded = torch.tensor([ids[i] + [tokenizer.pad_token_id] * (longest - len(ids[i])) for i in chosen])
        last = torch.tensor([len(ids[i]) - 1 for i in chosen])
        with torch.inference_mode():
            logits = model(input_ids=padded).logits[torch.arange(len(chosen)), last]
        says_true = logits[:, true] > logits[:, false]
        right += sum(bool(said) == rows[i].is_correct for said, i in zip(says_true, chosen, strict=True))
    assert right / ROWS <= 0.62


def test_what_it_read_before_holds_no_verdict_on_a_solution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))
    import pretraining_text

    for text in itertools.islice(pretraining_text.documents(seed=1), 3_000):
        assert not re.search(r"Question|Solution|Answer|Verdict", text), text
        if re.search(r"True|False", text):
            before, after = text.split(" : ")
            assert before == after, text  # words that are copied
        if "?" in text and "{" in text:
            _, judged = text.split("{")  # a story is judged in one sum only
            assert len(re.findall("=|makes", judged)) == 1, text
