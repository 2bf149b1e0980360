"""The worker's handle on its engine process: start, send, receive with a deadline, kill."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

from mathverify_sweep.errors import MvsweepError
from mathverify_sweep.worker import messages
from mathverify_sweep.worker.devices import Device
from mathverify_sweep.worker.messages import FromEngine, ToEngine

log = logging.getLogger(__name__)

EngineName = Literal["auto", "packed", "reference", "rehearsal"]

_LOG_TAIL_BYTES = 2_000
_KILL_SECONDS = 10.0


class EngineDied(MvsweepError):
    """The engine process ended by itself; the message has its exit code and last words.

    `was_killed`: somebody ended it, mostly the system because the host's memory was full; else it is its own doing.
    """

    def __init__(self, message: str, *, was_killed: bool) -> None:
        self.was_killed = was_killed
        super().__init__(message)


@dataclass(frozen=True)
class EngineOptions:
    """Which engine, and how much at once; None is what the engine finds right for the device."""

    name: EngineName = "auto"
    slots: int | None = None
    token_budget: int | None = None


class Engine:
    """One child process on one device. What it prints goes to a log file."""

    def __init__(self, device: Device, options: EngineOptions, log: Path) -> None:
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        ours, theirs = socket.socketpair()
        with theirs, log.open("ab") as output:
            self._process = subprocess.Popen(
                _command(theirs.fileno(), device, options),
                env={**os.environ, **device.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C and a scheduler's notice are for the worker, which decides
            )
        self._connection = Connection(ours.detach())

    @property
    def connection(self) -> Connection:
        """To be waited on together with others; to be read with `receive`."""
        return self._connection

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
        """End the process now, whatever it is doing, and wait until it is gone.

        One that a broken driver holds in the kernel goes when the driver lets it; nobody waits for that.
        """
        self._process.kill()
        try:
            self._process.wait(_KILL_SECONDS)
        except subprocess.TimeoutExpired:
            log.warning("the engine process %d cannot be killed: its driver holds it", self._process.pid)
        self._connection.close()

    def _death(self) -> EngineDied:
        code = self._process.wait()
        cause = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        tail = self._log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()
        said = f"its log {self._log} ends:\n{tail}" if tail else f"its log {self._log} is empty"
        message = f"the engine process ended ({cause}); {said}"
        return EngineDied(message, was_killed=-code in (signal.SIGKILL, signal.SIGTERM))


def _command(socket_number: int, device: Device, options: EngineOptions) -> list[str]:
    told = (socket_number, device.torch_name, options.name, options.slots or 0, options.token_budget or 0)
    return [sys.executable, "-m", "mathverify_sweep.worker.child", *map(str, told)]
