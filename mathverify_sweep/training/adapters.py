"""LoRA adapters: on the base model for the length of a run, off it without a trace, to disk and back.

Refuses target modules that the base does not have, and a start adapter of another shape than the run's.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, set_seed

from mathverify_sweep.errors import ModelError
from mathverify_sweep.specs import BaseModelSpec, RunSpec, TrainParams
from mathverify_sweep.training.base import BaseModel

log = logging.getLogger(__name__)

ROOM_SECONDS = 10.0
"""How often a full disk is tried again."""

_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
_FORMAT = {"format": "pt"}


@contextmanager
def attached(base: BaseModel, spec: RunSpec, start: Path | None) -> Iterator[PeftModel]:
    """The base under a fresh adapter drawn from the spec's seed, or under the one in folder `start`."""
    config = _lora_config(base, spec.base_model, spec.params)
    with _left_as_found(base.model):
        set_seed(spec.seed)
        with without_deprecations():
            model = get_peft_model(base.model, config)
        try:
            if start is not None:
                _load(model, config, start)
            _cast(model, spec.base_model)
            yield model
        finally:
            model.unload()


@contextmanager
def without_deprecations() -> Iterator[None]:
    """PEFT asks a base model by a name that transformers 5.23 calls deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


@contextmanager
def kept_in_their_dtype(model: PeftModel) -> Iterator[None]:
    """Undoes what happens to the adapter inside: TRL rounds it to bfloat16 when the base is quantised."""
    before = {parameter: parameter.data for parameter in model.parameters() if parameter.requires_grad}
    yield
    for parameter, data in before.items():
        parameter.data = data


def values(base: BaseModel, spec: RunSpec, start: Path | None) -> dict[str, Tensor]:
    """The numbers of an adapter that `attached` would put on the base, by PEFT's names, on the host."""
    with attached(base, spec, start) as model:
        found = get_peft_model_state_dict(model, save_embedding_layers=False)
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in found.items()}


def save(model: PeftModel, folder: Path) -> None:
    """As PEFT's safetensors, whole or not at all."""
    # Without `save_embedding_layers` PEFT asks the hub whether the base's vocabulary was changed.
    _whole(folder, lambda partial: model.save_pretrained(str(partial), save_embedding_layers=False))


def save_values(base: BaseModel, spec: RunSpec, numbers: Mapping[str, Tensor], folder: Path) -> None:
    """The files that `save` writes and that are read again, of an adapter that is on no model."""

    def fill(partial: Path) -> None:
        config = _lora_config(base, spec.base_model, spec.params)
        config.base_model_name_or_path, config.inference_mode = base.model.name_or_path, True
        config.save_pretrained(str(partial))
        save_file({name: tensor.contiguous() for name, tensor in numbers.items()}, partial / _WEIGHTS, _FORMAT)

    _whole(folder, fill)


def keep(save_it: Callable[[], None], folder: Path, sleep: Callable[[float], None] = time.sleep) -> None:
    """Save the adapter that a run was for; while the disk is full, wait for room: the run is not worth losing."""
    while True:
        try:
            save_it()
        except (OSError, SafetensorError) as error:
            if not _is_full(error):
                raise
            log.warning("no room for the adapter in %s; trying again every %g s: %s", folder, ROOM_SECONDS, error)
            sleep(ROOM_SECONDS)
        else:
            return


def digest(folder: Path) -> str:
    """SHA-256 of a saved adapter's weights: which adapter it is, wherever it lies. Raises ModelError without one."""
    try:
        with (folder / _WEIGHTS).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"a start adapter needs {_CONFIG} and {_WEIGHTS} in {folder}: {error}") from error


def _whole(folder: Path, fill: Callable[[Path], None]) -> None:
    """A folder under its name only when all of it is there."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    fill(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _is_full(error: Exception) -> bool:
    """Of a disk, or of what its user may take of it; safetensors has words for it only."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(os.strerror(code) in str(error) for code in (errno.ENOSPC, errno.EDQUOT))


def _lora_config(base: BaseModel, spec: BaseModelSpec, params: TrainParams) -> LoraConfig:
    _require_targets(base.model, spec.lora_target_modules)
    return LoraConfig(
        r=params.lora_r,
        lora_alpha=params.alpha,  # type: ignore[arg-type]  # PEFT divides by it; a fraction is fine
        lora_dropout=params.lora_dropout,
        use_rslora=params.use_rslora,
        target_modules=list(spec.lora_target_modules),
        bias="none",
        task_type="CAUSAL_LM",
    )


def _require_targets(model: PreTrainedModel, targets: tuple[str, ...]) -> None:
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    layers = {name.rpartition(".")[2]: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    linear = sorted(name for name, layer in layers.items() if layer is not head)
    unknown = [target for target in targets if target not in linear]
    if unknown or not targets:
        raise ModelError(
            "base_model.lora_target_modules must name linear layers of the base model, "
            f"got {', '.join(unknown) or 'none'}. It has {', '.join(linear)}"
        )


@contextmanager
def _left_as_found(model: PreTrainedModel) -> Iterator[None]:
    """Takes off what PEFT, TRL and the trainer leave on a base model that outlives the run.

    TRL wraps `forward`, checkpointing sets a flag on every layer and a hook on the embeddings, PEFT leaves its config.
    """
    forward = model.__dict__.get("forward")
    try:
        yield
    finally:
        model.__dict__.pop("forward", None)
        if forward is not None:
            model.__dict__["forward"] = forward
        model.__dict__.pop("peft_config", None)
        model.disable_input_require_grads()  # type: ignore[no-untyped-call]
        for module in model.modules():
            if hasattr(module, "gradient_checkpointing"):
                setattr(module, "gradient_checkpointing", False)  # noqa: B010  # a plain flag, not a submodule
        nn.Module.eval(model)


def _load(model: PeftModel, config: LoraConfig, folder: Path) -> None:
    try:
        saved = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        weights = load_file(folder / _WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"a start adapter needs {_CONFIG} and {_WEIGHTS} in {folder}: {error}") from error
    wanted = _shape(vars(config))
    found = _shape(saved)
    if found != wanted:
        raise ModelError(
            f"the adapter in {folder} must have the run's shape {wanted}, it has {found}. Start from another"
        )
    wanted_weights = {name: tensor.shape for name, tensor in get_peft_model_state_dict(model).items()}
    if {name: tensor.shape for name, tensor in weights.items()} != wanted_weights:
        raise ModelError(
            f"the adapter in {folder} must belong to this base model, its layers are others. Start from another"
        )
    set_peft_model_state_dict(model, weights)


def _shape(config: dict[str, Any]) -> dict[str, Any]:
    """What of an adapter's config decides what its weights mean."""
    plain = {key: config.get(key) for key in ("r", "lora_alpha", "use_rslora")}
    return {**plain, "target_modules": sorted(config.get("target_modules") or ())}


def _cast(model: PeftModel, spec: BaseModelSpec) -> None:
    dtype = torch.float32 if spec.adapter_dtype == "float32" else torch.bfloat16
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
