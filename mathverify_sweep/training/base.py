"""The frozen base model and its tokenizer: resolve, load, quantise.

Weights come from safetensors only, and no code of a model's author is run unless the sweep file says so. Refuses, with
what to do, a model that is not there, has no tokenizer, or has no verdict token.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from mathverify_sweep.data.encode import answer_ids
from mathverify_sweep.errors import ModelError
from mathverify_sweep.specs import BaseModelSpec, RunSpec

BUILTIN_TINY = "builtin:tiny"
_TINY_FOLDER = Path(__file__).resolve().parents[1] / "base_models" / "tiny"

MOST_TOKENS = 16_384
"""Padded tokens of one micro-batch on a GPU at most: from here on a larger one is hardly faster."""

CPU_EVALUATION_TOKENS = 4_096
"""Padded tokens of one evaluation batch on a CPU: larger ones fall out of its caches."""


@dataclass(frozen=True)
class BaseModel:
    """A loaded base: frozen, in evaluation mode, without an adapter."""

    spec: BaseModelSpec
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    answers: tuple[int, int]
    device: torch.device
    compute_dtype: torch.dtype

    def autocast(self) -> AbstractContextManager[Any]:
        """Where forward passes run: the adapters' own matmuls in the compute dtype, whatever dtype they are kept in."""
        lowered = self.compute_dtype is torch.bfloat16
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=lowered)


def load(spec: BaseModelSpec, device: torch.device) -> BaseModel:
    """The base model on the device, quantised as the spec says."""
    compute_dtype = _compute_dtype(spec, device)
    # float32 is meant exactly where it is asked for; beside bfloat16 what is left in float32 may be rounded alike.
    torch.set_float32_matmul_precision("highest" if compute_dtype is torch.float32 else "high")
    where = resolve(spec)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    tokenizer = load_tokenizer(spec)
    model = _load_model(spec, where, device, compute_dtype)
    model.requires_grad_(False)
    nn.Module.eval(model)
    _keep_plain_4bit_kernels(model)
    _agree_on_special_tokens(model, tokenizer)
    return BaseModel(spec, model, tokenizer, answer_ids(tokenizer), device, compute_dtype)


def resolve(spec: BaseModelSpec) -> str:
    """A folder of this machine, or the hub name as it is. Raises ModelError for a folder that is not there."""
    if spec.name == BUILTIN_TINY:
        return str(_TINY_FOLDER)
    folder = Path(spec.name).expanduser()
    looks_local = spec.name.startswith(("/", "./", "../", "~")) or spec.name.count("/") > 1
    if looks_local and not folder.is_dir():
        raise ModelError(f"base_model.name: there is no folder {spec.name!r} on this machine. Correct the path")
    return str(folder) if folder.is_dir() else spec.name


def soft_cap(spec: BaseModelSpec) -> float | None:
    """What the base model's logits are squashed to, c in c * tanh(logit / c); None where they are left as they are."""
    config = AutoConfig.from_pretrained(resolve(spec), **_trusted(spec)).get_text_config()
    cap: float | None = getattr(config, "final_logit_softcapping", None)
    return cap


