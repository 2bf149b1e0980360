"""Claims about text that nobody should have written: NUL, halves of surrogate pairs, megabytes."""

from __future__ import annotations

import csv
import io
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import Engine

from mathverify_sweep.data import read, rows
from mathverify_sweep.errors import DataError
from mathverify_sweep.specs import MAX_MESSAGE, ColumnsSpec, RunResult, RunSpec
from mathverify_sweep.states import EndReason, RunState
from mathverify_sweep.store import runs, studies
from mathverify_sweep.store.runs import Budget, WorkerIdentity
from mathverify_sweep.worker.outbox import Finished, Held, Outbox, orphans

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOSTILE = (
    "a\0b",
    "half \ud800 of a pair",
    "\udfff",
    "\u202egnp.exe",
    "x" * 3_000_000,
    "\x1b[2J\x07",
    "line\u2028end",
    "",
)
QUICK_SECONDS = 20.0


@pytest.mark.parametrize("message", HOSTILE)
def test_any_message_of_a_result_goes_through_the_outbox_into_the_database(
    engine: Engine, spec: RunSpec, tmp_path: Path, message: str
) -> None:
    result = RunResult(end_reason=EndReason.CRASHED, message=message)
    assert RunResult.model_validate_json(result.model_dump_json()) == result
    assert len(result.message) <= MAX_MESSAGE
    studies.create(engine, studies.StudyRecord("s", "{}", "f", None, None, NOW))
    worker = WorkerIdentity("w", "host\0\ud800", 1, "gpu\0")
    place = runs.reserve(engine, "s", worker, Budget(None, None, None), NOW)
    assert place is not None
    assert runs.attach(engine, place, 0, spec)
    claim = runs.Claim(place.run_id, place.lease_token, 1, 0, spec, None)
    box = Outbox.of(worker, tmp_path / "box.jsonl")
    box.append(Finished(held=Held.of(claim), result=result, at=NOW, retry=None, tells=True, link=None))
    box._stream.close()
    (again,) = orphans([box.file], {worker.worker_id})
    (replayed,) = again.first()
    again.close()
    assert isinstance(replayed, Finished)
    assert runs.finish(engine, replayed.held.claim(), replayed.result, NOW)
    ended = runs.get(engine, place.run_id)
    assert (ended.state, ended.result) == (RunState.FAIL, result)


def test_a_long_message_keeps_its_beginning_and_its_end() -> None:
    message = RunResult(end_reason=EndReason.CRASHED, message="begin" + "x" * 100_000 + "end").message
    assert message.startswith("begin")
    assert message.endswith("end")
    assert "80,108 characters left out" in message


texts = st.one_of(
    st.text(max_size=20), st.sampled_from(HOSTILE), st.text(alphabet="\0\ud800\udfff\n\",;'\u202e é", max_size=8)
)
cells = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    texts,
    st.lists(st.integers(), max_size=2),
    st.binary(max_size=4),
)
tables = st.lists(st.tuples(cells, cells, cells, st.one_of(st.booleans(), cells)), max_size=5)
BOTH = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))
QUICK, LONG = settings(BOTH, max_examples=100, derandomize=True), settings(BOTH, max_examples=4_000)
NAMES = ("question", "answer", "solution", "is_correct")


def check_table(found: list[tuple[Any, ...]]) -> None:
    """Rows that can be stored and printed, or one DataError of bounded length; never slow."""
    table = rows.Table("x", {name: [row[i] for row in found] for i, name in enumerate(NAMES)})
    started = time.monotonic()
    try:
        good = rows.rows_of(table, ColumnsSpec())
    except DataError as error:
        message = str(error)
        message.encode()
        assert len(message) < 2_000
        assert "\n" not in message
    else:
        for row in good:
            assert "\0" not in row.question + row.answer + row.solution
            (row.question + row.answer + row.solution).encode()
    assert time.monotonic() - started < QUICK_SECONDS


def check_file(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    started = time.monotonic()
    try:
        rows.rows_of(read.read(str(file)), ColumnsSpec())
    except DataError as error:
        assert len(str(error)) < 5_000  # noqa: PT017 - either outcome is right
    assert time.monotonic() - started < QUICK_SECONDS


def as_csv(found: list[tuple[Any, ...]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows([NAMES, *found])
    return text.getvalue().encode("utf-8", "surrogatepass")


def as_jsonl(found: list[tuple[Any, ...]]) -> bytes:
    return "\n".join(json.dumps(dict(zip(NAMES, row, strict=True)), default=repr) for row in found).encode()


any_bytes = st.one_of(
    st.binary(max_size=200),
    tables.map(as_csv),
    tables.map(as_jsonl),
    st.tuples(tables.map(as_csv), st.binary(max_size=3)).map(lambda parts: parts[0] + parts[1]),
    st.just(b"[" * 100_000),
    st.just(b'{"question": ' + b"[" * 100_000),
    st.just(b"9" * 100_000),
    st.just(b'{"question": ' + b"9" * 10_000 + b"}"),
    st.just(b"\xef\xbb\xbf"),
)


@given(tables)
@QUICK
def test_any_table_is_rows_or_one_error(found: list[tuple[Any, ...]]) -> None:
    check_table(found)


@given(any_bytes, st.sampled_from([".csv", ".jsonl"]))
@example(b"[" * 100_000, ".jsonl")
@example(b'{"question": ' + b"9" * 10_000 + b"}", ".jsonl")
@example(b'question,answer\n"' + b"x" * 200_000, ".csv")
@example(b"\0", ".csv")
@QUICK
def test_any_text_file_is_rows_or_one_error(tmp_path_factory: pytest.TempPathFactory, data: bytes, suffix: str) -> None:
    check_file(tmp_path_factory.getbasetemp() / f"x{suffix}", data)


@given(st.binary(max_size=300))
@example(b"PAR1" + b"\xff" * 64 + b"PAR1")
@settings(BOTH, max_examples=15, derandomize=True)
def test_any_bytes_are_no_parquet_file(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    check_file(tmp_path_factory.getbasetemp() / "x.parquet", data)


@pytest.mark.faults
@given(tables)
@LONG
def test_very_many_tables_are_rows_or_one_error(found: list[tuple[Any, ...]]) -> None:
    check_table(found)


@pytest.mark.faults
@given(any_bytes, st.sampled_from([".csv", ".jsonl"]))
@LONG
def test_very_many_text_files_are_rows_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, suffix: str
) -> None:
    check_file(tmp_path_factory.getbasetemp() / f"x{suffix}", data)
