"""Reads YAML 1.2 that anybody may have written: small, shallow, of plain values; everything else is one ConfigError.

Refuses early: a file is measured before it is read, counted before it is built, and what its aliases stand for is
counted before anybody walks through it.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from mathverify_sweep.errors import ConfigError, shown

MAX_BYTES = 256 * 1024
MAX_VALUES = 10_000
MAX_DEPTH = 20
_INSTEAD = "Write a smaller file, or enqueue settings from a table (mvsweep enqueue --table)."


def read_text(path: Path, max_bytes: int = MAX_BYTES) -> str:
    """The text of a small regular file in UTF-8. Raises ConfigError."""
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(str(path), ["must be a file."])
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise ConfigError(str(path), [f"has more than {max_bytes:,} bytes. Write a smaller file."])
        return data.decode("utf-8-sig")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a NUL in the path
        raise ConfigError(str(path), [f"cannot be read: {error}"]) from None


def load(text: str, where: str) -> Any:
    """What a YAML 1.2 text holds (`2e-5` is a number, `no` is a word). Raises ConfigError."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    if len(text) > MAX_BYTES:
        raise ConfigError(where, [f"has more than {MAX_BYTES:,} characters. {_INSTEAD}"])
    try:
        _count_events(YAML(typ="safe", pure=True).parse(io.StringIO(text)), where)
        loaded = YAML(typ="safe", pure=True).load(io.StringIO(text))
    except (YAMLError, ValueError, TypeError, OverflowError, RecursionError) as error:
        # ValueError and the like: a date of a 13th month, a number of 5,000 digits, a list as a key.
        raise ConfigError(where, [f"not YAML: {' '.join(str(error).split())[:300]}"]) from None
    _count_values(loaded, where)
    return loaded


def dump(values: dict[str, Any]) -> str:
    """Plain values as a YAML 1.2 text, in their order."""
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = None  # what has no mapping or list in it goes on one line
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 120
    text = io.StringIO()
    yaml.dump(values, text)
    return text.getvalue()


def _count_events(events: Any, where: str) -> None:
    """The parser keeps its own stack, so that this is safe for any depth; the composer, which comes next, recurses."""
    depth = 0
    for number, event in enumerate(events):
        name = type(event).__name__
        depth += name.endswith("StartEvent")
        depth -= name.endswith("EndEvent")
        _require_size(number, depth - 2, where)  # within the stream and the document


def _count_values(loaded: Any, where: str) -> None:
    """With every alias written out: nine levels of nine aliases are a third of a billion values in 500 bytes."""
    number, stack = 0, [(loaded, 0)]
    while stack:
        value, depth = stack.pop()
        number += 1
        _require_size(number, depth, where)
        if isinstance(value, dict):
            if broken := [key for key in value if not isinstance(key, str)]:
                raise ConfigError(where, [f"keys must be words, got {shown(broken[0])}. Put it in quotes."])
            stack += [(item, depth + 1) for item in value.values()]
        elif isinstance(value, list | tuple | set):
            stack += [(item, depth + 1) for item in value]


def _require_size(number: int, depth: int, where: str) -> None:
    if number > MAX_VALUES:
        raise ConfigError(where, [f"holds more than {MAX_VALUES:,} values, its aliases written out. {_INSTEAD}"])
    if depth > MAX_DEPTH:
        raise ConfigError(where, [f"is nested more than {MAX_DEPTH} levels deep. No key of a sweep file is."])
