"""Reads a sweep file (YAML 1.2) and reports every problem at once, each with its key path.

Knows the rules across sections; `config.py` has the keys, `search_space.py` the axes, `wandb_sweep` W&B's files.
"""

from __future__ import annotations

import csv
import difflib
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from mathverify_sweep import paths, safe_yaml, search_space, wandb_sweep
from mathverify_sweep.config import DataConfig, PromotionConfig, SweepConfig
from mathverify_sweep.data import prompts
from mathverify_sweep.errors import ConfigError, shown
from mathverify_sweep.search_space import SearchSpace
from mathverify_sweep.specs import TrainParams

YAML = (".yaml", ".yml")
MAX_PROBLEMS = 50
"""Problems of a file that are told; of more than these, a person mends the first and looks again."""
MAX_TABLE_BYTES = 16 * 1024 * 1024
"""Of a CSV of settings or runs: some 40,000 of them."""
MAX_RUNGS = 1_000
"""Reports of one trial at even rungs; each is asked of the database."""


def load(path: Path, overrides: Sequence[str] = ()) -> SweepConfig:
    """Read a sweep file, ours or W&B's. Relative paths in it are relative to its folder; `overrides` are
    `key.path=value`, and our keys in either case.

    Raises ConfigError with every problem of the file.
    """
    raw = read_yaml(path)
    if wandb_sweep.looks_like(raw):
        raw, _ = wandb_sweep.read(raw, str(path))
    for override in overrides:
        _apply(raw, override, str(path))
    return validate(raw, str(path), path.parent)


def read_as(name: str | Path) -> tuple[str, ...]:
    """What each key of a W&B sweep file is read as, a line each; none for a sweep file of ours. Raises ConfigError."""
    path = _path(str(name))
    raw = read_yaml(path) if path is not None else {}
    return tuple(wandb_sweep.read(raw, str(name))[1]) if wandb_sweep.looks_like(raw) else ()


def find(name: str, overrides: Sequence[str] = ()) -> SweepConfig | None:
    """The sweep file at a path, or one that ships with the package by its name; None when `name` is neither."""
    path = _path(name)
    return load(path, overrides) if path is not None else None


def require(name: str, overrides: Sequence[str] = ()) -> SweepConfig:
    """`find`, or a ConfigError that names the sweep files that ship with the package."""
    config = find(name, overrides)
    if config is None:
        there = ", ".join(_shipped())
        raise ConfigError(name[:120], [f"must be a path that ends in .yaml, or a sweep file that ships here: {there}."])
    return config


def _path(name: str) -> Path | None:
    return Path(name) if Path(name).suffix in YAML else _shipped().get(name)


def _shipped() -> dict[str, Path]:
    """The sweep files that ship with the package by their names: `quickstart`, `published/000/sweep`."""
    folder = paths.sweeps_folder()
    return {str(file.relative_to(folder).with_suffix("")): file for file in sorted(folder.rglob("*.yaml"))}


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML 1.2 file holds (`2e-5` is a number, `no` is a word). Raises ConfigError."""
    loaded = safe_yaml.load(safe_yaml.read_text(path), str(path))
    if not isinstance(loaded, dict):
        raise ConfigError(str(path), [f"must be a mapping of keys to values, got {type(loaded).__name__}."])
    return loaded


def validate(raw: Mapping[str, Any], where: str, folder: Path) -> SweepConfig:
    """A SweepConfig from what a file holds. Raises ConfigError with every problem, each with its key path."""
    problems: list[str] = []
    config = _parsed(raw, problems)
    if config is not None:
        problems += _across_sections(config)
        texts = _texts(config.prompts, folder, problems)
        problems += _template_problems(config, texts)
        config = config.model_copy(update={"prompts": texts, "data": _from_folder(config.data, folder)})
    if problems or config is None:
        raise ConfigError(where, _first(list(dict.fromkeys(problems))))
    return config


def moved(raw: Mapping[str, Any], folder: Path, to: Path) -> dict[str, Any]:
    """A file of `folder` as it means the same in the folder `to`: with other relative paths of data and templates."""

    def there(name: str) -> str:
        return name if Path(name).is_absolute() else os.path.relpath((folder / name).resolve(), to.resolve())

    found = dict(raw)
    data = raw.get("data", {})
    if _is_file(str(data.get("source", ""))):
        found["data"] = {**data, "source": there(data["source"])}
    if "prompts" in raw:
        found["prompts"] = {name: text if "{" in text else there(text) for name, text in raw["prompts"].items()}
    return found


def assignments(texts: Sequence[str]) -> dict[str, Any]:
    """`axis=value` texts as a mapping, values read as YAML. Raises ConfigError."""
    found: dict[str, Any] = {}
    for text in texts:
        _apply(found, text, "--set")
    return found


def promotion(config: SweepConfig, overrides: Sequence[str]) -> PromotionConfig:
    """How the study promotes, with some of its `promotion.` keys overridden. Raises ConfigError with every problem."""
    others = [text for text in overrides if not text.startswith("promotion.")]
    if others:
        raise ConfigError("--set", [f"only keys under `promotion.` can be set here, got {text!r}." for text in others])
    raw: dict[str, Any] = {"study": config.study, "promotion": config.promotion.model_dump(mode="json")}
    for text in overrides:
        _apply(raw, text, "--set")
    return validate(raw, "--set", Path()).promotion


def read_table(path: Path) -> list[dict[str, Any]]:
    """A CSV with one setting a row and one axis a column, empty cells left out; values read as YAML."""
    rows = read_cells(path)
    return [{axis: safe_yaml.load(text, f"{path}: {axis}") for axis, text in row.items() if text} for row in rows]


def read_cells(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV as texts, by the names in its first line. Raises ConfigError."""
    try:
        rows = list(csv.DictReader(io.StringIO(safe_yaml.read_text(path, MAX_TABLE_BYTES), newline="")))
    except csv.Error as error:
        raise ConfigError(str(path), [f"cannot be read as CSV: {error}"]) from None
    if any(None in row or None in row.values() for row in rows):
        raise ConfigError(str(path), ["every row must have as many cells as the first line has columns."])
    return rows


