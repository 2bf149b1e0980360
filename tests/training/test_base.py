"""Loading a base model, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from safetensors.torch import load_file

from mathverify_sweep.errors import ModelError
from mathverify_sweep.specs import BaseModelSpec
from mathverify_sweep.training import base
from mathverify_sweep.training.reference import ReferenceEngine
from tests.training.tiny_fixture import Place, Recorder, crash, trained, write_model, write_tokenizer

CPU = torch.device("cpu")


def layer_types(loaded: base.BaseModel) -> set[type]:
    return {type(m) for name, m in loaded.model.named_modules() if name.endswith("_proj")}


def test_nf4_quantises_every_linear_layer_but_the_head(place: Place) -> None:
    loaded = base.load(BaseModelSpec(name=str(place.base), quantization="nf4"), CPU)
    assert layer_types(loaded) == {Linear4bit}
    state = loaded.model.model.layers[0].self_attn.q_proj.weight.quant_state
    assert (state.quant_type, state.nested) == ("nf4", True)
    assert type(loaded.model.get_output_embeddings()) is torch.nn.Linear
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_double_quantisation_can_be_switched_off(place: Place) -> None:
    spec = BaseModelSpec(name=str(place.base), quantization="nf4", bnb_4bit_use_double_quant=False)
    assert base.load(spec, CPU).model.model.layers[0].self_attn.q_proj.weight.quant_state.nested is False


def test_int8_and_none_are_what_they_say(place: Place) -> None:
    assert layer_types(base.load(BaseModelSpec(name=str(place.base), quantization="int8"), CPU)) == {Linear8bitLt}
    assert layer_types(base.load(BaseModelSpec(name=str(place.base), quantization="none"), CPU)) == {torch.nn.Linear}


def test_a_cpu_computes_in_float32_unless_asked_otherwise(place: Place) -> None:
    assert base.load(BaseModelSpec(name=str(place.base)), CPU).compute_dtype is torch.float32
    asked = base.load(BaseModelSpec(name=str(place.base), compute_dtype="bfloat16"), CPU)
    assert asked.compute_dtype is torch.bfloat16


@pytest.mark.parametrize("name", ["/no/such/folder", "./nowhere", "nowhere/at/all"])
def test_a_folder_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(ModelError, match="there is no folder"):
        base.load(BaseModelSpec(name=name), CPU)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"must have a tokenizer \(tokenizer.json\)"):
        base.load(BaseModelSpec(name=str(tmp_path)), CPU)


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path)
    with pytest.raises(ModelError, match=r"must have a tokenizer \(tokenizer.json\)"):
        base.load(BaseModelSpec(name=str(tmp_path)), CPU)


def test_a_tokenizer_without_a_model_is_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, ["Verdict: True", "Verdict: False"] * 9)
    with pytest.raises(ModelError, match="must be a causal language model"):
        base.load(BaseModelSpec(name=str(tmp_path)), CPU)


def test_pickled_weights_are_never_read(place: Place, tmp_path: Path) -> None:
    shutil.copytree(place.base, tmp_path, dirs_exist_ok=True)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="safetensors"):
        base.load(BaseModelSpec(name=str(tmp_path)), CPU)


def test_a_models_own_code_is_never_run(place: Place, tmp_path: Path) -> None:
    shutil.copytree(place.base, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {
        "model_type": "homemade",
        "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text("raise SystemExit('this must not run')")
    with pytest.raises(ModelError, match="wants to run Python code"):
        base.load(BaseModelSpec(name=str(tmp_path)), CPU)


def test_verdicts_of_several_tokens_are_refused(tmp_path: Path) -> None:
    write_model(tmp_path)
    write_tokenizer(tmp_path, ["none of the two words"])
    with pytest.raises(ModelError, match="one token"):
        base.load(BaseModelSpec(name=str(tmp_path)), CPU)


def test_unknown_target_modules_are_named_with_those_there_are(place: Place, tmp_path: Path) -> None:
    spec = place.spec(base_model={"lora_target_modules": ("q_proj", "query_key_value")})
    message = crash(trained(ReferenceEngine("cpu"), spec, tmp_path, Recorder()))
    assert "got query_key_value. It has down_proj, gate_proj, k_proj" in message


def test_the_head_gets_no_adapter(place: Place, tmp_path: Path) -> None:
    spec = place.spec(base_model={"lora_target_modules": ("lm_head",)})
    assert "got lm_head" in crash(trained(ReferenceEngine("cpu"), spec, tmp_path, Recorder()))


def test_rows_longer_than_the_model_are_refused(place: Place, tmp_path: Path) -> None:
    result = trained(ReferenceEngine("cpu"), place.spec(max_length=16), tmp_path, Recorder())
    assert "max_length must leave rows" in crash(result)
