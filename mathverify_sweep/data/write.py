"""Labelled rows into a parquet, CSV or JSONL file that `read` reads back. The file appears whole or not at all."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from types import MappingProxyType

from mathverify_sweep.data.rows import Row
from mathverify_sweep.errors import DataError


def write(rows: Sequence[Row], path: Path) -> None:
    """Writes the rows by the path's suffix; DataError for another suffix or where the path cannot be written."""
    writer = WRITERS.get(path.suffix.lower())
    if writer is None:
        raise DataError(f"{path}: must end in {', '.join(WRITERS)}, got {path.suffix or 'no suffix'!r}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".mvsweep-", dir=path.parent) as folder:
            whole = Path(folder) / path.name
            writer(rows, whole)
            whole.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error


def _jsonl(rows: Sequence[Row], path: Path) -> None:
    lines = (json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8", newline="\n")


def _csv(rows: Sequence[Row], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(asdict, rows))


def _parquet(rows: Sequence[Row], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    pa.parquet.write_table(pa.Table.from_pylist([asdict(row) for row in rows]), path)


WRITERS: Mapping[str, Callable[[Sequence[Row], Path], None]] = MappingProxyType(
    {".parquet": _parquet, ".csv": _csv, ".jsonl": _jsonl}
)
