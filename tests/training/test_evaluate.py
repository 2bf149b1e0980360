"""Log-odds in batches against one row at a time with all logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM

from mathverify_sweep.data import dataset, prompts
from mathverify_sweep.data.encode import Encoded, encode
from mathverify_sweep.specs import BaseModelSpec
from mathverify_sweep.training import base
from mathverify_sweep.training.evaluate import log_odds
from tests.training.tiny_fixture import Place

CPU = torch.device("cpu")


def one_at_a_time(loaded: base.BaseModel, encoded: Encoded) -> list[float]:
    false_id, true_id = loaded.answers
    plain = AutoModelForCausalLM.from_pretrained(loaded.spec.name, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        logits = [plain(torch.tensor([row.prompt_ids])).logits[0, -1].log_softmax(-1) for row in encoded.rows]
    return [(row[true_id] - row[false_id]).item() for row in logits]


def encoded_rows(place: Place, loaded: base.BaseModel) -> Encoded:
    rows = dataset.load(place.data).validation
    return encode(rows, prompts.TEMPLATES["plain"], loaded.tokenizer, 128)


@pytest.mark.parametrize("token_budget", [16, 200, 100_000])
def test_batches_read_what_single_rows_read(place: Place, token_budget: int) -> None:
    loaded = base.load(BaseModelSpec(name=str(place.base), quantization="none"), CPU)
    encoded = encoded_rows(place, loaded)
    read = log_odds(loaded, loaded.model, encoded.rows, len(encoded.rows), token_budget)
    assert read == pytest.approx(one_at_a_time(loaded, encoded), abs=1e-5)
    assert len(set(read)) > 30


def test_soft_caps_of_a_gemma_count(place: Place, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        query_pre_attn_scalar=1,
        attn_logit_softcapping=0.5,
        final_logit_softcapping=1.0,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((place.base / file).read_bytes())
    loaded = base.load(BaseModelSpec(name=str(tmp_path), quantization="none"), CPU)
    encoded = encoded_rows(place, loaded)
    read = log_odds(loaded, loaded.model, encoded.rows, len(encoded.rows), 200)
    assert read == pytest.approx(one_at_a_time(loaded, encoded), abs=1e-5)
    assert max(map(abs, read)) < 2


def test_rows_keep_their_places_and_missing_ones_have_no_opinion(place: Place) -> None:
    loaded = base.load(BaseModelSpec(name=str(place.base), quantization="none"), CPU)
    encoded = encoded_rows(place, loaded)
    whole = log_odds(loaded, loaded.model, encoded.rows, len(encoded.rows), 4096)
    some = log_odds(loaded, loaded.model, encoded.rows[3:6], 8, 4096)
    assert some == pytest.approx([0, 0, 0, *whole[3:6], 0, 0], abs=1e-6)


def test_bfloat16_rows_do_not_tie(place: Place) -> None:
    loaded = base.load(BaseModelSpec(name=str(place.base), quantization="none", compute_dtype="bfloat16"), CPU)
    encoded = encoded_rows(place, loaded)
    read = log_odds(loaded, loaded.model, encoded.rows, len(encoded.rows), 4096)
    assert read == pytest.approx(one_at_a_time(loaded, encoded), abs=0.2)
    assert len(set(read)) > 0.9 * len({row.prompt_ids for row in encoded.rows})
