"""What the published reports conclude, from the runs of `sweeps/conclusions.yaml`: effects with intervals, and figures.

An effect is the mean over pairs of runs that are alike in all but one axis. Its interval has both noises in it, that of
runs and that of questions.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.readings import Read, labels_of, loss, points, reading_of, table
from mathverify_sweep.metrics import CONFIDENCE, Floats, Interval, cluster_numbers
from mathverify_sweep.states import RunState
from mathverify_sweep.store import runs, studies
from mathverify_sweep.store.runs import RunRecord
from mathverify_sweep.study import drawings, views
from mathverify_sweep.verifiers import verifier

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine as Database

STUDIES = "conclusions_"
RESAMPLES = 4_000

Cell = tuple[int, int, float, str, int]
"""Seed, rank, learning rate, schedule, effective batch size."""
AXES = ("seed", "rank", "learning rate", "schedule", "effective batch")

CONTRASTS: tuple[tuple[int, object, object], ...] = (
    (1, 64, 8),
    (2, 1e-4, 1e-5),
    (2, 5e-4, 1e-4),
    (3, "cosine", "linear"),
    (4, 32, 8),
)
"""Which axis of a cell, and which of its values is held against which."""


@dataclass(frozen=True)
class Effect:
    """One value of an axis against another, at one learning rate or at all of them."""

    name: str
    where: str
    pairs: int
    accuracy: Interval
    log_loss: Interval


def study_of(seed: int) -> str:
    """The study of the designed experiment with that seed."""
    return f"{STUDIES}{seed}"


def conclusions(database: Database, to: Path) -> str:
    """Effects, settings, noise and importance as tables; figures into the folder."""
    names = [name for name in sorted(studies.names(database)) if name.startswith(STUDIES)]
    finished = [run for name in names for run in all_finished(database, name)]
    if not finished:
        return "No trial has got to its end.\n"
    labels, questions = labels_of(finished[0])
    cells = {_cell(run): reading_of(database, run, labels) for run in finished}
    (to / "conclusions.svg").write_text(_by_rate(cells), encoding="utf-8")
    effects = _effects(cells, questions)
    named = {f"{each.name}, {each.where}": each.log_loss for each in effects}
    drawn = drawings.intervals("What moves the log-loss", "validation log-loss, 95 % intervals", named)
    (to / "effects.svg").write_text(drawn, encoding="utf-8")
    spec = verifier.model(finished[0]).spec
    told = (
        f"{len(cells)} runs of {spec.train_rows:,} rows; {len(questions):,} validation rows of {len(set(questions)):,}"
    )
    parts = [
        told + " questions.\n",
        _told(effects),
        _levels(cells),
        _noise(cells),
        importance(database, names),
    ]
    return "\n".join(parts)


def _cell(run: RunRecord) -> Cell:
    assert run.spec is not None
    params = run.spec.params
    learnt = params.learning_rate, params.lr_scheduler_type, params.effective_batch_size
    return (run.spec.seed, params.lora_r, *learnt)


def _effects(cells: dict[Cell, Read], questions: Sequence[str]) -> list[Effect]:
    """Each contrast over all pairs of cells that are alike in all else, and over those of one learning rate."""
    found = []
    for axis, high, low in CONTRASTS:
        for rate in (None, *sorted({cell[2] for cell in cells})):
            pairs = [] if rate is not None and axis == 2 else _pairs(cells, (axis, high, low), rate)
            if pairs:
                accuracy = crossed_gain(np.array([a.right - b.right for a, b in pairs]), questions)
                losses = crossed_gain(np.array([a.losses - b.losses for a, b in pairs]), questions)
                where = "all" if rate is None else f"{rate:g}"
                found.append(Effect(f"{AXES[axis]} {high} minus {low}", where, len(pairs), accuracy, losses))
    return found


def _pairs(cells: dict[Cell, Read], of: tuple[int, object, object], rate: float | None) -> list[tuple[Read, Read]]:
    """The runs that differ in that axis alone, at that learning rate if there is one."""
    axis, high, low = of
    return [
        (a, b)
        for cell, a in cells.items()
        for other, b in cells.items()
        if (cell[axis], other[axis]) == (high, low)
        and (*cell[:axis], *cell[axis + 1 :]) == (*other[:axis], *other[axis + 1 :])
        and rate in (None, cell[2])
    ]


def _told(effects: Sequence[Effect]) -> str:
    lines = [[each.name, each.where, str(each.pairs), points(each.accuracy), loss(each.log_loss)] for each in effects]
    return table(["effect", "learning rate", "pairs of runs", "accuracy, points [95 %]", "log-loss [95 %]"], lines)


def crossed_gain(gains: Floats, questions: Sequence[str], seed: int = 0) -> Interval:
    """The mean of (pairs, rows) numbers; percentile bootstrap that draws pairs and whole questions at once.

    The pigeonhole bootstrap (Owen, Annals of Applied Statistics 1, 2007): it leans to intervals that are too wide.
    """
    clusters = cluster_numbers(questions)
    sizes = np.bincount(clusters).astype(np.float64)
    totals = np.array([np.bincount(clusters, weights=row) for row in gains])
    rng = np.random.default_rng(seed)
    of_pairs = rng.multinomial(len(gains), np.full(len(gains), 1 / len(gains)), RESAMPLES).astype(np.float64)
    of_questions = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), RESAMPLES).astype(np.float64)
    sums = np.einsum("sp,ps->s", of_pairs, totals @ of_questions.T)
    means = sums / (of_pairs.sum(axis=1) * (of_questions @ sizes))
    low, high = np.quantile(means, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return Interval(float(gains.mean()), float(low), float(high))


def _levels(cells: dict[Cell, Read]) -> str:
    """The mean figures of every setting over its seeds, the lowest log-loss first."""
    by_setting: dict[tuple[object, ...], list[Read]] = defaultdict(list)
    for cell, read in cells.items():
        by_setting[cell[1:]].append(read)
    found = [
        (float(np.mean([read.losses.mean() for read in reads])), [float(read.right.mean()) for read in reads], setting)
        for setting, reads in by_setting.items()
    ]
    lines = [
        [*(str(value) for value in setting), f"{lost:.4f}", ", ".join(f"{value:.4f}" for value in right)]
        for lost, right, setting in sorted(found, key=lambda each: each[0])
    ]
    return table([*AXES[1:], "log-loss", "accuracy, seed by seed"], lines)


def _noise(cells: dict[Cell, Read]) -> str:
    """How far two runs of one setting are apart: what a difference between two single runs has to be held against."""
    pairs = [
        (read, cells[other]) for cell, read in cells.items() if cell[0] == 0 and (other := (1, *cell[1:])) in cells
    ]
    if not pairs:
        return ""
    right = np.array([a.right.mean() - b.right.mean() for a, b in pairs])
    losses = np.array([a.losses.mean() - b.losses.mean() for a, b in pairs])
    spread = [float(np.sqrt(np.mean(apart**2) / 2)) for apart in (right, losses)]
    return (
        f"Two runs of one setting that differ in the seed alone, {len(pairs)} pairs: the standard deviation of one "
        f"run is {100 * spread[0]:.2f} points of accuracy and {spread[1]:.4f} of log-loss.\n"
    )


def _by_rate(cells: dict[Cell, Read]) -> str:
    """Mean log-loss over the learning rate, a curve for each rank and effective batch size."""
    found: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (_, rank, rate, _, batch), read in sorted(cells.items()):
        found[f"r {rank}, {batch} rows"][math.log10(rate)].append(float(read.losses.mean()))
    named = {
        name: [(rate, float(np.mean(losses))) for rate, losses in by_rate.items()] for name, by_rate in found.items()
    }
    return drawings.curves("Log-loss by learning rate", "learning rate, log10", "validation log-loss", named)


def all_finished(database: Database, name: str) -> list[RunRecord]:
    """The trials that were trained to their end, each by its last attempt."""
    trials = [run for run in runs.runs(database, name) if run.stage is None and run.spec is not None]
    return [run for run in trials if run.state is RunState.COMPLETE]


def importance(database: Database, names: Sequence[str]) -> str:
    """The shares of the axes in what makes finished trials differ, study by study."""
    found = {name: views.parameter_importances(database, name) for name in names}
    axes = list(dict.fromkeys(axis for shares in found.values() for axis in shares))
    lines = [[axis, *(f"{found[name].get(axis, 0.0):.2f}" for name in names)] for axis in axes]
    return table(["importance (fANOVA of the log-loss)", *names], lines)
