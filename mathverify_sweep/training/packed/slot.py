"""One run in the packed engine, from its start adapter to its result. All that is its own is here: weights, optimizer,
clock, order of rows, course. What it shares with its neighbours is the base model and the time.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mathverify_sweep.data.encode import EncodedRow
from mathverify_sweep.paths import adapter_folder
from mathverify_sweep.specs import RunResult
from mathverify_sweep.training import adapters, device
from mathverify_sweep.training.batches import total_weight
from mathverify_sweep.training.checkpoints import Checkpoints
from mathverify_sweep.training.course import Course, Step
from mathverify_sweep.training.material import Material
from mathverify_sweep.training.order import Order
from mathverify_sweep.training.packed.judging import Reader, log_odds
from mathverify_sweep.training.packed.model import PackedModel
from mathverify_sweep.training.packed.optimizer import Optimizer
from mathverify_sweep.training.packed.plan import Budget
from mathverify_sweep.training.packed.stream import Share, cut
from mathverify_sweep.training.reporter import Reporter

log = logging.getLogger(__name__)

_WEIGHTS, _OPTIMIZER = "weights.safetensors", "optimizer.pt"


class Slot:
    """A run between its start and its end. The engine asks it for shares of its passes, one at a time."""

    def __init__(
        self, order: Order, material: Material, reporter: Reporter, model: PackedModel, budget: Budget
    ) -> None:
        """Takes up an earlier attempt where there is one. May raise, as all of its parts."""
        self._order, self._spec, self._model, self._budget = order, order.spec, model, budget
        params = order.spec.params
        self._tokens_asked = order.spec.micro_batch_tokens
        self._material = replace(material, micro_batch_tokens=self._micro_batch_tokens())
        self.course = Course(order, self._material, reporter, Checkpoints(order, "packed"))
        resumed = self.course.resume()
        self._weights = model.weights(order.spec, None if resumed else order.start_adapter)
        self._rows = material.train.rows
        self._steps = math.ceil(len(self._rows) / params.effective_batch_size)
        self._optimizer = Optimizer(self._weights, params, self._steps)
        self._taken = 0
        if resumed:
            self._taken = math.ceil(resumed.rows_seen / params.effective_batch_size)
            self._weights.load(load_file(resumed.folder / _WEIGHTS))
            self._optimizer.restore(torch.load(resumed.folder / _OPTIMIZER, weights_only=True))
        self._begin_batch()

    @cached_property
    def tokens(self) -> int:
        """How much of a pass the run can take before it has to take a step, on average."""
        rows = self._spec.params.effective_batch_size
        return rows * sum(len(row.prompt_ids) for row in self._rows) // len(self._rows)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest row: no budget can be smaller."""
        return max(len(row.prompt_ids) for row in self._rows)

    @property
    def numbers(self) -> int:
        """How many of them the adapter has, padding included."""
        return self._weights.flat.numel()

    def begin(self) -> RunResult | None:
        """Say what an earlier attempt has left unsaid. Gives the result when that ended the run."""
        return self._guarded(lambda: self.course.catch_up(self._evaluate))

    def share(self) -> Share:
        """The micro-batch that is next."""
        at = len(self._losses)
        params = self._spec.params
        # Room for a seed per layer behind it. A string, since Python promises the same numbers for it for ever.
        noise = random.Random(f"{self._spec.seed} {self._taken} {at}").getrandbits(40) << 20
        return Share(self._weights, self._micro_batches[at], params.prompt_loss_weight, self._whole, noise)

    def add(self, loss: Tensor) -> Tensor | None:
        """The next micro-batch has been through a pass. When it was the last one of its effective batch: the loss of
        the whole and the norm of its gradient, still on the device, for `step`.
        """
        self._losses.append(loss)
        if len(self._losses) < len(self._micro_batches):
            return None
        return torch.stack([torch.stack(self._losses).sum(), self._optimizer.norm()])

    def step(self, loss: float, norm: float) -> RunResult | None:
        """The optimizer step of a whole effective batch; the result when that ended the run."""
        return self._guarded(lambda: self._step(loss, norm))

    def redo(self) -> None:
        """Begin the effective batch at hand anew, in micro-batches of the budget as it is now."""
        self._weights.gradient.zero_()
        self._begin_batch()

    def ended_by(self, error: Exception) -> RunResult:
        """The result of the run, which something has ended. To be called where the error is handled."""
        return self._with_resources(self.course.ended_by(error))

    def _guarded(self, act: Callable[[], None]) -> RunResult | None:
        try:
            act()
            return self._finished() if self._taken == self._steps else None
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a run ends that run
            return self.ended_by(error)

    def _begin_batch(self) -> None:
        size = self._spec.params.effective_batch_size
        rows = self._rows[self._taken * size : (self._taken + 1) * size]
        self._whole = total_weight(rows, self._spec.params.prompt_loss_weight)
        self._micro_batches = cut(rows, self._micro_batch_tokens())
        self._losses: list[Tensor] = []

    def _micro_batch_tokens(self) -> int:
        """What the spec says, if the machine can."""
        return min(self._tokens_asked or self._budget.of_one, self._budget.of_one)

    def _step(self, loss: float, norm: float) -> None:
        rate = self._optimizer.learning_rate
        self._optimizer.step(norm)
        self._taken += 1
        rows_seen = min(self._taken * self._spec.params.effective_batch_size, len(self._rows))
        self.course.after(Step(self._taken, rows_seen, loss, norm, rate), self._evaluate, self._fill)
        self._begin_batch()

    def _finished(self) -> RunResult:
        judged, odds = self.course.finish(self._evaluate, lambda rows: self._log_odds(rows, len(rows)))
        target = adapter_folder(self._order.folder)
        save = partial(adapters.save_values, self._model.base, self._spec, self._weights.named(), target)
        adapters.keep(save, target)
        return self._with_resources(self.course.finished(judged, odds, target.name))

    def _with_resources(self, result: RunResult) -> RunResult:
        used = {
            "micro_batch_tokens": self._micro_batch_tokens(),
            "peak_memory_bytes": device.peak_memory(self._model.base.device),
        }
        return result.model_copy(update=used)

    def _evaluate(self, count: int) -> Sequence[float]:
        return self._log_odds(self._material.first(count), count)

    def _log_odds(self, rows: Sequence[EncodedRow], count: int) -> Sequence[float]:
        return log_odds(self._model, [Reader(self._weights, rows)], count, self._budget)[0]

    def _fill(self, folder: Path) -> None:
        """Between two steps: gradients and dropout have no memory of their own then."""
        save_file({name: matrix.contiguous() for name, matrix in self._weights.named().items()}, folder / _WEIGHTS)
        torch.save(self._optimizer.state(), folder / _OPTIMIZER)
