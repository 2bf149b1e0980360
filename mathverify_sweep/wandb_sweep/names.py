"""The names that W&B sweeps use for what we have, and how names are compared."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from mathverify_sweep.specs import TrainParams

METHODS = {"random": "random", "grid": "grid", "bayes": "tpe"}
"""W&B's methods as samplers."""

READ_SPLITS = ("validation_", "valid_", "val_", "eval_", "dev_", "test_")

OBJECTIVES = {
    **dict.fromkeys(("accuracy", "acc"), "validation_accuracy"),
    **dict.fromkeys(("loss", "log_loss", "logloss", "nll", "cross_entropy"), "validation_log_loss"),
    **dict.fromkeys(("auc", "roc_auc", "auroc"), "validation_auc"),
    **dict.fromkeys(("pass_1", "pass_at_1"), "pass_at_1"),
}
"""Names of metrics, without their split."""

ALIASES = {
    **{axis: axis for axis in TrainParams.model_fields},
    **dict.fromkeys(("lr", "peak_lr", "max_lr"), "learning_rate"),
    **dict.fromkeys(("r", "rank", "lora_rank"), "lora_r"),
    **dict.fromkeys(("alpha",), "lora_alpha"),
    **dict.fromkeys(("alpha_ratio",), "lora_alpha_ratio"),
    **dict.fromkeys(("dropout",), "lora_dropout"),
    **dict.fromkeys(("rslora",), "use_rslora"),
    **dict.fromkeys(("scheduler", "lr_scheduler", "lr_schedule", "schedule"), "lr_scheduler_type"),
    **dict.fromkeys(("num_cycles",), "lr_num_cycles"),
    **dict.fromkeys(("warmup", "warmup_ratio"), "warmup_steps"),
    **dict.fromkeys(("wd",), "weight_decay"),
    **dict.fromkeys(("gradient_clipping", "gradient_clip_val", "grad_clip", "clip_norm", "grad_norm"), "max_grad_norm"),
    **dict.fromkeys(("optimizer", "optimiser"), "optim"),
    **dict.fromkeys(("prompt", "template"), "prompt_template"),
    **dict.fromkeys(("prompt_weight",), "prompt_loss_weight"),
    **dict.fromkeys(("total_batch_size", "global_batch_size"), "effective_batch_size"),
}
"""Usual names of our axes."""

MICRO_BATCH = (
    "batch_size",
    "per_device_train_batch_size",
    "train_batch_size",
    "per_device_batch_size",
    "micro_batch_size",
)
ACCUMULATION = ("gradient_accumulation_steps", "gradient_accumulation", "grad_accum", "accumulation_steps")

SETTINGS = {
    **dict.fromkeys(("model", "model_name", "base_model", "model_name_or_path", "model_id"), "base_model.name"),
    **dict.fromkeys(("max_length", "max_seq_length", "max_seq_len"), "training.max_length"),
    **dict.fromkeys(("train_rows", "train_size", "num_train_samples", "max_train_samples"), "data.train_rows"),
    "seed": "training.seed",
    "gradient_checkpointing": "training.gradient_checkpointing",
    "quantization": "base_model.quantization",
}
"""What is one value for all runs of a study here."""

VALUES: Mapping[str, Mapping[Any, str]] = {
    "lr_scheduler_type": {"constant": "constant_with_warmup", "wsd": "warmup_stable_decay"},
    "optim": {
        **dict.fromkeys(("adam", "adamw", "adamw_hf", "adamw_torch_fused"), "adamw_torch"),
        **dict.fromkeys(("adamw_bnb_8bit", "adam_8bit"), "adamw_8bit"),
        "paged_adamw": "paged_adamw_32bit",
        "lion": "lion_8bit",
    },
}
"""Usual names of values, by axis."""


def spelled(name: object) -> str:
    """A name in lower case with underscores."""
    return re.sub(r"[^a-z0-9]+", "_", str(name).lower()).strip("_")


def nearest(name: str, known: Iterable[str]) -> str:
    """`Did you mean ...?` for a misspelt name, or the list of known ones."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"Did you mean {close[0]}?" if close else f"Known: {', '.join(sorted(set(known)))}."
