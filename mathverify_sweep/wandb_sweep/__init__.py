"""A W&B sweep file, read as a sweep file of ours; each of its keys says what it was read as.

Refuses what has no counterpart here (nested parameters, normal and beta distributions, weighted choices), and names the
key. W&B's file has no model and no data: sections of ours (`base_model`, `data`, ...) may stand beside its keys.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

from mathverify_sweep import search_space
from mathverify_sweep.config import DataConfig, SweepConfig
from mathverify_sweep.errors import ConfigError
from mathverify_sweep.wandb_sweep.names import (
    ACCUMULATION,
    ALIASES,
    METHODS,
    MICRO_BATCH,
    OBJECTIVES,
    READ_SPLITS,
    SETTINGS,
    nearest,
    spelled,
)
from mathverify_sweep.wandb_sweep.parameters import Unreadable, constant, entry, highest, listed

IGNORED = ("program", "command", "description", "controller", "job", "image_uri", "queue")
WANDB_KEYS = ("method", "metric", "parameters", "early_terminate", "run_cap", "name", "project", "entity", *IGNORED)
OUR_KEYS = tuple(key for key in SweepConfig.model_fields if key not in ("study", "search_space"))


def looks_like(raw: Mapping[str, Any]) -> bool:
    """Whether a file is a W&B sweep file and not one of ours."""
    return ("parameters" in raw or "method" in raw) and not ({"search_space", "study"} & raw.keys())


def read(raw: Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    """What a sweep file of ours would hold, and one line for each key that says what it was read as.

    The study is called as the sweep, or as the file `where`. Raises ConfigError with every problem, by the file's keys.
    """
    reader = _Reader(raw)
    reader.read(Path(where).stem)
    if reader.problems:
        raise ConfigError(where, reader.problems)
    return reader.sweep, reader.lines


class _Reader:
    """The file on its way: what it amounts to, what to tell, what is wrong."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw = raw
        self.sweep: dict[str, Any] = {
            key: dict(raw[key]) if isinstance(raw[key], Mapping) else raw[key] for key in OUR_KEYS if key in raw
        }
        self.lines: list[str] = []
        self.problems: list[str] = []
        self._space: dict[str, Any] = {}
        self._named: dict[str, str] = {}

    def read(self, stem: str) -> None:
        known = (*WANDB_KEYS, *OUR_KEYS)
        self.problems += [f"{key}: unknown key. {nearest(key, known)}" for key in self.raw if key not in known]
        self._name(stem)
        self._method()
        self._metric()
        self._parameters()
        self._early_terminate()
        if "run_cap" in self.raw:
            self._put("budget.trials", self.raw["run_cap"], "run_cap")
        elif self.raw.get("method") != "grid" and "budget" not in self.raw:
            self.lines.append("run_cap: not in the file; budget.trials stays at its default of 31")
        for key in ("project", "entity"):
            if key in self.raw:
                self._put(f"tracking.{key}", self.raw[key], key)
        self.lines += [f"{key}: ignored, mvsweep trains by itself" for key in IGNORED if key in self.raw]
        for section in ("base_model", "data"):
            if section not in self.sweep:
                self.lines.append(f"{section}: not in the file, the default. Add a section `{section}:` to name yours.")

    def _put(self, path: str, value: object, key: str, remark: str = "") -> None:
        """Set a key of our file, unless a section of ours in the file has it, and say so."""
        *sections, last = path.split(".")
        at = self.sweep
        for section in sections:
            at = at.setdefault(section, {})
        if isinstance(at, dict):
            at.setdefault(last, value)
        self.lines.append(f"{key}: {path} {value}{remark}")

    def _name(self, stem: str) -> None:
        name = self.raw.get("name")
        study = re.sub(r"[^A-Za-z0-9._-]+", "-", str(name or stem)).strip("-._") or "sweep"
        self._put("study", study, "name", "" if name else ", after the file")

    def _method(self) -> None:
        method = self.raw.get("method")
        if method not in METHODS:
            self.problems.append(f"method: must be random, grid or bayes, got {method!r}.")
        else:
            self._put("sampler.type", METHODS[method], "method")

    def _metric(self) -> None:
        metric = self.raw.get("metric")
        if metric is None:
            self.lines.append("metric: not in the file, the default objective validation_accuracy")
            return
        name = metric.get("name") if isinstance(metric, Mapping) else None
        if not isinstance(name, str):
            self.problems.append(f"metric: must hold a name and a goal, got {metric!r}.")
            return
        base = spelled(name)
        split = next((split for split in READ_SPLITS if base.startswith(split)), "")
        objective = OBJECTIVES.get(base.removeprefix(split))
        if objective is None:
            self.problems.append(
                f"metric.name: trials are ranked by val_accuracy, val_loss or val_auc, got {name!r}. Name one of them."
            )
            return
        goal = "minimize" if objective == "validation_log_loss" else "maximize"
        if metric.get("goal", goal) != goal:
            self.problems.append(f"metric.goal: the goal of {name} is to {goal} it, got {metric['goal']!r}.")
        remark = "; the test split is read once, at the end" if split == "test_" else ""
        self._put("objective", objective, f"metric {name}", remark)

    def _parameters(self) -> None:
        parameters = self.raw.get("parameters")
        if not isinstance(parameters, Mapping) or not parameters:
            self.problems.append(f"parameters: must name at least one parameter, got {parameters!r}.")
            return
        for name, given in parameters.items():
            key = f"parameters.{name}"
            if not isinstance(given, Mapping):
                self.problems.append(f"{key}: must be a mapping like {{values: [...]}}, got {given!r}.")
            elif spelled(name) not in (*MICRO_BATCH, *ACCUMULATION):
                self._parameter(key, spelled(name), given)
        self._batches({name: given for name, given in parameters.items() if isinstance(given, Mapping)})
        if not self.problems:
            self.problems += [self._by_our_name(problem) for problem in search_space.parse(self._space)[1]]
        self.sweep["search_space"] = self._space

    def _parameter(self, key: str, name: str, given: Mapping[str, Any]) -> None:
        if name in ALIASES:
            self._axis(key, ALIASES[name], given)
        elif name in SETTINGS:
            self._setting(key, SETTINGS[name], given)
        elif name in ("epochs", "num_epochs", "num_train_epochs"):
            if constant(given) != 1:
                self.problems.append(f"{key}: a trial is one epoch over data.train_rows rows. Give `value: 1`.")
            self.lines.append(f"{key}: one epoch, as every trial")
        elif name in ("load_in_4bit", "load_in_8bit") and isinstance(constant(given), bool):
            if constant(given):
                self._put("base_model.quantization", "nf4" if name == "load_in_4bit" else "int8", key)
        else:
            known = (*ALIASES, *SETTINGS, *MICRO_BATCH, *ACCUMULATION)
            self.problems.append(f"{key}: no axis is called that. {nearest(name, known)}")

    def _setting(self, key: str, path: str, given: Mapping[str, Any]) -> None:
        value = constant(given)
        if value is None:
            self.problems.append(f"{key}: {path} is the same for all trials of a study. Give one `value`.")
        else:
            self._put(path, value, key)

    def _axis(self, key: str, axis: str, given: Mapping[str, Any]) -> None:
        if axis in self._space:
            self.problems.append(f"{key}: {self._named[axis]} is {axis} too. Remove one of them.")
            return
        try:
            found, remark = entry(axis, given)
            if key.lower().endswith("ratio") and axis == "warmup_steps" and highest(found) >= 1:
                raise Unreadable("", "a ratio is a share below 1. Lower it, or call it warmup_steps.")
        except Unreadable as error:
            self.problems.append(f"{key}{error.key}: {error.sentence}")
            return
        self._add(key, axis, found, remark)

    def _add(self, key: str, axis: str, found: Any, remark: str) -> None:
        self._space[axis] = found
        self._named[axis] = key
        space, problems = search_space.parse({axis: found})
        self.problems += [self._by_our_name(problem) for problem in problems]
        read_as = str(space.axes[0].distribution) if space.axes else f"fixed at {found}"
        self.lines.append(f"{key}: {axis}, {read_as}{remark}")

    def _batches(self, parameters: Mapping[str, Mapping[str, Any]]) -> None:
        """Rows of a forward pass, times how many are accumulated, is the effective batch size."""
        micro = [name for name in parameters if spelled(name) in MICRO_BATCH]
        accumulation = [name for name in parameters if spelled(name) in ACCUMULATION]
        names = micro + accumulation
        if len(micro) > 1 or len(accumulation) > 1:
            self.problems.append(f"parameters: {' and '.join(names)} say the same. Keep one of each.")
        elif accumulation and not micro:
            self.problems.append(f"parameters.{names[0]}: needs per_device_train_batch_size beside it. Add it.")
        elif len(micro) == 1 and not accumulation:
            self._axis(f"parameters.{micro[0]}", "effective_batch_size", parameters[micro[0]])
        elif names:
            factors = [listed(parameters[name]) for name in names]
            for name, values in zip(names, factors, strict=True):
                if not values:
                    self.problems.append(
                        f"parameters.{name}: needs whole numbers in `value` or `values` to be multiplied."
                    )
            choices = sorted({math.prod(values) for values in product(*factors)})
            if choices and "effective_batch_size" not in self._space:
                found = {"choices": choices} if len(choices) > 1 else choices[0]
                self._add(f"parameters.{' x '.join(names)}", "effective_batch_size", found, ", the products")

    def _early_terminate(self) -> None:
        given = self.raw.get("early_terminate")
        if given is None:
            if "pruner" not in self.raw:
                self._put("pruner.type", "none", "early_terminate", ": not in the file, nothing ends early")
            return
        known = ("type", "min_iter", "max_iter", "s", "eta", "strict")
        if not isinstance(given, Mapping) or given.get("type") != "hyperband":
            self.problems.append(f"early_terminate.type: W&B has hyperband, got {given!r}.")
            return
        self.problems += [f"early_terminate.{k}: unknown key. {nearest(k, known)}" for k in given if k not in known]
        numbers: dict[str, Any] = {name: given[name] for name in ("min_iter", "max_iter", "s", "eta") if name in given}
        wrong = [name for name, n in numbers.items() if not isinstance(n, int) or isinstance(n, bool) or n < 1]
        if wrong or not numbers.keys() & {"min_iter", "max_iter"}:
            self.problems += [f"early_terminate.{k}: must be a whole number above 0, got {given[k]!r}." for k in wrong]
            if not wrong:
                self.problems.append("early_terminate: hyperband needs min_iter, or max_iter and s. Add them.")
            return
        eta = numbers.get("eta", 3)
        self._put("pruner.type", "hyperband", "early_terminate")
        self._put("pruner.reduction_factor", eta, "early_terminate.eta", "" if "eta" in given else ", W&B's default")
        self._first_rung({**numbers, "eta": eta})

    def _first_rung(self, numbers: Mapping[str, int]) -> None:
        """W&B counts how often a metric was logged; here a rung is a number of rows."""
        data = self.raw.get("data")
        rows = data.get("train_rows") if isinstance(data, Mapping) else None
        rows = rows if isinstance(rows, int) else DataConfig().train_rows
        last = numbers.get("max_iter")
        if last is None:
            self.lines.append(
                f"early_terminate.min_iter: {numbers['min_iter']} is no number of rows without max_iter; "
                "pruner.min_rows stays an eighth of data.train_rows"
            )
            return
        first = numbers.get("min_iter") or last / numbers["eta"] ** numbers.get("s", 1)
        remark = f": iteration {first:g} of {last} read as that share of data.train_rows = {rows}"
        self._put("pruner.min_rows", max(1, round(rows * first / last)), "early_terminate", remark)

    def _by_our_name(self, problem: str) -> str:
        """A problem of the search space with the key that this file has for it."""
        key, _, sentence = problem.partition(":")
        _, axis, *rest = key.split(".")
        names = {"choices": "values", "low": "min", "high": "max", "step": "q"}
        at = "".join(f".{names.get(part, part)}" for part in rest)
        return f"{self._named.get(axis, f'parameters.{axis}')}{at}:{sentence}"
