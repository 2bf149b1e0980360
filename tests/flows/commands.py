"""`mvsweep` as a user runs it: processes of their own, on a small study of the built-in model."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mathverify_sweep.reports.models import StatusReport

SWEEP = """
study: flow
base_model: {name: "builtin:tiny", quantization: nf4}
data: {source: generated, generated_rows: 1_500, train_rows: 256, validation_rows: 100}
search_space:
  learning_rate: {low: 1e-4, high: 1e-2, log: true}
  lora_r: {choices: [4, 8]}
  effective_batch_size: 16
training: {max_length: 128, rung_rows: 100}
pruner: {type: none}
budget: {trials: 4}
promotion: {stages: [256, 0.5, all]}
tracking: {wandb: disabled}
"""

STARTED_SECONDS = 120.0

FIRST_ON_POSTGRESQL = pytest.mark.parametrize(
    "backend", [pytest.param("sqlite", marks=pytest.mark.slow), "postgresql"], indirect=True
)
"""Of flows that train for long: on the database where several hosts meet in `make test`, on both in the long tests."""


@dataclass(frozen=True)
class Shell:
    """A folder with a sweep file, and the database that its commands use."""

    folder: Path
    storage: str

    @classmethod
    def at(cls, folder: Path, storage: str, sweep: str = SWEEP) -> Shell:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "flow.yaml").write_text(sweep)
        return cls(folder, storage)

    def start(self, *arguments: str, stderr: int = subprocess.STDOUT) -> subprocess.Popen[str]:
        """A command in the background; its output is read when it ends."""
        environment = {**os.environ, "OPTUNA_STORAGE": self.storage, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
        return subprocess.Popen(
            [sys.executable, "-m", "mathverify_sweep", *arguments],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )

    def run(self, *arguments: str, code: int = 0) -> str:
        """A command to its end; its output. Fails when the exit code is another."""
        return ended(self.start(*arguments), code)

    def json(self, *arguments: str) -> str:
        """What a command prints for programs: standard output alone."""
        return ended(self.start(*arguments, "-f", "json", stderr=subprocess.DEVNULL))

    def worker(self, *more: str) -> subprocess.Popen[str]:
        """A CPU worker that notices the dead after two seconds."""
        return self.start("worker", "flow", "--device", "cpu", "--lease", "1", *more)

    def status(self) -> StatusReport:
        return StatusReport.model_validate_json(self.json("status", "flow"))

    def wait_until(self, holds: Callable[[StatusReport], bool]) -> StatusReport:
        """Watch the study until something holds."""
        deadline = time.monotonic() + STARTED_SECONDS
        while time.monotonic() < deadline:
            if holds(report := self.status()):
                return report
        raise AssertionError(f"it never came to that: {self.run('status', 'flow')}")


def ended(process: subprocess.Popen[str], code: int = 0) -> str:
    """Wait for a command; its output."""
    output, _ = process.communicate(timeout=280)
    assert process.returncode == code, f"exit code {process.returncode}:\n{output}"
    return output
