"""The search space of a sweep file: which values an axis may take, and how sampled values become TrainParams.

An axis is a key of `TrainParams`. Its entry is a plain value (fixed), `{choices: [...]}`, or `{low: ..., high: ...}`
with `log` or `step`; whether a range is whole numbers follows from the axis. `when` makes an entry conditional.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from mathverify_sweep.specs import TrainParams

Value = bool | int | float | str

MAX_GRID = 10_000
"""Points of the largest grid that a study takes."""
MAX_STEPS = 100_000
"""Steps of the finest range; beyond, no range without steps could be told from it."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; `whole` when the axis takes integers."""

    low: float
    high: float
    whole: bool
    log: bool = False
    step: float | None = None

    def __str__(self) -> str:
        kind = ("log " if self.log else "") + ("int" if self.whole else "float")
        return f"{kind} {self.low:g} to {self.high:g}" + (f" by {self.step:g}" if self.step else "")


@dataclass(frozen=True)
class Choices:
    """One of these values, in no order."""

    choices: tuple[Value, ...]

    def __str__(self) -> str:
        return "one of " + ", ".join(str(c) for c in self.choices)


@dataclass(frozen=True)
class Axis:
    """A tuned axis. It is sampled only while every axis named in `when` has one of the listed values."""

    name: str
    distribution: Range | Choices
    when: Mapping[str, tuple[Value, ...]]

    def applies(self, chosen: Mapping[str, Value]) -> bool:
        """Whether the axis is sampled, given the values chosen so far (tuned and fixed)."""
        return all(name in chosen and chosen[name] in values for name, values in self.when.items())

    def takes(self, value: Value) -> bool:
        """Whether a value that the axis could have by its type is among those that are tuned."""
        of = self.distribution
        if isinstance(of, Choices) or of.step is not None or of.whole:
            return value in grid_values(of)
        return of.low <= float(value) <= of.high


@dataclass(frozen=True)
class SearchSpace:
    """Tuned axes, in an order in which every condition comes before the axes that ask for it, and fixed values."""

    axes: tuple[Axis, ...]
    fixed: Mapping[str, Value]

    def values_of(self, name: str) -> tuple[Value, ...]:
        """The values that a run may have on an axis of words: its choices, its fixed value, or its default."""
        return _values_of(name, {axis.name: axis for axis in self.axes}, self.fixed)

    def params(self, sampled: Mapping[str, Value]) -> TrainParams:
        """The parameters of a run: sampled over fixed over defaults."""
        return TrainParams.model_validate({**self.fixed, **sampled})

    @property
    def grid_size(self) -> int | None:
        """Number of points of the grid; None when an axis is a range without a step. Beyond MAX_GRID an upper bound."""
        if any(isinstance(d, Range) and not d.step and not d.whole for d in (a.distribution for a in self.axes)):
            return None
        size = math.prod(len(grid_values(axis.distribution)) for axis in self.axes)
        return size if size > MAX_GRID else len(self.grid())

    def grid(self) -> tuple[dict[str, Value], ...]:
        """Every point of the grid once, conditional axes only where they apply. Not for ranges without a step."""
        points: dict[str, dict[str, Value]] = {}
        for values in itertools.product(*(grid_values(axis.distribution) for axis in self.axes)):
            point = self._applying(values)
            points.setdefault(repr(point), point)
        return tuple(points.values())

    def _applying(self, values: Sequence[Value]) -> dict[str, Value]:
        """One value for each axis, without those of the axes that do not apply."""
        chosen = dict(self.fixed)
        for axis, value in zip(self.axes, values, strict=True):
            if axis.applies(chosen):
                chosen[axis.name] = value
        return {name: value for name, value in chosen.items() if name not in self.fixed}


