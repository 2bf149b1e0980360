"""Which device a worker trains on: a GPU by number, the first one that no other worker here holds, or the CPU."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from mathverify_sweep import environment
from mathverify_sweep.errors import ConfigError


@dataclass(frozen=True)
class Device:
    """A device as the engine sees it (`torch_name`, `environment`) and as people do (`label`).

    `model` is what it is, whichever of several. `lock` keeps a GPU that was chosen automatically from other workers of
    this machine while it is open.
    """

    torch_name: str
    label: str
    environment: Mapping[str, str] = field(default_factory=dict)
    lock: IO[bytes] | None = None
    model: str = "cpu"

    @property
    def kind(self) -> str:
        """What is measured on one of a kind holds for all: of a CPU so many threads, where the machine is the same."""
        if self.torch_name != "cpu":
            return self.model
        return f"cpu, {environment.threads({**os.environ, **self.environment})} thread(s)"


def choose(gpu: int | None, device: str | None) -> Device:
    """The device for `--gpu N` (which several workers may share on purpose), `--device cpu`, or a free one.

    Raises ConfigError when the machine has no such GPU, or when none is free.
    """
    if device == "cpu":
        return Device("cpu", "cpu", {"CUDA_VISIBLE_DEVICES": ""})
    if device not in (None, "cuda"):
        raise ConfigError("--device", [f"must be cpu or cuda, got {device!r}."])
    names = gpu_names()
    if gpu is not None:
        if gpu >= len(names):
            raise ConfigError("--gpu", [f"this machine has {len(names)} GPU(s), got number {gpu}. Count from 0."])
        return _gpu(gpu, names[gpu], None)
    for number, name in enumerate(names):
        lock = _try_lock(number)
        if lock is not None:
            return _gpu(number, name, lock)
    if names:
        raise ConfigError("--gpu", [f"another worker holds each of the {len(names)} GPUs. Share one with --gpu N."])
    if device == "cuda":
        raise ConfigError("--device", ["nvidia-smi shows no GPU on this machine. Use --device cpu."])
    return choose(None, "cpu")


def shared(workers: int) -> dict[str, str]:
    """The variables of each of so many workers that share this machine's CPU, unless its user has set them."""
    threads = max(1, (os.cpu_count() or 1) // workers)
    return {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(threads)}


def pretended(gpu: int | None) -> Device:
    """A device for a worker that only rehearses; any number will do."""
    return Device("cpu", "cpu" if gpu is None else f"gpu {gpu} (pretended)", {"CUDA_VISIBLE_DEVICES": ""})


def gpu_names() -> list[str]:
    """Names of this machine's NVIDIA GPUs, in nvidia-smi's order; empty without a driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False, timeout=60)
    return answer.stdout.splitlines() if answer.returncode == 0 else []


def _gpu(number: int, name: str, lock: IO[bytes] | None) -> Device:
    # PCI order, so that numbers are nvidia-smi's.
    variables = {"CUDA_VISIBLE_DEVICES": str(number), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    return Device("cuda:0", f"gpu {number} ({name})", variables, lock, name)


def _try_lock(number: int) -> IO[bytes] | None:
    file = (Path(tempfile.gettempdir()) / f"mvsweep-gpu-{number}.lock").open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file
