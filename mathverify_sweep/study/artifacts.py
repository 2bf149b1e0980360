"""A trial's note and pictures, for optuna-dashboard."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from optuna.trial import Trial

from mathverify_sweep.store.runs import Point, RunRecord


@dataclass(frozen=True)
class Page:
    """What there is to show of an ended run."""

    run: RunRecord
    points: tuple[Point, ...]
    link: str | None


def show(trial: Trial, page: Page, folder: Path) -> None:
    """WIP."""
