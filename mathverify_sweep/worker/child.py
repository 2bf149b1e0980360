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

from mathverify_sweep.data import dataset
from mathverify_sweep.errors import DataDrift, MvsweepError
from mathverify_sweep.specs import RunResult
from mathverify_sweep.states import EndReason, Verdict
from mathverify_sweep.worker import messages
from mathverify_sweep.worker.messages import Answer, Ended, Logged, Prepare, Ready, Refused, Reported, Start

if TYPE_CHECKING:
    from mathverify_sweep.training.reference import ReferenceEngine

_PR_SET_PDEATHSIG = 1


def main(socket: int, device: str) -> None:
    """Serve one worker until it hangs up."""
    _end_with_parent()
    connection = Connection(socket)
    try:
        _serve(connection, device)
    except (EOFError, OSError):
        return


class _PipeReporter:
    """Sends what a run says to the worker, and waits for the verdict on a report."""

    def __init__(self, connection: Connection, run_id: str) -> None:
        self._connection = connection
        self._run_id = run_id

    def report(self, rows_seen: int, value: float) -> Verdict:
        messages.send(self._connection, Reported(run_id=self._run_id, rows_seen=rows_seen, value=value))
        answer = messages.receive_in_engine(self._connection)
        if not isinstance(answer, Answer):
            raise RuntimeError(f"a report is answered by a verdict, got {answer.kind}")
        return answer.verdict

    def log(self, rows_seen: int, loss: float, learning_rate: float) -> None:
        messages.send(
            self._connection,
            Logged(run_id=self._run_id, rows_seen=rows_seen, loss=loss, learning_rate=learning_rate),
        )


def _serve(connection: Connection, device: str) -> None:
    first = messages.receive_in_engine(connection)
    if not isinstance(first, Prepare):
        raise RuntimeError(f"an engine is prepared first, got {first.kind}")
    try:
        _check_data(first)
        engine = _load_engine(device)
    except MvsweepError as error:
        messages.send(connection, Refused(message=str(error)))
        return
    messages.send(connection, Ready())
    while True:
        message = messages.receive_in_engine(connection)
        if isinstance(message, Start):
            messages.send(connection, Ended(run_id=message.run_id, result=_train(engine, message, connection)))


def _check_data(prepare: Prepare) -> None:
    found = dataset.load(prepare.data).fingerprint
    if found != prepare.data_fingerprint:
        raise DataDrift(
            f"{prepare.data.source}: the study was created with data {prepare.data_fingerprint[:12]}, this machine reads "
            f"{found[:12]}. Bring the same file or revision here, or create a new study."
        )


def _load_engine(device: str) -> ReferenceEngine:
    from mathverify_sweep.training.reference import ReferenceEngine  # imports torch: after the device is set

    return ReferenceEngine(device)


def _train(engine: ReferenceEngine, start: Start, connection: Connection) -> RunResult:
    reporter = _PipeReporter(connection, start.run_id)
    adapter = Path(start.start_adapter) if start.start_adapter else None
    try:
        return engine.run(start.spec, Path(start.folder), reporter, adapter)
    except (EOFError, OSError):
        raise  # the worker is gone: nobody is left to tell
    except Exception:  # whatever a run raises ends that run, and the engine goes on with the next
        return RunResult(end_reason=EndReason.CRASHED, message=traceback.format_exc(limit=-12))


def _end_with_parent() -> None:
    """Die with the worker even in the middle of a long computation (Linux; elsewhere at the next message)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the worker decides


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
