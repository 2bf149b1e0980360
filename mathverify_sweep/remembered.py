"""What was measured on this user's machines, by name, in JSON files of the user's cache: lost, it is measured again."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any


def read(file: Path) -> dict[str, Any]:
    """All that the file has; nothing while there is none, or when it is not whole."""
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def write(file: Path, name: str, value: object) -> None:
    """Put a value, which goes to JSON, beside those of other names. Of two who write at once, one may be forgotten."""
    known = read(file) | {name: value}
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{random.getrandbits(32):08x}.partial")
    partial.write_text(json.dumps(known, indent=1), encoding="utf-8")
    partial.replace(file)
