"""An engine that takes time instead of training, for load tests, fault tests and `mvsweep chaos`. Imports no torch.

All around it is real: its data, its process, its reports, results, figures and checkpoints. A run takes
MVSWEEP_REHEARSAL_SECONDS (default 2) whatever its rows; how good it gets is a smooth function of its parameters, with
noise of its own seed, so that a sampler has something to find. MVSWEEP_REHEARSAL_FAULTS has trials go wrong halfway:
{"3": "nan", "5": "gil:20"} by trial number, in the first attempt of that trial; "*" is every attempt of every trial.
"""

from __future__ import annotations

import ctypes
import errno
import json
import logging
import math
import os
import random
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import NormalDist
from typing import NoReturn

from mathverify_sweep import metrics, paths
from mathverify_sweep.data import dataset
from mathverify_sweep.data.dataset import VerificationData
from mathverify_sweep.errors import ConfigError, DataDrift, ModelError, TrainingEnded
from mathverify_sweep.specs import DataSpec, Metrics, RunResult, RunSpec, Split, TrainParams
from mathverify_sweep.states import EndReason, Verdict
from mathverify_sweep.training.order import Order
from mathverify_sweep.training.reporter import Reporter

log = logging.getLogger(__name__)

SECONDS, FAULTS = "MVSWEEP_REHEARSAL_SECONDS", "MVSWEEP_REHEARSAL_FAULTS"
TICK_SECONDS = 0.1
"""How long one step takes."""
LOG_POINTS = 10
"""Points of a run's training curve."""
EXIT_CODE = 3
"""With what the process ends where `exit` is rehearsed."""
_STATE = "rehearsal.json"


@dataclass(frozen=True)
class Fault:
    """What goes wrong. `seconds`: how long `gil` holds the interpreter's lock."""

    kind: str
    seconds: int = 0

    @classmethod
    def parse(cls, text: str) -> Fault:
        """`nan`, `oom`, `hang`, `crash`, `exit` or `gil:SECONDS`. Raises ValueError."""
        kind, _, seconds = text.partition(":")
        if kind not in _STRIKES or (kind == "gil") != seconds.isdigit():
            raise ValueError(f"a fault is nan, oom, hang, crash, exit or gil:SECONDS, got {text!r}")
        return cls(kind, int(seconds or 0))

    def strike(self, done: str) -> None:
        """Go wrong. `done`: how far the run is, in words."""
        _STRIKES[self.kind](self, done)

    def _nan(self, done: str) -> NoReturn:
        raise TrainingEnded(EndReason.DIVERGED, f"loss is nan after {done} (rehearsed)")

    def _oom(self, done: str) -> NoReturn:
        raise TrainingEnded(EndReason.OUT_OF_MEMORY, f"out of memory after {done} (rehearsed)")

    def _hang(self, _done: str) -> NoReturn:
        while True:
            time.sleep(3600)

    def _crash(self, _done: str) -> NoReturn:
        raise RuntimeError("a crash was rehearsed")

    def _exit(self, _done: str) -> NoReturn:
        os._exit(EXIT_CODE)

    def _gil(self, _done: str) -> None:
        ctypes.PyDLL(None).sleep(self.seconds)  # unlike CDLL, it keeps the lock


_STRIKES: Mapping[str, Callable[[Fault, str], None]] = {
    "nan": Fault._nan,
    "oom": Fault._oom,
    "hang": Fault._hang,
    "crash": Fault._crash,
    "exit": Fault._exit,
    "gil": Fault._gil,
}


@dataclass(frozen=True)
class Script:
    """How runs are rehearsed: seconds of each, and what goes wrong by trial number or `*`."""

    seconds: float
    faults: Mapping[str, Fault]

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Script:
        """As the environment says. Raises ConfigError."""
        seconds, faults = environment.get(SECONDS, "2"), environment.get(FAULTS, "{}")
        try:
            if not 0 < float(seconds) < math.inf:
                raise ValueError(f"a run takes more than 0 seconds, got {seconds}")
            named = json.loads(faults)
            wrong = [key for key in named if key != "*" and not key.isdigit()]
            if wrong:
                raise ValueError(f"faults go by trial number or *, got {wrong[0]!r}")
            return cls(float(seconds), {key: Fault.parse(text) for key, text in named.items()})
        except (ValueError, AttributeError, TypeError) as error:
            raise ConfigError(f"{SECONDS}, {FAULTS}", [f"{error}."]) from None

    def fault(self, order: Order) -> Fault | None:
        """What is to go wrong in this attempt."""
        own = None if order.resume_from else self.faults.get(str(order.spec.trial_number))
        return own or self.faults.get("*")


