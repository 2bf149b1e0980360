"""The worker's handle on its engine process: start, send, receive with a deadline, kill."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path

from mathverify_sweep.errors import MvsweepError
from mathverify_sweep.worker import messages
from mathverify_sweep.worker.messages import FromEngine, ToEngine

_LOG_TAIL_BYTES = 2_000


class EngineDied(MvsweepError):
    """The engine process ended by itself; the message has its exit code and last words."""


class Engine:
    """One child process on one device. What it prints goes to a log file."""

    def __init__(self, device: str, environment: Mapping[str, str], log: Path) -> None:
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        ours, theirs = socket.socketpair()
        with theirs, log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mathverify_sweep.worker.child", str(theirs.fileno()), device],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[theirs.fileno()],
            )
        self._connection = Connection(ours.detach())

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def send(self, message: ToEngine) -> None:
        """Send one message. Raises EngineDied."""
        try:
            messages.send(self._connection, message)
        except OSError:
            raise self._death() from None

    def receive(self, timeout: float) -> FromEngine | None:
        """The next message, or None after `timeout` seconds without one. Raises EngineDied."""
        try:
            return messages.receive_in_worker(self._connection) if self._connection.poll(timeout) else None
        except (EOFError, OSError):
            raise self._death() from None

    def kill(self) -> None:
        """End the process now, whatever it is doing, and wait until it is gone."""
        self._process.kill()
        self._process.wait()
        self._connection.close()

    def _death(self) -> EngineDied:
        code = self._process.wait()
        cause = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        tail = self._log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()
        return EngineDied(f"the engine process ended ({cause}); its log {self._log} ends:\n{tail}")
