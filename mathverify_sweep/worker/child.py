"""The engine process: holds the base model on one device and trains the runs that its worker sends.

Started by `engine.Engine` as `python -m mathverify_sweep.worker.child SOCKET DEVICE`. It ends with its worker.
"""

from __future__ import annotations

import ctypes
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from mathverify_sweep.errors import MvsweepError
from mathverify_sweep.specs import RunResult
from mathverify_sweep.states import EndReason, Verdict
from mathverify_sweep.worker import messages
from mathverify_sweep.worker.messages import (
    Answer,
    Ended,
    FromEngine,
    Logged,
    Prepare,
    Ready,
    Refused,
    Reported,
    Start,
    ToEngine,
)

if TYPE_CHECKING:
    from mathverify_sweep.training.reference import ReferenceEngine

_PR_SET_PDEATHSIG = 1


def main(socket: int, device: str) -> None:
    """Serve one worker until it hangs up."""
    _end_with_parent()
    connection = Connection(socket)
    try:
        _serve(_Worker(connection), device)
    except _WorkerGone:
        return


class _WorkerGone(Exception):
    """Nobody is left to tell."""


class _Worker:
    """The worker at the other end."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def tell(self, message: FromEngine) -> None:
        try:
            messages.send(self._connection, message)
        except OSError:
            raise _WorkerGone from None

    def hear(self) -> ToEngine:
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
        answer = self._worker.hear()
        assert isinstance(answer, Answer), f"a report is answered by a verdict, got {answer.kind}"
        return answer.verdict

    def log(self, rows_seen: int, loss: float, learning_rate: float) -> None:
        self._worker.tell(Logged(run_id=self._run_id, rows_seen=rows_seen, loss=loss, learning_rate=learning_rate))


def _serve(worker: _Worker, device: str) -> None:
    prepare = worker.hear()
    assert isinstance(prepare, Prepare), f"an engine is prepared first, got {prepare.kind}"
    try:
        engine = _prepared(prepare, device)
    except MvsweepError as error:
        worker.tell(Refused(message=str(error)))
        return
    worker.tell(Ready())
    while True:
        message = worker.hear()
        if isinstance(message, Start):
            worker.tell(Ended(run_id=message.run_id, result=_trained(engine, message, worker)))


def _prepared(prepare: Prepare, device: str) -> ReferenceEngine:
    from mathverify_sweep.training.reference import ReferenceEngine  # imports torch

    engine = ReferenceEngine(device)
    engine.prepare(prepare.data, prepare.data_fingerprint)
    return engine


def _trained(engine: ReferenceEngine, start: Start, worker: _Worker) -> RunResult:
    reporter = _PipeReporter(worker, start.run_id)
    adapter = Path(start.start_adapter) if start.start_adapter else None
    try:
        return engine.run(start.spec, Path(start.folder), reporter, adapter)
    except _WorkerGone:
        raise
    except Exception:  # noqa: BLE001 - whatever a run raises ends that run; the worker replaces this process
        return RunResult(end_reason=EndReason.CRASHED, message=traceback.format_exc(limit=-12))


def _end_with_parent() -> None:
    """Die with the worker even in the middle of a long computation (Linux; elsewhere at the next message)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the worker decides


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
