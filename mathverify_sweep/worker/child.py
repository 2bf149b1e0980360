"""The engine process: holds the base model on one device and trains the runs that its worker sends.

Started by `engine.Engine` as `python -m mathverify_sweep.worker.child SOCKET DEVICE ENGINE SLOTS TOKENS`. It ends with
its worker.
"""

from __future__ import annotations

import signal
import sys
import time
import traceback
from collections import deque
from multiprocessing.connection import Connection
from pathlib import Path

from mathverify_sweep import processes, redaction
from mathverify_sweep.errors import ModelError, MvsweepError
from mathverify_sweep.specs import RunResult
from mathverify_sweep.states import EndReason, Verdict
from mathverify_sweep.training import stopwatch
from mathverify_sweep.training.order import Engine, Order
from mathverify_sweep.worker import messages
from mathverify_sweep.worker.messages import (
    Answer,
    Ended,
    FromEngine,
    Interrupt,
    Logged,
    Measuring,
    Prepare,
    Ready,
    Refused,
    Reported,
    Room,
    Sample,
    Start,
    Stepped,
    Timed,
    ToEngine,
)

STEPPED_SECONDS = 5.0
"""How often the worker hears that steps are taken, at most."""


def main(socket: int, device: str, engine: str, slots: int, tokens: int) -> None:
    """Serve one worker until it hangs up. 0 slots or tokens: as many as the engine finds right."""
    processes.end_with_parent(signal.SIGKILL)  # even in the middle of a long computation
    redaction.mask_logs()
    try:
        _serve(_Worker(Connection(socket)), device, engine, slots or None, tokens or None)
    except _WorkerGone:
        return


class _WorkerGone(BaseException):
    """Nobody is left to tell. No engine may take it for an error of the run at hand."""


