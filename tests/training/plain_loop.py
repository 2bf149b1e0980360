"""QLoRA without TRL, PEFT or the trainer: what the reference engine is checked against, from the formulas alone.

One row at a time, without padding, with the logits of every position, in plain PyTorch. Shares no code with the engine.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from mathverify_sweep.data import dataset
from mathverify_sweep.specs import RunSpec, TrainParams

PREFIX = "base_model.model."


class Lora(nn.Module):
    """W x + scale * B (A x)."""

    def __init__(self, frozen: nn.Linear, a: Tensor, b: Tensor, scale: float) -> None:
        super().__init__()
        self.frozen, self.scale = frozen, scale
        self.a, self.b = nn.Parameter(a.clone()), nn.Parameter(b.clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(x) + self.scale * (x @ self.a.T @ self.b.T)


def train(spec: RunSpec, adapter: Path) -> tuple[list[float], dict[str, Tensor]]:
    """The loss of every step and the adapter at the end, under the names that PEFT gives its tensors."""
    torch.manual_seed(0)
    params = spec.params
    model = AutoModelForCausalLM.from_pretrained(spec.base_model.name, dtype=torch.float32).requires_grad_(False)
    layers = _add_lora(model, load_file(adapter / "adapter_model.safetensors"), params)
    rows = _rows(spec)
    trained = [p for layer in layers.values() for p in (layer.a, layer.b)]
    optimizer = torch.optim.AdamW(trained, lr=params.learning_rate, weight_decay=params.weight_decay)
    batches = [rows[i : i + params.effective_batch_size] for i in range(0, len(rows), params.effective_batch_size)]
    losses = []
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = params.learning_rate * _schedule(params, len(batches))(step)
        weighted, weights = zip(*(_weighted_loss(model, row, params.prompt_loss_weight) for row in batch), strict=True)
        loss = sum(weighted) / sum(weights)
        optimizer.zero_grad()
        loss.backward()
        if params.max_grad_norm > 0:
            norm = torch.sqrt(sum((p.grad**2).sum() for p in trained))
            for p in trained:
                p.grad *= min(1.0, params.max_grad_norm / (norm.item() + 1e-6))
        optimizer.step()
        losses.append(loss.item())
    a = {f"{PREFIX}{name}.lora_A.weight": layer.a.detach() for name, layer in layers.items()}
    return losses, a | {f"{PREFIX}{name}.lora_B.weight": layer.b.detach() for name, layer in layers.items()}


def _add_lora(model: nn.Module, weights: dict[str, Tensor], params: TrainParams) -> dict[str, Lora]:
    scale = params.alpha / (math.sqrt(params.lora_r) if params.use_rslora else params.lora_r)
    layers = {}
    for key in [key for key in weights if key.endswith("lora_A.weight")]:
        name = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        parent, _, child = name.rpartition(".")
        owner = model.get_submodule(parent)
        layers[name] = Lora(getattr(owner, child), weights[key], weights[key.replace("lora_A", "lora_B")], scale)
        setattr(owner, child, layers[name])
    return layers


def _rows(spec: RunSpec) -> list[tuple[list[int], int]]:
    """Prompt and verdict of the first rows of the training order, in this run's order."""
    tokenizer = AutoTokenizer.from_pretrained(spec.base_model.name)
    encoded = []
    for row in dataset.load(spec.data).train[: spec.train_rows]:
        prompt = f"Question: {row.question}\nSolution: {row.solution}\nAnswer: {row.answer}\nVerdict:"
        ids = tokenizer(prompt + (" True" if row.is_correct else " False")).input_ids
        encoded.append((ids[:-1], ids[-1]))
    random.Random(spec.seed).shuffle(encoded)
    return encoded


def _weighted_loss(model: nn.Module, row: tuple[list[int], int], prompt_weight: float) -> tuple[Tensor, float]:
    prompt, verdict = row
    log_probs = model(torch.tensor([prompt])).logits[0].log_softmax(-1)
    loss = -log_probs[-1, verdict]
    for position, token in enumerate(prompt[1:]):
        loss = loss - prompt_weight * log_probs[position, token]
    return loss, 1 + prompt_weight * (len(prompt) - 1)


def _schedule(params: TrainParams, steps: int) -> Callable[[int], float]:
    """The learning rate of a step (from 0 on) as a share of the peak."""
    share = params.warmup_steps < 1
    warmup = math.ceil(params.warmup_steps * steps) if share else int(params.warmup_steps)
    decay = max(1, round(params.lr_decay_share * steps))

    def after_warmup(step: int) -> float:
        done = (step - warmup) / max(1, steps - warmup)
        if params.lr_scheduler_type == "linear":
            return 1 - done
        if params.lr_scheduler_type == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        if params.lr_scheduler_type == "cosine_with_restarts":
            return 0.5 * (1 + math.cos(math.pi * ((done * params.lr_num_cycles) % 1)))
        if params.lr_scheduler_type == "warmup_stable_decay":
            decayed = (step - (steps - decay)) / decay
            return 1.0 if decayed < 0 else 0.5 * (1 + math.cos(math.pi * decayed))
        return 1.0

    return lambda step: step / warmup if step < warmup else after_warmup(step)
