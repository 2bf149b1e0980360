"""How a worker works, as `mvsweep worker` is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mathverify_sweep.worker.devices import Device
from mathverify_sweep.worker.engine import EngineOptions


@dataclass(frozen=True)
class WorkerOptions:
    """How one worker works. `count`: runs it takes at most. `until_idle`: it ends when the study has nothing left."""

    output: Path
    device: Device
    engine: EngineOptions = field(default_factory=EngineOptions)
    count: int | None = None
    until_idle: bool = False
    trust_gpu: bool = False
    lease_seconds: float = 60.0
    hang_seconds: float = 1800.0
    checkpoint_seconds: float = 300.0
    time_limit_seconds: float | None = None