def grid_values(distribution: Range | Choices) -> tuple[Value, ...]:
    """The values of an axis on a grid: the choices, or the range in its steps (1 for whole numbers)."""
    if isinstance(distribution, Choices):
        return distribution.choices
    # In decimals: 3 steps of 0.1 from 0 would end above 0.3.
    low, high, step = (Decimal(str(n)) for n in (distribution.low, distribution.high, distribution.step or 1))
    values = (low + i * step for i in range(int((high - low) // step) + 1))
    return tuple(int(v) if distribution.whole else float(v) for v in values)


def parse(entries: Mapping[str, Any]) -> tuple[SearchSpace, list[str]]:
    """Read the `search_space` section. Returns the space of all good entries, and one sentence per problem.

    A problem starts with its key path; unknown axes are the caller's, since it knows how to name the nearest key.
    """
    problems: list[str] = []
    axes: list[Axis] = []
    fixed: dict[str, Value] = {}
    for name, entry in entries.items():
        key = f"search_space.{name}"
        if isinstance(entry, Mapping):
            axis, found = _axis(name, key, entry)
            problems += found
            if axis is not None:
                axes.append(axis)
        else:
            problems += _problems_of_value(name, key, entry)
            fixed[name] = entry
    problems += _unknown_conditions(axes, {*fixed, *(a.name for a in axes)})
    if not problems:
        problems += [*_idle_conditions(axes, fixed), *_conflicts(axes, fixed)]
    ordered, cyclic = _in_order(axes, fixed)
    problems += [f"search_space.{a.name}.when: conditions form a circle. Remove one of them." for a in cyclic]
    return SearchSpace(tuple(ordered), fixed), problems


def value_problem(name: str, value: object) -> str | None:
    """Why `value` cannot be a value of the axis `name`; None when it can. The sentence starts with the rule."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)  # which an axis of floats takes too
    try:
        _adapter(name).validate_python(value, strict=not is_whole or TrainParams.model_fields[name].annotation is bool)
    except ValidationError as error:
        return "; ".join(e["msg"][0].lower() + e["msg"][1:] for e in error.errors())
    return None


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    field = TrainParams.model_fields[name]
    return TypeAdapter(_annotated(field.annotation, tuple(field.metadata)))


def _annotated(annotation: Any, metadata: tuple[Any, ...]) -> Any:
    return Annotated[annotation, *metadata] if metadata else annotation


def _is_whole(name: str) -> bool:
    """Whether the axis takes whole numbers."""
    return TrainParams.model_fields[name].annotation is int


def _is_number(name: str) -> bool:
    return TrainParams.model_fields[name].annotation in (int, float, float | None)


def _axis(name: str, key: str, entry: Mapping[str, Any]) -> tuple[Axis | None, list[str]]:
    known = {"choices", "when"} if "choices" in entry else {"low", "high", "log", "step", "when"}
    problems = [
        f"{key}.{k}: not a key of this kind of entry. Known: {', '.join(sorted(known))}."
        for k in entry
        if k not in known
    ]
    when, found = _conditions(key, entry.get("when", {}))
    problems += found
    distribution: Range | Choices | None
    if "choices" in entry:
        distribution, found = _choices(name, key, entry["choices"])
    else:
        distribution, found = _range(name, key, entry)
    problems += found
    return (None if distribution is None or problems else Axis(name, distribution, when)), problems


def _choices(name: str, key: str, choices: object) -> tuple[Choices | None, list[str]]:
    if not isinstance(choices, list) or not choices:
        return None, [f"{key}.choices: must be a list of at least one value, got {choices!r}."]
    bad = [c for c in choices if value_problem(name, c)]
    if bad:
        rule = value_problem(name, bad[0])
        return None, [f"{key}.choices: {rule}, got {choices!r}. Remove {', '.join(map(repr, bad))}."]
    if len(set(map(repr, choices))) < len(choices):
        return None, [f"{key}.choices: each value once, got {choices!r}. Remove the repeated ones."]
    return Choices(tuple(choices)), []


def _range(name: str, key: str, entry: Mapping[str, Any]) -> tuple[Range | None, list[str]]:
    if not _is_number(name):
        return None, [f"{key}: this axis is not a number. Give `choices: [...]` or one value."]
    missing = [k for k in ("low", "high") if k not in entry]
    if missing:
        return None, [
            f"{key}: a range needs low and high, got {dict(entry)!r}. Add {' and '.join(missing)}, or give `choices`."
        ]
    problems = [
        f"{key}.{k}: {rule}, got {entry[k]!r}." for k in ("low", "high") if (rule := _end_problem(name, entry[k]))
    ]
    log, step = entry.get("log", False), entry.get("step")
    if not isinstance(log, bool):
        problems.append(f"{key}.log: must be true or false, got {log!r}.")
    if step is not None and not (isinstance(step, int | float) and not isinstance(step, bool) and 0 < step < math.inf):
        problems.append(f"{key}.step: must be a number above 0, got {step!r}.")
    elif step is not None and _is_whole(name) and step != int(step):
        problems.append(f"{key}.step: must be a whole number, as the axis, got {step!r}.")
    if step is not None and log is True:
        problems.append(f"{key}: a log range has no step. Remove `log` or `step`.")
    if problems:
        return None, problems
    low, high = entry["low"], entry["high"]
    if low >= high:
        return None, [f"{key}: low must be below high, got {low} and {high}. Swap them, or give one fixed value."]
    if log and low <= 0:
        return None, [f"{key}.low: a log range starts above 0, got {low}."]
    if step is not None and (high - low) / step >= MAX_STEPS:
        return None, [f"{key}.step: a range has at most {MAX_STEPS:,} steps, got {step!r}. Use a larger one, or none."]
    return Range(low, high, _is_whole(name), log, step), []


def _end_problem(name: str, value: object) -> str | None:
    return "must be a number" if value is None else value_problem(name, value)


def _conditions(key: str, when: object) -> tuple[dict[str, tuple[Value, ...]], list[str]]:
    if not isinstance(when, Mapping):
        return {}, [
            f"{key}.when: must name axes and their values, got {when!r}. Example: when: {{lr_scheduler_type: cosine}}."
        ]
    return {name: tuple(v) if isinstance(v, list) else (v,) for name, v in when.items()}, []


def _problems_of_value(name: str, key: str, value: object) -> list[str]:
    rule = value_problem(name, value)
    return [f"{key}: {rule}, got {value!r}."] if rule else []


def _unknown_conditions(axes: list[Axis], names: set[str]) -> list[str]:
    return [
        f"search_space.{axis.name}.when: {name} is not in the search space. Add it, or remove the condition."
        for axis in axes
        for name in axis.when
        if name not in names
    ]


def _idle_conditions(axes: list[Axis], fixed: Mapping[str, Value]) -> list[str]:
    """Conditions on values that never come."""
    tuned = {axis.name: axis for axis in axes}
    return [
        f"search_space.{axis.name}.when.{name}: never {value!r}. It may be {', '.join(map(str, possible))}."
        for axis in axes
        for name, values in axis.when.items()
        if name in fixed or isinstance(tuned[name].distribution, Choices)
        for possible in [_values_of(name, tuned, fixed)]
        for value in values
        if value not in possible
    ]


def _conflicts(axes: list[Axis], fixed: Mapping[str, Value]) -> list[str]:
    tuned = {axis.name: axis for axis in axes}
    given = {*tuned, *fixed}
    problems = []
    if {"lora_alpha", "lora_alpha_ratio"} <= given and not (tuned.get("lora_alpha") and tuned["lora_alpha"].when):
        problems.append("search_space.lora_alpha: give either lora_alpha or lora_alpha_ratio, got both. Remove one.")
    for name, scheduler in (("lr_num_cycles", "cosine_with_restarts"), ("lr_decay_share", "warmup_stable_decay")):
        if name in tuned and scheduler not in _values_of("lr_scheduler_type", tuned, fixed):
            problems.append(
                f"search_space.{name}: only {scheduler} reads it, and lr_scheduler_type is never that. Remove it."
            )
    return problems


def _values_of(name: str, tuned: Mapping[str, Axis], fixed: Mapping[str, Value]) -> tuple[Value, ...]:
    if name in tuned and isinstance(tuned[name].distribution, Choices):
        return tuned[name].distribution.choices  # type: ignore[union-attr]
    return (fixed.get(name, TrainParams.model_fields[name].default),)


def _in_order(axes: list[Axis], fixed: Mapping[str, Value]) -> tuple[list[Axis], list[Axis]]:
    """Axes with conditions after the axes they ask for; the second list holds those in a circle."""
    placed: list[Axis] = []
    waiting = list(axes)
    while waiting:
        known = {*fixed, *(a.name for a in placed)}
        tuned = {a.name for a in axes}
        ready = [a for a in waiting if all(n in known or n not in tuned for n in a.when)]
        if not ready:
            return placed, waiting
        placed += ready
        waiting = [a for a in waiting if a not in ready]
    return placed, []
