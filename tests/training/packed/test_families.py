"""Other families of models than Llama: wrapped, against plain PEFT with padding, masks and all logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from mathverify_sweep.data import dataset
from mathverify_sweep.specs import BaseModelSpec, RunSpec
from mathverify_sweep.states import EndReason
from mathverify_sweep.training import adapters, base
from mathverify_sweep.training.engine import PackedEngine
from mathverify_sweep.training.material import Library
from mathverify_sweep.training.packed import attention, model, plan
from mathverify_sweep.training.packed.model import PackedModel, unsupported
from mathverify_sweep.training.packed.stream import Share, cut
from mathverify_sweep.training.reference import ReferenceEngine
from tests.training.packed.company import adapter_of, largest_difference
from tests.training.tiny_fixture import Place, Recorder, trained

# PEFT's own call.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

CPU = torch.device("cpu")
SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
FAMILIES: dict[str, Any] = {
    "Llama, biased, rope of length": LlamaConfig(
        **SIZES,
        attention_bias=True,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "Qwen 2": Qwen2Config(**SIZES),
    "Qwen 3": Qwen3Config(**SIZES, head_dim=16),
    # A window shorter than the rows, a scale of its own, a cap on the logits: what the 1B has, and one thing more.
    "Gemma 3": Gemma3TextConfig(
        **SIZES,
        head_dim=16,
        sliding_window=12,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        query_pre_attn_scalar=8,
        final_logit_softcapping=2.0,
    ),
}


def write(config: Any, place: Place, folder: Path) -> Path:
    """A random model of the config, with the place's tokenizer."""
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(config)
    for name, parameter in made.named_parameters():
        if "norm" in name or "bias" in name:
            parameter.data.add_(0.1 * torch.randn_like(parameter))  # what starts as ones and zeros hides mistakes
    made.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_bytes((place.base / file).read_bytes())
    return folder


def random_adapter(spec: RunSpec, folder: Path) -> Path:
    """With weights in both halves."""
    loaded = base.load(spec.base_model, CPU)
    with adapters.attached(loaded, spec, None) as attached:
        adapters.save(attached, folder / "adapter")
    generator = torch.Generator().manual_seed(1)
    drawn = {name: 0.1 * torch.randn(w.shape, generator=generator) for name, w in adapter_of(folder).items()}
    save_file(drawn, folder / "adapter" / "adapter_model.safetensors")
    return folder / "adapter"


@pytest.mark.parametrize("prompt_weight", [0.0, 0.2], ids=["verdicts", "prompts too"])
@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES.keys())
def test_losses_and_gradients_are_those_of_plain_peft(
    place: Place, tmp_path: Path, config: Any, prompt_weight: float
) -> None:
    folder = write(config, place, tmp_path / "model")
    params = {"prompt_loss_weight": prompt_weight}
    spec = place.spec(params=params, base_model={"name": str(folder), "compute_dtype": "float32"})
    adapter = random_adapter(spec, tmp_path)
    loaded = base.load(spec.base_model, CPU)
    assert unsupported(loaded, spec.base_model) is None
    rows = cut(Library(CPU).material(spec).train.rows[:9], 10**9)[0]
    assert len(rows[-1].prompt_ids) < 30 < len(rows[0].prompt_ids)
    packed = PackedModel(loaded, plan.make(loaded, spec))
    weights = packed.weights(spec, adapter)
    (loss,) = packed.train([Share(weights, rows, prompt_weight, whole=2.0)])

    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    oracle = PeftModel.from_pretrained(plain, adapter, is_trainable=True)
    expected = torch.zeros(())
    for row in rows:
        log_probs = oracle(input_ids=torch.tensor([row.prompt_ids])).logits[0].log_softmax(-1)
        expected = expected - log_probs[-1, loaded.answers[row.is_correct]] / 2
        for position, token in enumerate(row.prompt_ids[1:]):
            expected = expected - prompt_weight * log_probs[position, token] / 2
    expected.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    gradients = {name.replace(".default", ""): p.grad for name, p in oracle.named_parameters() if p.requires_grad}
    ours = weights.named()
    weights.settle()
    weights.flat.copy_(weights.gradient)
    assert largest_difference(ours, gradients) < 1e-4 * max(g.abs().max().item() for g in gradients.values())


