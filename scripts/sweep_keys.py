"""Writes the tables of `sweeps/README.md`: every key of a sweep file and every axis, from the typed config itself.

`make docs` runs it; a test holds the README to it. Touches only what stands between the two marker comments.
"""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeGuard, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mathverify_sweep.config import SweepConfig
from mathverify_sweep.specs import TrainParams

README = Path(__file__).resolve().parent.parent / "sweeps" / "README.md"
BEGIN = "<!-- written by `make docs`: begin -->"
END = "<!-- written by `make docs`: end -->"
_WORDS = {int: "integer", float: "number", str: "text", bool: "`true` or `false`", datetime: "time", Any: "any"}
_BOUNDS = ((Ge, "ge", "≥"), (Gt, "gt", ">"), (Le, "le", "≤"), (Lt, "lt", "<"))


def updated(text: str) -> str:
    """The README with its tables written again. Raises ValueError when a marker is missing."""
    if BEGIN not in text or END not in text:
        raise ValueError(f"the tables go between two lines, which must be there: {BEGIN} and {END}")
    before, rest = text.split(BEGIN, maxsplit=1)
    return f"{before}{BEGIN}\n\n{tables()}\n{END}{rest.split(END, maxsplit=1)[1]}"


def tables() -> str:
    """The keys of a sweep file, then the axes of `search_space`, as Markdown."""
    keys = "\n".join(_row(path, field) for path, field in _keys(SweepConfig, ""))
    axes = "\n".join(_row(name, field) for name, field in TrainParams.model_fields.items())
    head = "| {} | type | default | meaning |\n|---|---|---|---|\n"
    return f"### Keys\n\n{head.format('key')}{keys}\n\n### Axes of `search_space`\n\n{head.format('axis')}{axes}\n"


def _keys(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    """Every key that takes a value, with its path; sections and the items of lists of sections are walked into."""
    for name, field in model.model_fields.items():
        if _is_section(field.annotation):
            yield from _keys(field.annotation, f"{prefix}{name}.")
            continue
        yield f"{prefix}{name}", field
        for item in filter(_is_section, get_args(field.annotation)):
            yield from _keys(item, f"{prefix}{name}[].")


def _is_section(annotation: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _row(path: str, field: FieldInfo) -> str:
    kind = f"{_kind(field.annotation)}{_bounds(field)}"
    meaning = (field.description or "").replace("|", "\\|")
    return f"| `{path}` | {kind} | {_default(field)} | {meaning} |"


def _kind(annotation: Any) -> str:
    if annotation in _WORDS:
        return _WORDS[annotation]
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in args)
    if origin in (Union, types.UnionType):
        return " or ".join(_kind(arg) for arg in args if arg is not types.NoneType)
    if origin is tuple:
        return f"list of {_kind(args[0])}"
    if _is_section(annotation):
        return "mapping"
    if origin is dict:
        return "mapping"
    return _kind(args[0])  # Annotated


def _bounds(field: FieldInfo) -> str:
    pairs = [(item, bound) for item in field.metadata for bound in _BOUNDS]
    found = [f"{sign} {getattr(item, name)}" for item, (kind, name, sign) in pairs if isinstance(item, kind)]
    return f" {', '.join(found)}" if found else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "–" if value is None else f"`{json.dumps(value)}`"


if __name__ == "__main__":
    try:
        README.write_text(updated(README.read_text(encoding="utf-8")), encoding="utf-8")
    except (OSError, ValueError) as problem:
        sys.exit(f"{README}: {problem}")
