"""Worker processes that are meant to be hurt: started, frozen, killed and replaced; what they print goes to files."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mathverify_sweep.worker import rehearsal


@dataclass(frozen=True)
class Duty:
    """What the workers of a fleet do. `url` holds the database's password, if it has one."""

    study: str
    url: str
    output: Path
    logs: Path
    lease_seconds: float = 4.0
    run_seconds: float = 2.0
    hang_seconds: float = 1800.0
    checkpoint_seconds: float = 1.0
    environment: Mapping[str, str] = field(default_factory=dict)

    def command(self, gpu: int, more: Sequence[str]) -> list[str]:
        """The command line of a worker on a pretended GPU."""
        command = [sys.executable, "-m", "mathverify_sweep", "worker", self.study, "--output", str(self.output)]
        command += ["--engine", "rehearsal", "--gpu", str(gpu), "--until-idle", "--lease", str(self.lease_seconds)]
        command += ["--hang-seconds", str(self.hang_seconds), "--checkpoint-seconds", str(self.checkpoint_seconds)]
        return [*command, *more]


@dataclass
class Member:
    """One worker process. `hurt`: it was killed or sent away on purpose, so its end says nothing."""

    process: subprocess.Popen[bytes]
    gpu: int
    log: Path
    hurt: bool = False

    @property
    def lives(self) -> bool:
        """Whether the process is there, frozen or not."""
        return self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if there is anybody to take it."""
        self.hurt = self.hurt or number in (signal.SIGKILL, signal.SIGTERM)
        if self.lives:
            self.process.send_signal(number)

    def limit_files(self, size: int | None) -> None:
        """Have every file that grows beyond `size` bytes refuse to, as on a full disk; None takes that back."""
        limit = resource.RLIM_INFINITY if size is None else size
        if self.lives:
            hard = resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE)[1]
            resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (limit, hard))

    def printed(self) -> str:
        """What it has printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")


class Fleet:
    """The workers of one study on this machine. `close` it."""

    def __init__(self, duty: Duty) -> None:
        self.duty = duty
        self.members: list[Member] = []
        duty.logs.mkdir(parents=True, exist_ok=True)

    def start(
        self,
        gpu: int = 0,
        *more: str,
        faults: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Member:
        """One more worker. `more`: options of `mvsweep worker`; `faults`: see `worker.rehearsal`."""
        log = self.duty.logs / f"worker-{len(self.members)}.log"
        whole_environment = {
            **os.environ,
            "OPTUNA_STORAGE": self.duty.url,
            "OMP_NUM_THREADS": "1",
            rehearsal.SECONDS: str(self.duty.run_seconds),
            rehearsal.FAULTS: json.dumps(dict(faults or {})),
            **self.duty.environment,
            **(environment or {}),
        }
        with log.open("wb") as output:
            process = subprocess.Popen(
                self.duty.command(gpu, more),
                env=whole_environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self.members.append(Member(process, gpu, log))
        return self.members[-1]

    @property
    def alive(self) -> list[Member]:
        """The workers that have not ended."""
        return [member for member in self.members if member.lives]

    @property
    def deserted(self) -> list[Member]:
        """The workers that ended otherwise than by doing all there was, and that nobody had hurt."""
        return [m for m in self.members if not m.lives and not m.hurt and m.process.returncode != 0]

    @property
    def logs(self) -> list[Path]:
        """What all of them printed."""
        return [member.log for member in self.members]

    def close(self) -> None:
        """End them all, now."""
        for member in self.alive:
            member.process.kill()
        for member in self.members:
            member.process.wait()
