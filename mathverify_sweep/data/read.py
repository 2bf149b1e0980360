"""Where rows come from: a parquet, CSV or JSONL file, or a data set on the Hugging Face hub.

Parquet and the hub are read with `datasets`. CSV and JSONL are read with the standard library: `datasets` guesses a
type per column (an answer `007` becomes 7, `NA` nothing, a date a timestamp) and cannot say which row is broken.
A local file leaves nothing behind; a hub data set is cached where the Hugging Face libraries cache.
"""

from __future__ import annotations

import csv
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from mathverify_sweep.data.rows import Table
from mathverify_sweep.errors import DataError, HubUnreachable

if TYPE_CHECKING:
    from datasets import Dataset

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
OTHER_SUFFIXES = (".json", ".tsv", ".txt", ".xlsx", ".xls", ".arrow", ".feather", ".gz", ".zip", ".pkl", ".db")
"""Endings that mean a file and no name on the hub, so that the message can say what a source must be."""


def is_local(source: str) -> bool:
    """Whether a source names a file here rather than a data set on the hub."""
    path = Path(source).expanduser()
    return path.suffix.lower() in (*READERS, *OTHER_SUFFIXES) or path.exists() or not HUB_NAME.fullmatch(source)


def read(source: str, revision: str | None = None) -> Table:
    """The columns of a local file, or of a hub data set at a revision."""
    if not is_local(source):
        return _hub(source, revision)
    path = Path(source).expanduser()
    if revision is not None:
        raise DataError(f"{source}: data.revision is for data sets on the hub, and this is a file. Remove it")
    reader = READERS.get(path.suffix.lower())
    if path.is_dir() or reader is None:
        what = "a folder" if path.is_dir() else f"of the kind {path.suffix or 'without suffix'!r}"
        raise DataError(f"{source}: data.source must be a {', '.join(READERS)} file or a hub data set, got {what}")
    if not path.exists():
        raise DataError(f"{source}: no such file (looked in {path.resolve().parent})")
    try:
        return Table(source, reader(path))
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error.strerror or error}") from error


Columns = dict[str, list[object]]


def _csv(path: Path) -> Columns:
    with _text_lines(path) as lines:
        reader = csv.reader(lines, strict=True)
        try:
            header = next(reader, [])
            if len(set(header)) != len(header) or not any(header):
                raise DataError(f"{path}: the first line must name each column once, got {header}")
            records = [record for record in reader if record]
        except csv.Error as error:
            raise DataError(f"{path}: not valid CSV at line {reader.line_num}: {error}") from error
    for number, record in enumerate(records, start=1):
        if len(record) != len(header):
            raise DataError(f"{path}: row {number} has {len(record)} fields where the header has {len(header)}")
    return {name: [record[i] for record in records] for i, name in enumerate(header)}


def _jsonl(path: Path) -> Columns:
    records: list[dict[str, object]] = []
    with _text_lines(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:  # the latter: brackets in brackets in brackets
                raise DataError(f"{path}: line {number} is not valid JSON: {error}") from error
            if not isinstance(record, dict):
                raise DataError(f"{path}: line {number} must be a JSON object, got {type(record).__name__}")
            records.append(record)
    names = dict.fromkeys(name for record in records for name in record)
    return {name: [record.get(name) for record in records] for name in names}


def _parquet(path: Path) -> Columns:
    import datasets
    import pyarrow as pa

    with _quiet(), tempfile.TemporaryDirectory(prefix="mvsweep-") as cache:
        try:
            rows = datasets.Dataset.from_parquet(str(path), cache_dir=cache, keep_in_memory=True)
        except (datasets.exceptions.DatasetGenerationError, pa.ArrowException, ValueError) as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise DataError(f"{path}: not a readable parquet file: {reason}") from error
        return _columns(str(path), rows)


READERS: Mapping[str, Callable[[Path], Columns]] = MappingProxyType(
    {".parquet": _parquet, ".csv": _csv, ".jsonl": _jsonl}
)


def _hub(name: str, revision: str | None) -> Table:
    import datasets

    with _quiet():
        try:
            there = datasets.load_dataset(name, revision=revision)
        except ConnectionError as error:
            reason = str(error).splitlines()[0]
            raise HubUnreachable(
                f"{name}: no such file here, and the hub does not answer: {reason}. Check data.source and the network"
            ) from error
        except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(
                f"{name}: no such file here, and the hub data set cannot be loaded: {reason}. "
                "Check data.source and data.revision, the network, and `hf auth login` for a private data set"
            ) from error
    # The competition's own `test` split has no labels; a data set's `train` split is where labelled rows are.
    if "train" not in there and len(there) != 1:
        raise DataError(f"{name}: the data set must have a `train` split or a single one, got {', '.join(there)}")
    rows = there["train"] if "train" in there else next(iter(there.values()))
    return Table(name, _columns(name, rows))


def _columns(where: str, rows: Dataset) -> Columns:
    columns: Columns = {}
    for name in rows.column_names:
        column = rows.data.column(name)
        try:
            columns[name] = column.to_pylist()
        except UnicodeDecodeError as error:
            number = _first_broken(column)
            raise DataError(f"{where}: column {name!r}, row {number}: must be valid UTF-8: {error.reason}") from error
    return columns


def _first_broken(column: Any) -> int:
    for number, value in enumerate(column, start=1):
        try:
            value.as_py()
        except UnicodeDecodeError:
            return number
    raise AssertionError("a column that does not decode has a row that does not")


@contextmanager
def _text_lines(path: Path) -> Iterator[Iterator[str]]:
    """The lines of a UTF-8 file, without its byte order mark; a DataError names the line that is not UTF-8."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            yield lines
    except UnicodeDecodeError as error:
        with path.open("rb") as raw:
            number = next(n for n, line in enumerate(raw, start=1) if not _decodes(line))
        raise DataError(f"{path}: line {number} is not valid UTF-8: {error.reason}. Save the file as UTF-8") from error


def _decodes(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


@contextmanager
def _quiet() -> Iterator[None]:
    """`datasets` without progress bars and log lines: they break up the screen, and our error says more."""
    from datasets.utils import disable_progress_bars, enable_progress_bars, is_progress_bar_enabled, logging

    showed_bars, verbosity = is_progress_bar_enabled(), logging.get_verbosity()
    disable_progress_bars()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if showed_bars:
            enable_progress_bars()
