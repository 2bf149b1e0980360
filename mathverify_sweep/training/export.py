"""A trained adapter as files that plain transformers and PEFT load: by itself, or merged into its base model.

An adapter of a quantised base has learnt to correct that base's rounding, so it is merged into the weights as they are
after quantisation, not into those that they were made from. Merging is done in float32, and rounded once.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from mathverify_sweep.data import prompts
from mathverify_sweep.data.encode import answer_ids, beginning
from mathverify_sweep.data.rows import Row
from mathverify_sweep.specs import BaseModelSpec, RunSpec
from mathverify_sweep.training import adapters, base, device
from mathverify_sweep.training.judge import read

Dtype = Literal["float32", "bfloat16"]


def adapter(spec: RunSpec, source: Path, folder: Path) -> dict[str, Any]:
    """The adapter and its tokenizer into a folder that is there; what else a reader must know (see `_facts`)."""
    for file in source.iterdir():
        if file.suffix in (".safetensors", ".json"):
            shutil.copyfile(file, folder / file.name)
    config = folder / "adapter_config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings |= {"base_model_name_or_path": base.resolve(spec.base_model), "revision": spec.base_model.revision}
    config.write_text(json.dumps(settings, indent=2), encoding="utf-8")
    tokenizer = base.load_tokenizer(spec.base_model)
    tokenizer.save_pretrained(folder)
    return _facts(spec, tokenizer)


def merged(spec: RunSpec, source: Path, folder: Path, dtype: Dtype, device_name: str) -> dict[str, Any]:
    """The model with the adapter in its weights, and its tokenizer, into a folder that is there; as `adapter`."""
    loaded = base.load(spec.base_model, device.find(device_name))
    facts = _facts(spec, loaded.tokenizer)
    plain: Any = loaded.model
    with adapters.without_deprecations():
        if spec.base_model.quantization != "none":
            plain = plain.dequantize()
        plain = plain.to(torch.float32)
        whole = PeftModel.from_pretrained(plain, str(source)).merge_and_unload()
    whole.to(getattr(torch, dtype)).save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return facts


def merged_log_odds(spec: RunSpec, folder: Path, dtype: Dtype, rows: Sequence[Row], device_name: str) -> list[float]:
    """What a merged model says of rows, loaded from its folder as anybody would."""
    plain = BaseModelSpec(name=str(folder.resolve()), quantization="none", compute_dtype=dtype)
    loaded = base.load(plain, device.find(device_name))
    return read(loaded, loaded.model, spec, rows)


def _facts(spec: RunSpec, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What decides a verdict beside the weights, as JSON."""
    false_id, true_id = answer_ids(tokenizer)
    return {
        "base_model": base.resolve(spec.base_model),
        "revision": spec.base_model.revision,
        "quantization": spec.base_model.quantization,
        "bnb_4bit_use_double_quant": spec.base_model.bnb_4bit_use_double_quant,
        "prompt_template": prompts.find(spec.params.prompt_template, spec.prompt_texts),
        "begin_ids": list(beginning(tokenizer)),
        "soft_cap": base.soft_cap(spec.base_model),
        "true_id": true_id,
        "false_id": false_id,
        "max_length": spec.max_length,
    }
