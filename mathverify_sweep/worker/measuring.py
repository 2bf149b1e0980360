"""How fast this machine's engines are on a study: measured in processes like a worker's, and remembered for workers.

Writes the user's cache of rates, and the one of token budgets that an engine writes; nothing else stays.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from statistics import fmean

from pydantic import ValidationError

from mathverify_sweep import paths, rates, remembered
from mathverify_sweep.config import SweepConfig
from mathverify_sweep.errors import MvsweepError
from mathverify_sweep.rates import Rates
from mathverify_sweep.specs import RunSpec
from mathverify_sweep.worker.devices import Device
from mathverify_sweep.worker.engine import Engine, EngineOptions
from mathverify_sweep.worker.messages import Measuring, Prepare, Ready, Refused, Sample, Timed

Tell = Callable[[str], None]
"""Hears what is going on, in words."""


@dataclass(frozen=True)
class Bench:
    """What is measured: engines with these options on one device, as many as share it, each by the same trials."""

    device: Device
    options: EngineOptions
    engines: int
    specs: tuple[RunSpec, ...]


@dataclass(frozen=True)
class Found:
    """What came of it; of several engines the mean. `note`: why the engine is not the packed one."""

    rates: Rates
    engine: str
    note: str | None
    how: str
    load_seconds: float
    peak_bytes: int
    device_bytes: int


def measure(bench: Bench, tell: Tell) -> Found:
    """Measure, which takes some seconds to minutes. Raises MvsweepError."""
    with tempfile.TemporaryDirectory(prefix="mvsweep-plan-") as folder:
        children: list[_Child] = []
        try:
            tell("loading the base model and the data")
            children += (_Child(bench, Path(folder) / f"{number}") for number in range(bench.engines))
            while waiting := [child for child in children if child.timed is None]:
                wait([child.engine.connection for child in waiting])
                for child in waiting:
                    child.hear(tell if child is children[0] else lambda _: None)
        finally:
            for child in children:
                child.engine.kill()
    return _together(children)


def remember(config: SweepConfig, fingerprint: str, bench: Bench, found: Found) -> None:
    """Keep what was measured for the workers of this study, on this device and with these options."""
    name = _name(config, fingerprint, bench.device, bench.options)
    remembered.write(paths.rates_file(), name, found.rates.model_dump(mode="json"))


def known(config: SweepConfig, fingerprint: str, device: Device, options: EngineOptions) -> Rates | None:
    """What `remember` kept last for such a worker."""
    found = remembered.read(paths.rates_file()).get(_name(config, fingerprint, device, options))
    try:
        return None if found is None else Rates.model_validate(found)
    except ValidationError:  # of another version
        return None


class _Child:
    """An engine that measures itself, and what it has said."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        spec = bench.specs[0]
        self._started = time.monotonic()
        self.load_seconds = 0.0
        self.ready: Ready | None = None
        self.timed: Timed | None = None
        self.engine = Engine(bench.device, bench.options, folder / "engine.log")
        sample = Sample(specs=bench.specs, folder=str(folder))
        self.engine.send(
            Prepare(base_model=spec.base_model, data=spec.data, data_fingerprint=spec.data_fingerprint, sample=sample)
        )

    def hear(self, tell: Tell) -> None:
        """What it says next, if it has said something."""
        message = self.engine.receive(0)
        if isinstance(message, Refused):
            raise MvsweepError(message.message)
        if isinstance(message, Ready):
            self.ready = message
            self.load_seconds = time.monotonic() - self._started
        elif isinstance(message, Measuring):
            tell(message.what)
        elif isinstance(message, Timed):
            self.timed = message


def _together(children: Sequence[_Child]) -> Found:
    ready, timed = children[0].ready, [child.timed for child in children if child.timed]
    assert ready is not None
    return Found(
        rates=rates.mean([one.measured.rates for one in timed]),
        engine=ready.engine,
        note=ready.note,
        how=timed[0].measured.how,
        load_seconds=fmean(child.load_seconds for child in children),
        peak_bytes=max(one.measured.peak_memory_bytes for one in timed),
        device_bytes=timed[0].device_bytes,
    )


def _name(config: SweepConfig, fingerprint: str, device: Device, options: EngineOptions) -> str:
    """Of all that decides how fast a worker is."""
    parts = config.model_dump(mode="json", include={"base_model", "prompts", "search_space", "training"})
    parts |= {"data": fingerprint, "engine": options.name, "slots": options.slots, "tokens": options.token_budget}
    return f"{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]} {device.kind}"
