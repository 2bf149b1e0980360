"""A finished run, as a row of a table that W&B or a person wrote: its settings and its score by our names.

Names and values are spelled as in W&B's sweep files; a per-device batch and its accumulation are multiplied. Cells that
are neither a setting nor the score are kept as they are: they say where the run comes from.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mathverify_sweep.errors import ConfigError
from mathverify_sweep.specs import Objective
from mathverify_sweep.wandb_sweep.names import ACCUMULATION, ALIASES, MICRO_BATCH, OBJECTIVES, READ_SPLITS, spelled
from mathverify_sweep.wandb_sweep.parameters import ours


@dataclass
class Finished:
    """What a row says: settings by axis, the score by the study's objective, and the other cells as texts."""

    settings: dict[str, Any] = field(default_factory=dict)
    score: float | None = None
    rest: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def finished(cells: Mapping[str, str], objective: Objective, parse: Callable[[str, str], Any]) -> Finished:
    """Read one row. `parse`: the value of a cell's text, given its column for messages; it may raise ConfigError. A
    cell that is empty or null says nothing.

    `test_accuracy` and the like are no score: trials are ranked on validation.
    """
    found = Finished()
    factors: dict[str, Any] = {}
    for column, text in cells.items():
        name = spelled(column.removeprefix("config."))
        if not (name in (*MICRO_BATCH, *ACCUMULATION, *ALIASES) or _is_score(name, objective)):
            found.rest |= {column: text} if text else {}
            continue
        try:
            value = parse(text, column)
        except ConfigError as error:
            found.problems += [f"{column}: {problem}" for problem in error.problems]
            continue
        if value is None:
            continue
        if name in ALIASES:
            axis = ALIASES[name]
            _take(found, found.settings, axis, column, ours(axis, [value])[0])
        elif _is_score(name, objective):
            _take_score(found, column, value, objective)
        else:
            _take(found, factors, "a" if name in ACCUMULATION else "b", column, value)
    if factors:
        _multiply(found, factors)
    return found


def _is_score(name: str, objective: Objective) -> bool:
    split = next((split for split in READ_SPLITS if name.startswith(split)), "")
    return split != "test_" and OBJECTIVES.get(name.removeprefix(split)) == objective


def _take(found: Finished, into: dict[str, Any], key: str, column: str, value: Any) -> None:
    if key in into:
        found.problems.append(f"{column}: another column says the same. Keep one of them.")
    into[key] = value


def _take_score(found: Finished, column: str, value: Any, objective: Objective) -> None:
    if found.score is not None:
        found.problems.append(f"{column}: another column is the score too. Keep one of them.")
    elif not isinstance(value, int | float) or isinstance(value, bool):
        found.problems.append(f"{column}: a score is a number, got {value!r}.")
    elif objective == "validation_log_loss" and not 0 <= value <= sys.float_info.max:
        found.problems.append(f"{column}: a log-loss is a finite number from 0 on, got {value}.")
    elif objective != "validation_log_loss" and not 0 <= value <= 1:
        found.problems.append(f"{column}: a score is a share from 0 to 1, got {value}. Divide percents by 100.")
    else:
        found.score = float(value)


def _multiply(found: Finished, factors: Mapping[str, Any]) -> None:
    if "effective_batch_size" in found.settings:
        return
    if "b" not in factors or not all(isinstance(n, int) and not isinstance(n, bool) for n in factors.values()):
        found.problems.append("a per-device batch and its accumulation must both be whole numbers, to be multiplied.")
        return
    found.settings["effective_batch_size"] = factors["b"] * factors.get("a", 1)
