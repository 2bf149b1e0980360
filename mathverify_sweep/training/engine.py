"""Many runs on one device over one frozen base model: the packed engine.

    start   a run takes a slot: an adapter, an optimizer, an order of rows, a course of its own (packed/slot.py)
    step    one pass: micro-batches of the slots whose turn it is, end to end up to the token budget, forward and
            backward through the shared base (packed/model.py); a run whose effective batch is complete takes its
            optimizer step, looks at itself where it is due, and leaves its slot when it has ended
    score   the same base, forward only

A run's numbers are its own: how its effective batch is cut, when it steps and what it draws hang on its spec and on the
device, never on its neighbours. Nor do its troubles reach them: an error ends the run that it belongs to, and too
little memory makes passes smaller, redone from where the last steps left the weights.
"""

from __future__ import annotations

import logging
import traceback
from pathlib import Path

import torch

from mathverify_sweep.errors import ModelError, TrainingEnded
from mathverify_sweep.specs import BaseModelSpec, DataSpec, RunResult, RunSpec, Split, Task
from mathverify_sweep.states import EndReason
from mathverify_sweep.training import device
from mathverify_sweep.training.checkpoints import start_over
from mathverify_sweep.training.material import Library, Material
from mathverify_sweep.training.order import Order
from mathverify_sweep.training.packed import plan, ready
from mathverify_sweep.training.packed.judging import Reader, log_odds
from mathverify_sweep.training.packed.model import unsupported
from mathverify_sweep.training.packed.ready import Ready
from mathverify_sweep.training.packed.slot import Slot
from mathverify_sweep.training.reporter import Reporter

log = logging.getLogger(__name__)