class _Worker:
    """The worker at the other end: what it says is sorted into runs to start, verdicts and interrupts."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._starts: deque[Start] = deque()
        self._verdicts: dict[str, Verdict] = {}
        self._interrupts: dict[str, EndReason] = {}
        self._stepped_at = 0.0

    def tell(self, message: FromEngine) -> None:
        try:
            messages.send(self._connection, message)
        except OSError:
            raise _WorkerGone from None

    def prepare(self) -> Prepare:
        message = self._hear()
        assert isinstance(message, Prepare), f"an engine is prepared first, got {message.kind}"
        return message

    def next_start(self, wait: bool) -> Start | None:
        """A run to start; with `wait` there will be one."""
        self._listen()
        while wait and not self._starts:
            self._sort(self._hear())
        return self._starts.popleft() if self._starts else None

    def verdict(self, run_id: str) -> Verdict:
        """Wait for the answer to a report."""
        while run_id not in self._verdicts:
            self._sort(self._hear())
        return self._verdicts.pop(run_id)

    def interrupt(self, run_id: str) -> EndReason | None:
        """Why the run is to end now; asked after every step, so it tells the worker that steps are taken."""
        self._listen()
        if time.monotonic() - self._stepped_at > STEPPED_SECONDS:
            self._stepped_at = time.monotonic()
            self.tell(Stepped())
        return self._interrupts.get(run_id)

    def forget(self, run_id: str) -> None:
        """The run has ended; an interrupt that crossed its end is of no use."""
        self._interrupts.pop(run_id, None)
        self._verdicts.pop(run_id, None)

    def _listen(self) -> None:
        try:
            while self._connection.poll():
                self._sort(self._hear())
        except OSError:
            raise _WorkerGone from None

    def _sort(self, message: ToEngine) -> None:
        if isinstance(message, Start):
            self._starts.append(message)
        elif isinstance(message, Answer):
            self._verdicts[message.run_id] = message.verdict
        elif isinstance(message, Interrupt):
            self._interrupts[message.run_id] = message.reason

    def _hear(self) -> ToEngine:
        try:
            return messages.receive_in_engine(self._connection)
        except (EOFError, OSError):
            raise _WorkerGone from None


class _PipeReporter:
    """Sends what a run says to the worker, and waits for the verdict on a report."""

    def __init__(self, worker: _Worker, run_id: str) -> None:
        self._worker = worker
        self._run_id = run_id

    def report(self, rows_seen: int, value: float) -> Verdict:
        self._worker.tell(Reported(run_id=self._run_id, rows_seen=rows_seen, value=value))
        return self._worker.verdict(self._run_id)

    def log(self, rows_seen: int, loss: float, learning_rate: float) -> None:
        self._worker.tell(Logged(run_id=self._run_id, rows_seen=rows_seen, loss=loss, learning_rate=learning_rate))

    def interrupted(self) -> EndReason | None:
        return self._worker.interrupt(self._run_id)


def _serve(worker: _Worker, device: str, name: str, slots: int | None, tokens: int | None) -> None:
    prepare = worker.prepare()
    try:
        ready, engine = _engine(name, prepare, device, slots, tokens)
        engine.prepare(prepare.data, prepare.data_fingerprint)
    except MvsweepError as error:
        worker.tell(Refused(message=str(error)))
        return
    all_slots, begun = engine.free_slots(), 0
    worker.tell(ready)
    if prepare.sample is not None:
        _measure(engine, prepare.sample, device, worker)
        return
    worker.tell(Room(free_slots=all_slots, begun=begun))
    while True:
        free = engine.free_slots()
        # One start, then a step: that is where a run which cannot start says so.
        if free and (start := worker.next_start(wait=free == all_slots)):
            _begin(engine, start, worker)
            begun += 1
            worker.tell(Room(free_slots=engine.free_slots(), begun=begun))
        for run_id, result in engine.step():
            _tell_end(worker, run_id, result)
            worker.tell(Room(free_slots=engine.free_slots(), begun=begun))


def _engine(name: str, prepare: Prepare, device: str, slots: int | None, tokens: int | None) -> tuple[Ready, Engine]:
    """The engine of that name; `auto` is the packed one wherever it can train on the base model."""
    if name == "rehearsal":
        from mathverify_sweep.worker.rehearsal import RehearsalEngine

        return Ready(engine=name, note=None), RehearsalEngine(slots or 1)
    reason = None
    if name != "reference":
        from mathverify_sweep.training.engine import PackedEngine  # imports torch

        packed = PackedEngine(device, slots, tokens)
        reason = packed.unsupported(prepare.base_model)
        if reason is None:
            return Ready(engine="packed", note=None), packed
        reason = f"{prepare.base_model.name} cannot be packed: {reason}"
        if name == "packed":
            raise ModelError(f"{reason}. Leave out --engine, or use --engine reference")
        del packed  # and with it the base model, before it is loaded again
    from mathverify_sweep.training.reference import ReferenceEngine  # imports torch

    return Ready(engine="reference", note=reason), ReferenceEngine(device)


def _measure(engine: Engine, sample: Sample, device: str, worker: _Worker) -> None:
    from mathverify_sweep.training import device as devices  # imports torch

    try:
        measured = stopwatch.measure(
            engine, sample.specs, Path(sample.folder), lambda what: worker.tell(Measuring(what=what))
        )
    except MvsweepError as error:
        worker.tell(Refused(message=str(error)))
        return
    worker.tell(Timed(measured=measured, device_bytes=devices.total_memory(devices.find(device))))


def _begin(engine: Engine, start: Start, worker: _Worker) -> None:
    order = Order(
        spec=start.spec,
        folder=Path(start.folder),
        start_adapter=Path(start.start_adapter) if start.start_adapter else None,
        resume_from=tuple(map(Path, start.resume_from)),
        checkpoint_seconds=start.checkpoint_seconds,
    )
    try:
        engine.start(start.run_id, order, _PipeReporter(worker, start.run_id))
    except Exception:  # noqa: BLE001 - whatever is wrong with a run ends that run
        crashed = RunResult(end_reason=EndReason.CRASHED, message=traceback.format_exc(limit=-12))
        _tell_end(worker, start.run_id, crashed)


def _tell_end(worker: _Worker, run_id: str, result: RunResult) -> None:
    worker.forget(run_id)
    worker.tell(Ended(run_id=run_id, result=result))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
