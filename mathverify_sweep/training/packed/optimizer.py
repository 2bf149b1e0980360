"""One run's optimizer and learning-rate schedule: the classes and arguments that the trainer of `transformers` builds.

A test holds both against the trainer itself.
"""

from __future__ import annotations

import math
import warnings
from functools import partial
from typing import Any

import torch
from bitsandbytes.optim.adamw import AdamW as BlockwiseAdamW
from bitsandbytes.optim.lion import Lion
from torch import Tensor, nn
from torch.optim import Optimizer as TorchOptimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers.optimization import get_scheduler

from mathverify_sweep.specs import TrainParams
from mathverify_sweep.training.packed.weights import Weights

_BETAS, _EPSILON = (0.9, 0.999), 1e-8


class Optimizer:
    """Steps one run's weights along its gradient, at the learning rate that its schedule says."""

    def __init__(self, weights: Weights, params: TrainParams, steps: int) -> None:
        self._weights, self._clip = weights, params.max_grad_norm
        # AdamW in PyTorch treats numbers one by one, so it takes them as one tensor. The others scale them by blocks of
        # a matrix, and keep those of small matrices in 32 bits.
        whole = params.optim == "adamw_torch"
        values = [weights.flat] if whole else weights.matrices(weights.flat)
        self._gradients = [weights.gradient] if whole else weights.matrices(weights.gradient)
        self._parameters = [nn.Parameter(value) for value in values]
        with warnings.catch_warnings():
            # bitsandbytes: without a GPU there is nothing to page from.
            warnings.filterwarnings("ignore", "Paged optimizers are not supported on CPU", UserWarning)
            self._optimizer = _build(self._parameters, params)
        self._schedule = _schedule(self._optimizer, params, steps)

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return float(self._schedule.get_last_lr()[0])

    def norm(self) -> Tensor:
        """Of the gradient of a whole effective batch, before clipping; to be asked for once, before `step`.

        On the device: reading it waits for all that the device has to do.
        """
        self._weights.settle()
        norm: Tensor = torch.linalg.vector_norm(self._weights.gradient)
        return norm

    def step(self, norm: float) -> None:
        """One step along the gradient, clipped, which is 0 afterwards. `norm` is that of `norm()`.

        Where it is no number nothing is stepped.
        """
        if math.isfinite(norm):
            if self._clip > 0:
                self._weights.gradient.mul_(min(1.0, self._clip / (norm + 1e-6)))
            for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
                parameter.grad = gradient.to(parameter.dtype)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Paged optimizers are not supported on CPU", UserWarning)
                self._optimizer.step()
            self._schedule.step()
            self._weights.refresh()
        self._weights.gradient.zero_()

    def state(self) -> dict[str, Any]:
        """All that `restore` wants; tensors and plain values only."""
        return {"optimizer": self._optimizer.state_dict(), "schedule": self._schedule.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on as the optimizer would that gave this state."""
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])


def _build(parameters: list[nn.Parameter], params: TrainParams) -> TorchOptimizer:
    common: dict[str, Any] = {"lr": params.learning_rate, "weight_decay": params.weight_decay, "betas": _BETAS}
    if params.optim == "adamw_torch":
        # Fused, a step is one trip through memory instead of a dozen.
        return torch.optim.AdamW(parameters, eps=_EPSILON, fused=parameters[0].is_cuda or None, **common)
    paged = params.optim.startswith("paged_")
    bits = 8 if params.optim.endswith("8bit") else 32
    kind: Any = Lion if params.optim == "lion_8bit" else partial(BlockwiseAdamW, eps=_EPSILON)
    blockwise: TorchOptimizer = kind(parameters, optim_bits=bits, is_paged=paged, **common)
    return blockwise


def _schedule(optimizer: TorchOptimizer, params: TrainParams, steps: int) -> LRScheduler:
    given = params.warmup_steps
    warmup = int(given) if given >= 1 else math.ceil(steps * given)
    more: dict[str, Any] = {}
    if params.lr_scheduler_type == "cosine_with_restarts":
        more = {"num_cycles": params.lr_num_cycles}
    if params.lr_scheduler_type == "warmup_stable_decay":
        before = given if given >= 1 else given * steps
        more = {"num_decay_steps": max(1, min(round(params.lr_decay_share * steps), steps - math.ceil(before)))}
    schedule: LRScheduler = get_scheduler(
        params.lr_scheduler_type, optimizer, warmup, steps, scheduler_specific_kwargs=more
    )
    return schedule
