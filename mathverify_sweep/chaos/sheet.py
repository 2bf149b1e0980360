"""All scenarios on a user's own set-up, and a line for each: what was promised, and whether it held."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mathverify_sweep.chaos.doors import Door, door
from mathverify_sweep.chaos.scenarios import SCENARIOS, Broken, Scenario
from mathverify_sweep.chaos.stage import NeverHappened, Stage, sweep
from mathverify_sweep.store.throwaway import throwaway


@dataclass(frozen=True)
class Line:
    """One scenario, played. `broken`: what did not hold."""

    name: str
    promise: str
    seconds: float
    broken: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether all of it held."""
        return not self.broken


def play_all(url: str, scenarios: Sequence[Scenario] = SCENARIOS) -> Iterator[Line]:
    """Play the scenarios beside the database at `url`, in one that is removed afterwards. Raises StorageError."""
    with throwaway(url) as there, door(there) as way, tempfile.TemporaryDirectory(prefix="mvsweep-chaos-") as folder:
        for scenario in scenarios:
            yield play(scenario, Path(folder) / scenario.name, there, way)


def play(scenario: Scenario, folder: Path, url: str, way: Door) -> Line:
    """Play one scenario in the database at `url`, whose workers come by `way`."""
    began = time.monotonic()
    config = sweep(f"chaos-{scenario.name}", scenario.trials)
    with Stage(folder, url, config, way.url, **scenario.duty) as stage:
        try:
            scenario.play(stage, way)
            broken = tuple(stage.broken()) if scenario.ends else ()
        except (Broken, NeverHappened) as error:
            broken = (str(error),)
        finally:
            way.open()
    return Line(scenario.name, scenario.promise, time.monotonic() - began, broken)
