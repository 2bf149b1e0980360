"""What is known from elsewhere: a W&B sweep file as one of ours, and tables of finished runs as trials of a study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mathverify_sweep import safe_yaml, search_space, sweep_file, wandb_sweep
from mathverify_sweep.errors import ConfigError, shown
from mathverify_sweep.search_space import SearchSpace
from mathverify_sweep.specs import TrainParams
from mathverify_sweep.study import imported
from mathverify_sweep.study.imported import Known
from mathverify_sweep.wandb_sweep.finished import Finished, finished

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine as Database

    from mathverify_sweep.study.study import StudyHandle


@dataclass(frozen=True)
class Imported:
    """`added` trials, not counting those that were there; why rows were left out; columns kept beside the trials."""

    study: str
    added: int
    left_out: tuple[str, ...]
    kept: tuple[str, ...]


def from_wandb_sweep(path: Path, folder: Path | None = None) -> str:
    """A sweep file of ours that means what W&B's does, with a comment for each of its keys. Raises ConfigError.

    `folder`: where it will lie, which its relative paths are then relative to; absent: where W&B's lies.
    """
    raw = sweep_file.read_yaml(path)
    if not wandb_sweep.looks_like(raw):
        raise ConfigError(str(path), ["must be a W&B sweep file, with `method` and `parameters`. It is used as it is."])
    ours, lines = wandb_sweep.read(raw, str(path))
    sweep_file.validate(ours, str(path), path.parent)
    if folder is not None:
        ours = sweep_file.moved(ours, path.parent, folder)
    return "".join(f"# {line}\n" for line in lines) + safe_yaml.dump(ours)


def from_table(database: Database, study: StudyHandle, path: Path, completed: bool) -> Imported:
    """Take the rows of a CSV over as trials: enqueued, or with `completed` complete, where their scores count.

    A row that the study's search space cannot have is left out. Raises ConfigError when none is left.
    """
    known: list[Known] = []
    left_out: list[str] = []
    kept: dict[str, None] = {}
    for number, cells in enumerate(sweep_file.read_cells(path), 1):
        row = finished(cells, study.config.objective, safe_yaml.load)
        problems = [f"row {number}: {problem}" for problem in row.problems]
        problems += _impossible(row.settings, f"row {number}")
        settings = row.settings if problems else _as_tuned(study.config.space, row.settings)
        if not problems:
            problems = _problems(study.config.space, settings, f"row {number}")
        if completed and not problems:
            problems += _missing(study, settings, row, f"row {number}")
        tuned = {axis.name: settings[axis.name] for axis in study.config.space.axes if axis.name in settings}
        if problems:
            left_out += problems
            continue
        kept |= dict.fromkeys(row.rest)
        origin = {"file": path.name, "row": number, "score": row.score, "cells": row.rest}
        known.append(Known(tuned, origin, row.score if completed else None))
    if not known:
        raise ConfigError(str(path), left_out or ["has no rows."])
    added = imported.add(database, study.config.study, study.config.space, known)
    return Imported(study.config.study, added, tuple(left_out), tuple(kept))


def _impossible(settings: Mapping[str, Any], key: str) -> list[str]:
    """Why no study can have these settings."""
    rules = {name: search_space.value_problem(name, value) for name, value in settings.items()}
    return [f"{key}.{name}: {rule}, got {shown(settings[name])}." for name, rule in rules.items() if rule]


def _as_tuned(space: SearchSpace, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Alpha as this study has it: absolute, or as a multiple of the rank."""
    given = dict(settings)
    names = {*space.fixed, *(axis.name for axis in space.axes)}
    rank = given.get("lora_r", space.fixed.get("lora_r"))
    if isinstance(rank, int) and "lora_alpha" in given and "lora_alpha" not in names:
        given["lora_alpha_ratio"] = given.pop("lora_alpha") / rank
    elif isinstance(rank, int) and "lora_alpha_ratio" in given and "lora_alpha" in names:
        given["lora_alpha"] = given.pop("lora_alpha_ratio") * rank
    return given


def _problems(space: SearchSpace, settings: Mapping[str, Any], key: str) -> list[str]:
    """Why the study cannot have these settings."""
    tuned = {axis.name for axis in space.axes}
    default = TrainParams().model_dump()
    problems = [
        f"{key}.{name}: not tuned here, it is {shown(space.fixed.get(name, default[name]))}, got {shown(value)}."
        for name, value in settings.items()
        if name not in tuned and value != space.fixed.get(name, default[name])
    ]
    chosen = {name: value for name, value in settings.items() if name in tuned}
    return problems + sweep_file.enqueue_problems(space, chosen, key)


def _missing(study: StudyHandle, settings: Mapping[str, Any], row: Finished, key: str) -> list[str]:
    """What a complete trial must have: a score, and a value for each axis that applies."""
    space = study.config.space
    problems = [] if row.score is not None else [f"{key}: no column is a score for {study.config.objective}."]
    chosen = {**space.fixed, **settings}
    return problems + [
        f"{key}.{axis.name}: a complete trial has a value for every tuned axis. Add a column, or leave out --completed."
        for axis in space.axes
        if axis.applies(chosen) and axis.name not in settings
    ]