class PackedEngine:
    """An `order.Engine` on one device: "cpu", or "cuda:0" with a single GPU visible.

    `slots` and `token_budget`: as given, or as the device has room and use for.
    """

    def __init__(self, device_name: str, slots: int | None = None, token_budget: int | None = None) -> None:
        self.device = device.find(device_name)
        self._library = Library(self.device)
        self._slots_asked, self._tokens_asked = slots, token_budget
        self._ready: Ready | None = None
        self._slots: dict[str, Slot] = {}  # whose turn is next comes first
        self._new: list[str] = []
        self._alone: set[str] = set()
        self._ended: list[tuple[str, RunResult]] = []

    def prepare(self, data: DataSpec, fingerprint: str) -> None:
        """Read the data of the runs to come. Raises DataDrift when it is not the study's."""
        self._library.data(data, fingerprint)

    def unsupported(self, spec: BaseModelSpec, task: Task = "verification") -> str | None:
        """Why this engine cannot train on that base model, or None when it can. Loads it."""
        if task == "solving":
            return "solutions are generated with a cache of keys and values, which its streams do not have"
        return unsupported(self._library.base(spec), spec)

    def free_slots(self) -> int:
        """How many more runs have a use here: none when their rows fill a pass, or their adapters the memory."""
        free = plan.slots(self.device, self._slots_asked) - len(self._slots)
        if self._ready is None or not self._slots or self._slots_asked is not None:
            return free
        filled = sum(slot.tokens for slot in self._slots.values()) >= self._ready.budget.tokens
        numbers = [slot.numbers for slot in self._slots.values()]
        has_room = self._ready.plan.has_room(sum(numbers) + max(numbers))
        return min(free, 1) if has_room and not filled else 0

    def start(self, run_id: str, order: Order, reporter: Reporter) -> None:
        """Take the run into a slot. What is wrong with it is told by the next `step`."""
        try:
            made = self._made_ready(order.spec)
            material = self._library.material(order.spec)
            self._slots[run_id] = _slot(order, material, reporter, made)
            self._new.append(run_id)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a run ends that run
            self._ended.append((run_id, _ended_at_start(error)))

    def step(self) -> list[tuple[str, RunResult]]:
        """One pass for the runs whose turn it is; those that have ended."""
        for run_id in self._new:
            self._leave_if_ended(run_id, self._slots[run_id].begin())
        self._new.clear()
        if self._slots:
            self._pass(self._next())
        ended, self._ended = self._ended, []
        return ended

    def told(self) -> str:
        """How memory is used, once a run has been taken."""
        return self._ready.plan.told(self._ready.budget) if self._ready else "packed engine"

    def score(self, spec: RunSpec, adapter: Path | None, split: Split) -> tuple[float, ...]:
        """The log-odds of a split's rows in its order, by an adapter of the spec's shape or by the base model alone."""
        made = self._made_ready(spec)
        count = len(self._library.data(spec.data, spec.data_fingerprint).split(split))
        rows = self._library.rows(spec, split, count).rows
        weights = None if adapter is None else made.model.weights(spec, adapter)
        return tuple(log_odds(made.model, [Reader(weights, rows)], count, made.budget)[0])

    def _next(self) -> list[str]:
        """Runs for one pass, in turn, as far as there is room; at least one, whatever it takes."""
        assert self._ready is not None
        chosen: list[str] = []
        room = self._ready.model.room(self._ready.budget)
        for run_id, slot in self._slots.items():
            tokens = slot.share().tokens
            if not chosen or (self._ready.plan.together and tokens <= room and run_id not in self._alone):
                chosen.append(run_id)
                room -= tokens
            if chosen[0] in self._alone:
                break
        for run_id in chosen:
            self._slots[run_id] = self._slots.pop(run_id)
        return chosen

    def _pass(self, run_ids: list[str]) -> None:
        """Forward and backward for the micro-batches that are next in these runs, then their steps."""
        assert self._ready is not None
        shares = [self._slots[run_id].share() for run_id in run_ids]
        try:
            losses = self._ready.model.train(shares)
            told = {run_id: self._slots[run_id].add(loss) for run_id, loss in zip(run_ids, losses, strict=True)}
            due = {run_id: facts for run_id, facts in told.items() if facts is not None}
            # The one place where a pass waits for the device.
            facts = torch.stack(list(due.values())).tolist() if due else []
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a run ends that run
            self._redo(run_ids, error)
            return
        self._alone.difference_update(run_ids)
        for run_id, (loss, norm) in zip(due, facts, strict=True):
            self._leave_if_ended(run_id, self._slots[run_id].step(loss, norm))

    def _redo(self, run_ids: list[str], error: Exception) -> None:
        """A pass has failed. Smaller when memory is short, else one by one to see whose fault it is."""
        assert self._ready is not None
        budget = self._ready.budget
        passed = sum(self._slots[run_id].share().tokens for run_id in run_ids)
        for run_id in run_ids:
            self._slots[run_id].redo()
        longest = max(slot.longest for slot in self._slots.values())
        if device.is_out_of_memory(error) and budget.shrink(passed, longest):
            log.warning("out of memory: passes of at most %d tokens from here on", max(budget.tokens, budget.of_one))
            self._ready.model.expect(budget)
            for slot in self._slots.values():
                slot.redo()
        elif len(run_ids) > 1:
            self._alone.update(run_ids)
        else:
            self._leave_if_ended(run_ids[0], self._slots[run_ids[0]].ended_by(error))
        device.free_memory(self.device)

    def _leave_if_ended(self, run_id: str, result: RunResult | None) -> None:
        if result is not None:
            del self._slots[run_id]
            self._alone.discard(run_id)
            self._ended.append((run_id, result))
            device.free_memory(self.device)

    def _made_ready(self, spec: RunSpec) -> Ready:
        """The base model of the spec, which all runs in slots share."""
        known = self._ready if self._ready is not None and self._ready.model.base.spec == spec.base_model else None
        if self._slots and known is None:
            raise ModelError(
                "runs that share an engine must share a base model, got another. Start it when the others have ended"
            )
        if reason := self.unsupported(spec.base_model, spec.data.task):
            raise ModelError(f"base_model {spec.base_model.name} cannot be packed: {reason}. Use the reference engine")
        try:
            self._ready = known or ready.make(self._library.base(spec.base_model), spec, self._tokens_asked)
        except Exception:
            self._ready = None
            self._library.forget_base()  # it may have been taught already, and cannot be taught twice
            raise
        return self._ready


def _slot(order: Order, material: Material, reporter: Reporter, made: Ready) -> Slot:
    try:
        return Slot(order, material, reporter, made.model, made.budget)
    except Exception as error:
        if not order.resume_from or device.is_out_of_memory(error):
            raise
        return Slot(start_over(order, error), material, reporter, made.model, made.budget)


def _ended_at_start(error: Exception) -> RunResult:
    """The result of a run that did not get into a slot. To be called where the error is handled."""
    if isinstance(error, TrainingEnded):
        return RunResult(end_reason=error.reason, message=str(error))
    if device.is_out_of_memory(error):
        return RunResult(end_reason=EndReason.OUT_OF_MEMORY, message=str(error))
    return RunResult(end_reason=EndReason.CRASHED, message=traceback.format_exc(limit=-12))