class RehearsalEngine:
    """As many runs at once as it has slots. Raises ConfigError when its environment makes no sense."""

    def __init__(self, slots: int, script: Script | None = None, sleep: Callable[[float], None] = time.sleep) -> None:
        self._slots = slots
        self._script = script or Script.read(os.environ)
        self._sleep = sleep
        self._runs: dict[str, _Run] = {}
        self._due = 0.0

    def prepare(self, data: DataSpec, fingerprint: str) -> None:
        """Read the data of the runs to come. Raises DataDrift when it is not the study's."""
        _data(data, fingerprint)

    def free_slots(self) -> int:
        """How many runs may be started."""
        return self._slots - len(self._runs)

    def start(self, run_id: str, order: Order, reporter: Reporter) -> None:
        """Take a slot. Raises ModelError for a start adapter that no rehearsal left."""
        self._runs[run_id] = _Run(order, reporter, self._script)

    def step(self) -> list[tuple[str, RunResult]]:
        """Let a moment pass for all runs; those that ended in it."""
        # Until the moment is due, not for so long: a busy machine is a little late each time.
        now = time.monotonic()
        self._due = max(self._due + TICK_SECONDS, now)
        self._sleep(self._due - now)
        ended = []
        for run_id, run in list(self._runs.items()):
            result = run.step()
            if result is not None:
                del self._runs[run_id]
                ended.append((run_id, result))
        return ended

    def told(self) -> str:
        """One line."""
        return "rehearsal: nothing is trained"

    def score(self, spec: RunSpec, adapter: Path | None, split: Split) -> tuple[float, ...]:
        """The log-odds of a split's rows, by an adapter that a rehearsal left or by the base model alone."""
        rows = 0 if adapter is None else _adapter_rows(adapter)
        return _log_odds(spec, rows, _data(spec.data, spec.data_fingerprint).split(split))


class _Run:
    """One run: how far it is, and how it ends."""

    def __init__(self, order: Order, reporter: Reporter, script: Script) -> None:
        self._order, self._spec, self._reporter = order, order.spec, reporter
        self._data = _data(order.spec.data, order.spec.data_fingerprint)
        self._total = len(self._data.training_rows(order.spec.train_rows))
        self._learned_before = _adapter_rows(order.start_adapter) if order.start_adapter else 0
        self._ticks = max(2, math.ceil(script.seconds / TICK_SECONDS))
        self._tick = self._tick_of(_resumed_rows(order))
        self._rungs = [rung for rung in sorted(order.spec.rungs) if rung > self._rows]
        self._fault = script.fault(order)
        self._value: float | None = None
        self._began = self._saved_at = time.monotonic()

    def step(self) -> RunResult | None:
        """One step further; the result when it was the last one."""
        try:
            return self._advance()
        except TrainingEnded as ended:
            return self._ended(ended.reason, str(ended))
        except Exception:  # noqa: BLE001 - whatever is wrong with a run ends that run, not its neighbours
            return self._ended(EndReason.CRASHED, traceback.format_exc(limit=-12))

    @property
    def _rows(self) -> int:
        return self._total * self._tick // self._ticks

    def _tick_of(self, rows: int) -> int:
        return min(self._ticks - 1, math.ceil(rows * self._ticks / self._total))

    def _advance(self) -> RunResult | None:
        if self._tick == self._ticks:
            return self._finished()
        self._tick += 1
        self._log()
        self._report()
        if self._fault is not None and 2 * self._tick >= self._ticks:
            fault, self._fault = self._fault, None
            self._save()  # so that the next attempt knows that it is one
            fault.strike(f"{self._rows} rows")
        self._heed_interrupt()
        if time.monotonic() - self._saved_at >= self._order.checkpoint_seconds:
            self._save()
        return None

    def _log(self) -> None:
        if self._tick * LOG_POINTS // self._ticks > (self._tick - 1) * LOG_POINTS // self._ticks:
            left = 1 - self._tick / self._ticks
            self._reporter.log(self._rows, 0.1 + 0.6 * left, self._spec.params.learning_rate * left)

    def _report(self) -> None:
        """One look answers every rung that this step has passed."""
        if not self._rungs or self._rungs[0] > self._rows:
            return
        self._look(self._spec.rung_rows)
        assert self._value is not None
        while self._rungs and self._rungs[0] <= self._rows:
            rung = self._rungs.pop(0)
            if self._reporter.report(rung, self._value) is Verdict.PRUNE:
                raise TrainingEnded(EndReason.PRUNED, f"{self._spec.objective} {self._value:.4f} at {rung} rows")

    def _look(self, count: int | None) -> tuple[Metrics, tuple[float, ...]]:
        rows = self._data.validation[:count]
        odds = _log_odds(self._spec, self._learned_before + self._rows, rows)
        judged = metrics.judge(odds, [row.is_correct for row in rows], dataset.groups(rows), task=self._spec.data.task)
        self._value = metrics.objective_value(judged, self._spec.objective)
        return judged, odds

    def _heed_interrupt(self) -> None:
        reason = self._reporter.interrupted()
        if reason is EndReason.PREEMPTED:
            self._save()
        if reason is not None:
            raise TrainingEnded(reason, f"interrupted after {self._rows} rows")

    def _save(self) -> None:
        self._saved_at = time.monotonic()
        try:
            _write(paths.checkpoints_folder(self._order.folder), self._rows)
        except OSError as error:  # a full disk costs a checkpoint, not the run
            log.warning("no checkpoint in %s: %s", self._order.folder, error)

    def _finished(self) -> RunResult | None:
        """None while the disk is full: what was learned is not thrown away, it is tried again with the next step."""
        judged, odds = self._look(None)
        adapter = paths.adapter_folder(self._order.folder)
        try:
            _write(adapter, self._learned_before + self._total)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            self._heed_interrupt()
            return None
        result = self._ended(EndReason.FINISHED, "")
        return result.model_copy(update={"metrics": judged, "log_odds": odds, "adapter": adapter.name})

    def _ended(self, reason: EndReason, message: str) -> RunResult:
        batch = self._spec.params.effective_batch_size
        return RunResult(
            end_reason=reason,
            message=message,
            value=self._value if reason in (EndReason.FINISHED, EndReason.PRUNED) else None,
            rows_seen=self._rows,
            optimizer_steps=math.ceil(self._rows / batch),
            micro_batch_tokens=self._spec.micro_batch_tokens or batch * self._spec.max_length,
            train_seconds=time.monotonic() - self._began,
        )


