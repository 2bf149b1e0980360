"""One parameter of a W&B sweep: its distribution as an entry of our search space."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mathverify_sweep.specs import TrainParams
from mathverify_sweep.wandb_sweep.names import VALUES, nearest

RANGES = (
    "uniform",
    "int_uniform",
    "q_uniform",
    "log_uniform",
    "log_uniform_values",
    "q_log_uniform",
    "q_log_uniform_values",
    "inv_log_uniform",
    "inv_log_uniform_values",
)
WITHOUT_COUNTERPART = (
    "normal",
    "q_normal",
    "log_normal",
    "q_log_normal",
    "beta",
    "q_beta",
    "categorical_w_probabilities",
)


class Unreadable(Exception):
    """A parameter that cannot be read: the key below it, and a sentence."""

    def __init__(self, key: str, sentence: str) -> None:
        self.key = key
        self.sentence = sentence


def entry(axis: str, given: Mapping[str, Any]) -> tuple[Any, str]:
    """A parameter as an entry of our search space, and a remark. Raises Unreadable."""
    if "parameters" in given:
        raise Unreadable(".parameters", "nested parameters have no counterpart. Name the axis at the top.")
    kind = given.get("distribution") or _implied(given)
    if kind in WITHOUT_COUNTERPART or "probabilities" in given:
        advice = "Give `values` without probabilities." if "probabilities" in given else "Give min and max instead."
        raise Unreadable(".distribution", f"{kind} has no counterpart here. {advice}")
    if kind == "constant":
        return ours(axis, [given.get("value")])[0], ""
    if kind == "categorical":
        return _categorical(axis, given.get("values"))
    if kind not in RANGES:
        raise Unreadable(
            ".distribution", f"unknown distribution {kind!r}. {nearest(str(kind), (*RANGES, 'categorical'))}"
        )
    for bound in ("min", "max"):
        if not isinstance(given.get(bound), int | float) or isinstance(given[bound], bool):
            raise Unreadable(f".{bound}", f"{kind} needs a number, got {given.get(bound)!r}.")
    return _range(kind, given, whole=TrainParams.model_fields[axis].annotation is int)


def _implied(given: Mapping[str, Any]) -> str:
    """The distribution that W&B takes when none is named."""
    if "value" in given:
        return "constant"
    if "values" in given:
        return "categorical_w_probabilities" if "probabilities" in given else "categorical"
    if "mu" in given or "sigma" in given:
        return "normal"
    if not {"min", "max"} & given.keys():
        raise Unreadable("", f"needs value, values, or min and max, got {dict(given)!r}.")
    return "int_uniform" if all(isinstance(given.get(b), int) for b in ("min", "max")) else "uniform"


def _categorical(axis: str, values: Any) -> tuple[Any, str]:
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise Unreadable(".values", f"must be a list of at least one value, got {values!r}.")
    once = list(dict.fromkeys(ours(axis, values)))
    remark = ", each once" if len(once) < len(values) else ""
    return (once[0] if len(once) == 1 else {"choices": once}), remark


def _range(kind: str, given: Mapping[str, Any], *, whole: bool) -> tuple[dict[str, Any], str]:
    low, high, q = float(given["min"]), float(given["max"]), given.get("q", 1)
    log, remark = "log" in kind, ""
    if kind in ("log_uniform", "q_log_uniform", "inv_log_uniform"):
        if max(abs(low), abs(high)) > 100:
            raise Unreadable("", f"{kind} takes exponents of e, got {low:g} and {high:g}. Use {kind}_values.")
        low, high = (-high, -low) if kind == "inv_log_uniform" else (low, high)
        remark = f", from e^{low:g} to e^{high:g}"
        low, high = float(f"{math.exp(low):.6g}"), float(f"{math.exp(high):.6g}")
    entry: dict[str, Any] = {"log": True} if log else {}
    if kind == "q_uniform":
        low, high = round(round(low / q) * q, 12), round(round(high / q) * q, 12)
        entry = {"step": int(q) if whole and q == int(q) else q}
        remark = f", multiples of {q:g}"
    elif kind == "int_uniform" and not whole:
        entry = {"step": 1}
    elif kind.startswith("q_") and not (whole and q == 1):
        remark += f"; q = {q:g} left out, a log range has no steps here"
    if whole:
        low, high = round(low), round(high)
    return {"low": low, "high": high, **entry}, remark


def ours(axis: str, values: Iterable[Any]) -> list[Any]:
    """Values in our spelling; 8.0 is a whole number where the axis takes whole numbers."""
    names = VALUES.get(axis, {})
    whole = TrainParams.model_fields[axis].annotation is int
    tidy = [int(v) if whole and isinstance(v, float) and v.is_integer() else v for v in values]
    return [names.get(v.lower(), v) if isinstance(v, str) else v for v in tidy]


def constant(given: Mapping[str, Any]) -> Any:
    """The one value of a parameter, or None."""
    values = given.get("values")
    if isinstance(values, Sequence) and not isinstance(values, str) and len(values) == 1:
        return values[0]
    return given.get("value")


def listed(given: Mapping[str, Any]) -> list[int]:
    """The whole numbers that a parameter lists; none when it does not."""
    values = given.get("values", [given.get("value")])
    good = isinstance(values, Sequence) and all(isinstance(v, int) and not isinstance(v, bool) for v in values)
    return list(values) if good else []


def highest(of: Any) -> float:
    """The highest number among an entry's values; 0 when there is none."""
    values = [of["high"]] if isinstance(of, dict) and "high" in of else of
    values = values["choices"] if isinstance(values, dict) else values if isinstance(values, list) else [values]
    return max((float(v) for v in values if isinstance(v, int | float)), default=0.0)