def load_tokenizer(spec: BaseModelSpec) -> PreTrainedTokenizerBase:
    """The base model's tokenizer, with a token to pad with. Raises ModelError."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(resolve(spec), **_trusted(spec))
    # transformers and tokenizers raise all of these for a folder or a hub name without a readable tokenizer
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"base_model.name: {spec.name!r} must have a tokenizer (tokenizer.json): {_why(error)}"
        ) from error
    if tokenizer.pad_token_id is None:
        # Padding stands behind a row's last token and is never attended to, so any token does.
        tokenizer.pad_token_id = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else 0
    return tokenizer


def micro_batch_tokens(base: BaseModel, spec: RunSpec) -> int:
    """Padded tokens of one training micro-batch: what the spec says, else what this device has memory for.

    A CPU takes the whole effective batch at once: it has the memory, and fewer, larger matmuls are faster.
    """
    if spec.micro_batch_tokens is not None:
        return spec.micro_batch_tokens
    if base.device.type == "cpu":
        return spec.params.effective_batch_size * spec.max_length
    free, _total = torch.cuda.mem_get_info(base.device)
    reserved_unused = torch.cuda.memory_reserved(base.device) - torch.cuda.memory_allocated(base.device)
    fitting = int(0.8 * (free + reserved_unused) / bytes_per_token(base, checkpointing=spec.gradient_checkpointing))
    return max(spec.max_length, min(MOST_TOKENS, fitting))


def evaluation_tokens(base: BaseModel, training_tokens: int) -> int:
    """Padded tokens of one evaluation batch; never more than fit in training, which keeps more per token."""
    return min(CPU_EVALUATION_TOKENS, training_tokens) if base.device.type == "cpu" else training_tokens


def bytes_per_token(base: BaseModel, *, checkpointing: bool) -> float:
    """Memory that training holds per token: 16 hidden and 3 feed-forward activations of a layer.

    Fitted on Llama-3.1-8B shapes with adapters on all linear layers in bfloat16: 6.5 MB measured, 6.9 by this rule.
    """
    config = base.model.config.get_text_config()
    size = base.compute_dtype.itemsize
    layer = (16 * config.hidden_size + 3 * getattr(config, "intermediate_size", 4 * config.hidden_size)) * size
    layers = config.num_hidden_layers
    held = layer + layers * config.hidden_size * size if checkpointing else layers * layer
    return float(held)


def _compute_dtype(spec: BaseModelSpec, device: torch.device) -> torch.dtype:
    if spec.compute_dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return torch.float32 if spec.compute_dtype == "float32" else torch.bfloat16


def _load_model(spec: BaseModelSpec, where: str, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    try:
        config = AutoConfig.from_pretrained(where, **_trusted(spec))
        # PyTorch's attention has no soft cap on its scores (Gemma 2 has one) and would leave it out without a word.
        capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            where,
            config=config,
            dtype=dtype,
            quantization_config=_quantization(spec, dtype),
            device_map={"": "cpu" if device.type == "cpu" else device.index or 0},
            attn_implementation="eager" if capped else "sdpa",
            use_safetensors=True,
            **_trusted(spec),
        )
    # what transformers raises for missing files, an unknown architecture, no safetensors, or broken ones
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelError(
            f"base_model.name: {spec.name!r} must be a causal language model with safetensors weights, "
            f"on the hub or in a local folder: {_why(error)}"
        ) from error
    return model


def _trusted(spec: BaseModelSpec) -> dict[str, Any]:
    """Which revision, and whether code of its author's may run: left unsaid, transformers asks on the terminal."""
    return {"revision": spec.revision or "main", "trust_remote_code": spec.trust_remote_code}


def _why(error: Exception) -> str:
    """What transformers says, in one line; of a model that wants to run code, what to do."""
    if "trust_remote_code" not in str(error):
        return _first_line(error)
    return (
        "it wants to run Python code that comes with it. Read that code, set base_model.revision to the commit that "
        "you have read, and base_model.trust_remote_code to true; or use a model that needs none"
    )


def _quantization(spec: BaseModelSpec, compute_dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if spec.quantization == "none":
        return None
    if spec.quantization == "int8":
        # It says of every matmul that int8 rounds its input by way of float16.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=spec.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def _keep_plain_4bit_kernels(model: PreTrainedModel) -> None:
    """On CPUs with AVX-512, bitsandbytes repacks a layer at its first evaluation and computes in bfloat16 from then on.

    A base model that changes between two looks is not frozen.
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _agree_on_special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """The trainer aligns these with the tokenizer and warns about each difference, in every run anew."""
    for config in (model.config.get_text_config(), model.generation_config):
        for name in ("eos_token_id", "bos_token_id", "pad_token_id"):
            if config is not None and getattr(tokenizer, name) is not None:
                setattr(config, name, getattr(tokenizer, name))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
