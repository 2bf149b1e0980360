"""Worker processes of one machine, for `mvsweep run`: started together, ended together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mathverify_sweep import paths
from mathverify_sweep.errors import StudyError
from mathverify_sweep.processes import end_with_parent
from mathverify_sweep.worker import devices

_LOG_TAIL_LINES = 12


@dataclass(frozen=True)
class Job:
    """What the workers work on, and with what. `device` as in `mvsweep worker --device`."""

    study: str
    storage: str
    output: Path
    workers: int
    device: str | None


@dataclass(frozen=True)
class LocalWorkers:
    """Running workers and where they log."""

    processes: tuple[subprocess.Popen[bytes], ...]
    logs: tuple[Path, ...]

    def require_alive(self) -> None:
        """Raise StudyError with the end of a worker's log once none of them lives."""
        if any(process.poll() is None for process in self.processes):
            return
        lines = self.logs[0].read_text(encoding="utf-8", errors="replace").splitlines()
        tail = "\n".join(lines[-_LOG_TAIL_LINES:])
        raise StudyError(f"all workers have ended before the work was done; {self.logs[0]} ends:\n{tail}")


@contextmanager
def workers(job: Job) -> Iterator[LocalWorkers]:
    """Workers that live as long as the block. Afterwards, and when this process dies, they hand back what they hold."""
    logs = tuple(paths.worker_log(job.output, job.study, number) for number in range(job.workers))
    paths.study_folder(job.output, job.study).mkdir(parents=True, exist_ok=True)
    gpus = [] if job.device == "cpu" else devices.gpu_names()
    processes = tuple(_start(job, log, number % len(gpus) if gpus else None) for number, log in enumerate(logs))
    try:
        yield LocalWorkers(processes, logs)
    finally:
        _end(processes)


def _start(job: Job, log: Path, gpu: int | None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mathverify_sweep", "worker", job.study, "--output", str(job.output)]
    if gpu is not None:
        command += ["--gpu", str(gpu)]
    elif job.device:
        command += ["--device", job.device]
    # The URL may hold a password: in the environment it is not in the list of processes.
    environment = {**os.environ, **devices.shared(job.workers), "OPTUNA_STORAGE": job.storage}
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=partial(end_with_parent, signal.SIGTERM),
        )


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        process.wait()
