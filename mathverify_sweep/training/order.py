"""What an engine is asked for, and what every engine can do. Imports no torch: engines without it exist."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mathverify_sweep.specs import DataSpec, RunResult, RunSpec, Split
from mathverify_sweep.training.reporter import Reporter

KEPT_CHECKPOINTS = 2
"""How many checkpoints a run keeps: one more than is needed, should the last be damaged."""


@dataclass(frozen=True)
class Order:
    """One attempt of a run: what to train, where to leave it, and what there is to go on from.

    `start_adapter` is where the run itself begins; `resume_from` are the folders of its earlier attempts, newest first.
    """

    spec: RunSpec
    folder: Path
    start_adapter: Path | None = None
    resume_from: tuple[Path, ...] = ()
    checkpoint_seconds: float = 300.0


class Engine(Protocol):
    """Trains runs on one device. What goes wrong with a run ends that run, as its result, and no other."""

    def prepare(self, data: DataSpec, fingerprint: str) -> None:
        """Read the data of the runs to come. Raises DataDrift when it is not the study's."""

    def free_slots(self) -> int:
        """How many more runs can be started now."""

    def start(self, run_id: str, order: Order, reporter: Reporter) -> None:
        """Take a run into a slot; its training happens in `step`."""

    def step(self) -> list[tuple[str, RunResult]]:
        """Some work for all runs in slots; the runs that ended by it, which have left their slots."""

    def told(self) -> str:
        """How it uses its device, in one line; more is known once it has taken a run."""

    def score(self, spec: RunSpec, adapter: Path | None, split: Split) -> tuple[float, ...]:
        """The log-odds of a split's rows in its order, by an adapter of the spec's shape or by the base model alone."""