@lru_cache(maxsize=1)
def _data(spec: DataSpec, fingerprint: str) -> VerificationData:
    data = dataset.load(spec)
    if data.fingerprint != fingerprint:
        raise DataDrift(
            f"{spec.source}: the study was created with data of fingerprint {fingerprint[:12]}, this machine reads "
            f"{data.fingerprint[:12]}. Give this worker the same file or revision"
        )
    return data


def _quality(params: TrainParams) -> float:
    """0 to 1: best at a learning rate of 1e-3, batches of 16, rank 16 and more, no dropout."""
    rate = math.exp(-((math.log10(params.learning_rate) + 3) ** 2))
    batch = math.exp(-(math.log2(params.effective_batch_size / 16) ** 2) / 50)
    return rate * batch * (0.8 + 0.2 * min(params.lora_r, 16) / 16) * (1 - 0.2 * params.lora_dropout)


def _log_odds(spec: RunSpec, learned_rows: int, rows: tuple[dataset.Row, ...]) -> tuple[float, ...]:
    """Log-odds of a verifier as accurate as such parameters make it; a trial's noise is the same at each look."""
    accuracy = 0.5 + 0.45 * _quality(spec.params) * (1 - math.exp(-learned_rows / 200))
    edge = NormalDist().inv_cdf(accuracy)
    noise = random.Random(f"{spec.study_name} {spec.trial_number} {spec.seed}")
    return tuple(2 * ((edge if row.is_correct else -edge) + noise.gauss(0, 1)) for row in rows)


def _write(folder: Path, rows: int) -> None:
    """All that a rehearsal has learned, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{_STATE}.partial"
    partial.write_text(json.dumps({"rows_seen": rows}), encoding="utf-8")
    partial.rename(folder / _STATE)


def _read(folder: Path) -> int:
    return int(json.loads((folder / _STATE).read_text(encoding="utf-8"))["rows_seen"])


def _adapter_rows(adapter: Path) -> int:
    try:
        return _read(adapter)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"a rehearsal starts from an adapter that a rehearsal left, got {adapter}: {error}") from None


def _resumed_rows(order: Order) -> int:
    """Rows seen at the newest checkpoint of the attempts before; 0 when there is none."""
    for folder in order.resume_from:
        try:
            return _read(paths.checkpoints_folder(folder))
        except (OSError, ValueError, KeyError):
            continue
    return 0