def known_axes() -> tuple[str, ...]:
    """The axes that a search space may name."""
    return tuple(TrainParams.model_fields)


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean ...?` for a misspelt name, or the list of known ones."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"Did you mean {close[0]}?" if close else f"Known: {', '.join(sorted(known))}."


def _apply(raw: dict[str, Any], override: str, where: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise ConfigError(where, [f"--set takes key.path=value, got {override!r}. Example: --set budget.trials=4"])
    *parents, last = key.split(".")
    section = raw
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise ConfigError(where, [f"--set {key}: {parent} is a value, not a section."])
    section[last] = safe_yaml.load(value, f"--set {key}")


def _parsed(raw: Mapping[str, Any], problems: list[str]) -> SweepConfig | None:
    """The file with its broken keys left out, so that rules across sections are checked even so; or None."""
    found = _broken_keys(raw)
    problems += [message for _, message in found]
    good = _without(raw, [location for location, _ in found])
    space = good.get("search_space", {})
    if isinstance(space, dict):
        unknown = [name for name in space if name not in TrainParams.model_fields]
        problems += [f"search_space.{name}: unknown axis. {nearest(str(name), known_axes())}" for name in unknown]
        good = {**good, "search_space": {k: v for k, v in space.items() if k not in unknown}}
        problems += search_space.parse(good["search_space"])[1]
    try:
        return SweepConfig.model_validate({"study": "unnamed", **good})
    except ValidationError:
        return None


def _broken_keys(raw: Mapping[str, Any]) -> list[tuple[tuple[str | int, ...], str]]:
    try:
        SweepConfig.model_validate(raw)
    except ValidationError as error:
        return [(_location(e["loc"], raw), _sentence(e)) for e in error.errors()]
    return []


def _location(loc: tuple[str | int, ...], raw: Any) -> tuple[str | int, ...]:
    """The part of pydantic's location that is a path in the file (it appends names of union members)."""
    path: list[str | int] = []
    for part in loc:
        is_key = isinstance(raw, Mapping) and part in raw
        is_item = isinstance(raw, list) and isinstance(part, int) and part < len(raw)
        if not (is_key or is_item):
            break
        raw = raw[part]
        path.append(part)
    return tuple(path)


def _sentence(error: Any) -> str:
    loc = [part for part in error["loc"] if not re.fullmatch(r"constrained-\w+|literal\[.*\]", str(part))]
    key = ".".join(map(str, loc))
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key. {nearest(str(loc[-1]), _fields_at(loc[:-1]))}"
    if error["type"] == "missing":
        return f"{key}: is required. Add it."
    if error["type"] == "string_pattern_mismatch":
        return (
            f"{key}: letters, digits, dot, dash and underscore, a letter or digit first, got {shown(error['input'])}."
        )
    rule = error["msg"].removeprefix("Value error, ")
    return f"{key}: {rule[0].lower()}{rule[1:]}, got {shown(error['input'])}."


def _fields_at(loc: Sequence[str | int]) -> list[str]:
    model: type[BaseModel] = SweepConfig
    for part in loc:
        if isinstance(part, int):  # an item of the list before it
            continue
        annotation = model.model_fields[part].annotation
        members = [annotation, *get_args(annotation)]
        model = next(m for m in members if isinstance(m, type) and issubclass(m, BaseModel))
    return list(model.model_fields)


def _without(raw: Any, locations: Sequence[tuple[str | int, ...]]) -> dict[str, Any]:
    """A copy of the file without the keys at `locations` (a whole list goes when one of its items is broken)."""
    drop = {tuple(loc[: next((i for i, p in enumerate(loc) if isinstance(p, int)), len(loc))]) for loc in locations}

    def copy(value: Any, path: tuple[str | int, ...]) -> Any:
        if isinstance(value, Mapping):
            return {k: copy(v, (*path, k)) for k, v in value.items() if (*path, k) not in drop}
        return value

    copied: dict[str, Any] = copy(raw, ())
    return copied


def _first(problems: list[str]) -> list[str]:
    left_out = len(problems) - MAX_PROBLEMS
    return problems if left_out <= 0 else [*problems[:MAX_PROBLEMS], f"… and {left_out} more."]


def _across_sections(config: SweepConfig) -> list[str]:
    problems = []
    first, rows = config.first_rung, config.data.train_rows
    if first >= rows and config.pruner.type != "none":
        problems.append(f"pruner.min_rows: must be below data.train_rows ({rows}), got {first}. Lower it.")
    if config.pruner.type in ("median", "none") and rows // first > MAX_RUNGS:
        problems.append(f"pruner.min_rows: a trial has at most {MAX_RUNGS:,} rungs, got {rows // first:,}. Raise it.")
    points = config.space.grid_size if config.sampler.type == "grid" else 0
    if points is None:
        problems.append(
            "sampler.type: a grid needs choices or stepped ranges on every axis. Give steps, or use quasi_random."
        )
    elif points > search_space.MAX_GRID:
        problems.append(
            f"sampler.type: a grid has at most {search_space.MAX_GRID} points, got {points}. Use larger steps, or tpe."
        )
    if config.budget.deadline is not None and config.budget.deadline.tzinfo is None:
        problems.append(
            f"budget.deadline: needs a time zone, got {config.budget.deadline.isoformat()}. Add Z or +01:00."
        )
    if (config.task == "solving") != (config.objective == "pass_at_1"):
        problems.append(
            f"objective: the task solving is ranked by pass_at_1, and no other task is, got {config.objective}. "
            "Change one of the two."
        )
    if config.task == "solving" and config.data.balance:
        problems.append("data.balance: rows of the task solving are all of one class. Remove it.")
    for position, settings in enumerate(config.enqueue):
        problems += enqueue_problems(config.space, settings, f"enqueue.{position}")
    return problems


def enqueue_problems(space: SearchSpace, settings: Mapping[str, Any], key: str) -> list[str]:
    """Why these settings cannot be enqueued: they must name tuned axes that apply, with values that the axis takes."""
    tuned = {axis.name: axis for axis in space.axes}
    given = {**space.fixed, **settings}
    problems = [] if settings else [f"{key}: names no axis. Give at least one, or remove the entry."]
    for name, value in settings.items():
        if name not in tuned:
            problems.append(f"{key}.{name}: not a tuned axis of this study. {nearest(str(name), tuned)}")
        elif rule := search_space.value_problem(name, value):
            problems.append(f"{key}.{name}: {rule}, got {shown(value)}.")
        elif not tuned[name].takes(value):
            problems.append(
                f"{key}.{name}: the axis is {tuned[name].distribution}, got {shown(value)}. Widen it in the file."
            )
        elif any(other in given and given[other] not in values for other, values in tuned[name].when.items()):
            when = ", ".join(f"{other} is {' or '.join(map(str, v))}" for other, v in tuned[name].when.items())
            problems.append(f"{key}.{name}: only applies when {when}. Remove it, or set that.")
    return problems


def _texts(prompts: Mapping[str, str], folder: Path, problems: list[str]) -> dict[str, str]:
    """Templates as texts: a value without a placeholder names a file beside the sweep file."""
    texts = {}
    for name, value in prompts.items():
        if "{" in value:
            texts[name] = value
            continue
        try:
            texts[name] = safe_yaml.read_text(folder / value).rstrip("\n")
        except ConfigError as error:
            problems.append(
                f"prompts.{name}: must be a template with {{question}}, or a file beside the sweep file: "
                f"{error.problems[0]}"
            )
    return texts


def _template_problems(config: SweepConfig, texts: Mapping[str, str]) -> list[str]:
    found = (prompts.problems(name, text, config.task) for name, text in texts.items())
    problems = [f"prompts.{problem}" for of_text in found for problem in of_text]
    known = (*prompts.built_in(config.task), *texts)
    for name in config.space.values_of("prompt_template"):
        if name not in known:
            problems.append(f"search_space.prompt_template: no template {name!r}. {nearest(str(name), known)}")
    return problems


def _from_folder(data: DataConfig, folder: Path) -> DataConfig:
    """A local data file named relative to the sweep file becomes absolute, so that workers may start anywhere."""
    if not _is_file(data.source):
        return data
    return data.model_copy(update={"source": str((folder / data.source).resolve())})


def _is_file(source: str) -> bool:
    return re.search(r"\.(parquet|csv|jsonl)$", source) is not None
