"""`mvsweep doctor`: everything that a worker on this machine needs, looked at side by side in under 20 seconds."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mathverify_sweep.operations import accelerator, machine, services
from mathverify_sweep.operations.findings import Check, Finding, Level, examine
from mathverify_sweep.specs import Frozen
from mathverify_sweep.store.health import sqlite_file

BUSY = "The machine is very busy, or hangs: try again"


class Diagnosis(Frozen):
    """What was found, in the order in which it is read."""

    healthy: bool
    seconds: float
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Patient:
    """What a worker would be started with."""

    storage: str
    output: Path
    study: str | None


def diagnose(patient: Patient) -> Diagnosis:
    """Look at everything. Raises StorageError when the database's URL is none."""
    started = time.monotonic()
    findings = examine(_checks(patient))
    healthy = all(finding.level is not Level.PROBLEM for finding in findings)
    return Diagnosis(healthy=healthy, seconds=time.monotonic() - started, findings=tuple(findings))


def _checks(patient: Patient) -> list[Check]:
    url, name, file = patient.storage, patient.study, sqlite_file(patient.storage)
    no_server = "Check its URL, that it runs, and that this machine reaches it"
    full = "Its file system hangs: look at the mount"
    checks = [
        Check("python", machine.python, 10, BUSY),
        Check("gpu", accelerator.driver, accelerator.DRIVER_SECONDS + 1, BUSY),
        Check("torch", accelerator.training, accelerator.TORCH_SECONDS + 1, BUSY),
        Check("memory", machine.memory, 5, BUSY),
        Check("output", partial(machine.disk, "output", patient.output), 10, full),
        Check("clock", machine.clock, 10, BUSY),
        Check("database", partial(services.storage, url), 15, no_server),
        Check("wandb", partial(services.wandb, url, name), 15, "Its server does not answer; runs are recorded offline"),
        Check("hub", services.hub, 10, "Its server does not answer: set HF_HUB_OFFLINE=1"),
    ]
    if file is not None:
        checks.insert(-2, Check("disk", partial(machine.disk, "disk", file.parent), 10, full))
    if name is not None:
        checks.insert(-2, Check("study", partial(services.study, url, name), 15, no_server))
    return checks