@pytest.mark.parametrize("quantization", ["nf4", "none"])
@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES.keys())
def test_peft_reads_what_the_engine_saved_as_the_engine_does(
    place: Place, tmp_path: Path, config: Any, quantization: str
) -> None:
    folder = write(config, place, tmp_path / "model")
    spec = place.spec(
        params={"learning_rate": 1e-2}, quantization=quantization, base_model={"name": str(folder)}, train_rows=24
    )
    result = trained(PackedEngine("cpu"), spec, tmp_path, Recorder())
    assert result.end_reason is EndReason.FINISHED
    loaded = base.load(spec.base_model, CPU)
    with_adapter = PeftModel.from_pretrained(loaded.model, tmp_path / "adapter")
    false_id, true_id = loaded.answers
    odds = []
    with torch.no_grad():
        for row in Library(CPU).material(spec).validation.rows:
            logits = with_adapter(input_ids=torch.tensor([row.prompt_ids])).logits[0, -1]
            odds.append((logits[true_id] - logits[false_id]).item())
    assert result.log_odds == pytest.approx(odds, abs=1e-5)
    assert len(dataset.load(spec.data).validation) == len(odds)


def test_the_text_half_of_a_gemma_that_sees_is_packed(place: Place, tmp_path: Path) -> None:
    text = {**SIZES, "head_dim": 16, "sliding_window": 12, "query_pre_attn_scalar": 8}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(text_config=text, vision_config={**vision, "image_size": 28, "patch_size": 14})
    spec = place.spec(base_model={"name": str(write(config, place, tmp_path / "model"))}, train_rows=24)
    ours, theirs = Recorder(), Recorder()
    result = trained(PackedEngine("cpu"), spec, tmp_path / "packed", ours)
    expected = trained(ReferenceEngine("cpu"), spec, tmp_path / "reference", theirs)
    assert ours.losses == pytest.approx(theirs.losses, abs=1e-5)
    assert result.log_odds == pytest.approx(expected.log_odds, abs=1e-4)


def test_logits_in_pieces_are_the_same_logits(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = place.spec(params={"prompt_loss_weight": 0.3}, train_rows=24)
    engine = PackedEngine("cpu")
    trained(engine, spec, tmp_path / "whole", Recorder())
    monkeypatch.setattr(model, "LOGITS_AT_ONCE", 320 * 7)
    trained(engine, spec, tmp_path / "pieces", Recorder())
    assert largest_difference(adapter_of(tmp_path / "whole"), adapter_of(tmp_path / "pieces")) < 1e-6


def test_scores_that_are_computed_again_are_the_same_scores(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = place.spec(quantization="nf4", train_rows=24)
    trained(PackedEngine("cpu"), spec, tmp_path / "kept", Recorder())
    monkeypatch.setattr(attention, "_SHORT", 4)
    trained(PackedEngine("cpu"), spec, tmp_path / "again", Recorder())
    assert largest_difference(adapter_of(tmp_path / "kept"), adapter_of(tmp_path / "again")) == 0


def test_checkpointing_moves_no_bit(place: Place, tmp_path: Path) -> None:
    spec = place.spec(params={"lora_dropout": 0.3}, quantization="nf4", train_rows=24)
    trained(PackedEngine("cpu"), spec, tmp_path / "kept", Recorder())
    twice = spec.model_copy(update={"gradient_checkpointing": True})
    trained(PackedEngine("cpu"), twice, tmp_path / "twice", Recorder())
    assert largest_difference(adapter_of(tmp_path / "kept"), adapter_of(tmp_path / "twice")) == 0


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "int8": (LlamaConfig(**SIZES), {"quantization": "int8"}, "int8 base"),
    "another architecture": (MistralConfig(**SIZES), {}, "architecture mistral is not one of llama, qwen2"),
    "a soft cap": (Gemma2Config(**SIZES, head_dim=16), {}, "architecture gemma2"),
    "dropout in attention": (LlamaConfig(**SIZES, attention_dropout=0.1), {}, "dropout in attention"),
    "no Llama at all": (GPT2Config(vocab_size=320, n_embd=32, n_layer=1, n_head=2), {}, "architecture gpt2"),
}


@pytest.mark.parametrize(("config", "changes", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_packed_is_named(
    place: Place, tmp_path: Path, config: Any, changes: dict[str, Any], reason: str
) -> None:
    folder = write(config, place, tmp_path)
    spec = BaseModelSpec(**{"name": str(folder), "quantization": "none", **changes})
    said = PackedEngine("cpu").unsupported(spec)
    assert said is not None
    assert reason in said
