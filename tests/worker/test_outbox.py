"""The outbox: in order, whole lines only, locked by its worker, and kept until the database has taken an entry."""

from __future__ import annotations

import errno
import fcntl
import logging
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mathverify_sweep.specs import RunResult
from mathverify_sweep.states import EndReason
from mathverify_sweep.store.runs import WorkerIdentity
from mathverify_sweep.worker.outbox import Entry, Finished, Held, Logged, Outbox, Reported, _checksum, orphans

HELD = Held(run_id="r1", lease_token="t1", attempt=1, trial_number=3, continues=None, failures=0)
POINT = Logged(held=HELD, rows_seen=100, loss=0.5, learning_rate=1e-4)
REPORT = Reported(held=HELD, rows_seen=200, value=0.75, asks=True)
END = Finished(
    held=HELD,
    result=RunResult(end_reason=EndReason.FINISHED, value=0.8, log_odds=(0.25, -1.5)),
    at=datetime(2026, 11, 21, tzinfo=UTC),
    retry=None,
    tells=True,
    link="https://wandb.ai/x",
)

ME = WorkerIdentity.of_this_process("cpu", 60.0)
DEAD = replace(ME, process_start=1)  # of another process that had this pid
ELSEWHERE = replace(ME, host="another-host", boot_id="another-boot")

KILLED = """
import os, signal, sys
from pathlib import Path
from tests.worker.test_outbox import END, ME, POINT, REPORT
from mathverify_sweep.worker.outbox import Outbox
box = Outbox.of(ME, Path(sys.argv[1]))
for entry in (POINT, REPORT, END):
    box.append(entry)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_entries_come_out_in_the_order_in_which_they_went_in(tmp_path: Path) -> None:
    box = Outbox.of(DEAD, tmp_path / "box.jsonl")
    for entry in (POINT, REPORT, END):
        box.append(entry)

    assert taken(box) == [POINT, REPORT, END]


def test_what_a_killed_worker_wrote_is_there(tmp_path: Path) -> None:
    file = tmp_path / "box.jsonl"
    ended = subprocess.run([sys.executable, "-c", KILLED, str(file)], check=False)

    assert ended.returncode == -signal.SIGKILL
    (left,) = orphans([file])
    assert taken(left) == [POINT, REPORT, END]


def test_an_outbox_whose_worker_lives_is_nobodys_to_replay(tmp_path: Path) -> None:
    """Whatever the lock says: between hosts, and on some file systems, it says nothing."""
    box = Outbox.of(ME, tmp_path / "box.jsonl")
    box.append(POINT)
    assert list(orphans([box.file])) == [], "locked"
    fcntl.flock(box._stream, fcntl.LOCK_UN)
    assert list(orphans([box.file])) == [], "its process lives"
    taken(box)


def test_an_outbox_of_another_host_is_left_alone_until_its_workers_lease_has_expired(tmp_path: Path) -> None:
    box = Outbox.of(ELSEWHERE, tmp_path / "box.jsonl")
    box.append(POINT)
    fcntl.flock(box._stream, fcntl.LOCK_UN)

    assert list(orphans([box.file], {"somebody else"})) == []
    (left,) = orphans([box.file], {ELSEWHERE.worker_id})
    assert taken(left) == [POINT]
    box.close()


def test_a_worker_that_was_taken_for_dead_goes_on_with_a_file_of_its_own(tmp_path: Path) -> None:
    """It was suspended; what others said and removed it says again, which changes nothing."""
    box = Outbox.of(ELSEWHERE, tmp_path / "box.jsonl")
    box.append(POINT)
    fcntl.flock(box._stream, fcntl.LOCK_UN)
    (left,) = orphans([box.file], {ELSEWHERE.worker_id})
    taken(left)
    assert not box.file.exists()

    box.append(END)

    box._stream.close()
    (again,) = orphans([box.file], {ELSEWHERE.worker_id})
    assert taken(again) == [POINT, END]


def test_a_file_system_without_locks_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_stream: object, _how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    test_entries_are_on_the_disk_until_the_last_one_is_taken(tmp_path)


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        (b'"kind":"reported"', b'"kind":"weighed"'),
        (b'"asks":true', b'"asks":true,"weight":2'),
        (b'"pid"', b'"process"'),
    ],
    ids=["kind of an entry", "field of an entry", "field of the first line"],
)
def test_an_outbox_of_another_version_is_left_whole_and_that_is_said_once(
    was: bytes, becomes: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    box = Outbox.of(DEAD, tmp_path / "box.jsonl")
    box.append(POINT)
    box.append(REPORT)
    box.close()
    texts = [line.split(b" ", 1)[1] for line in box.file.read_bytes().splitlines()]
    texts = [text.replace(b'"version":"', b'"version":"99.').replace(was, becomes) for text in texts]
    box.file.write_bytes(b"".join(_checksum(text) + b" " + text + b"\n" for text in texts))
    before = box.file.read_bytes()

    with caplog.at_level(logging.WARNING):
        assert list(orphans([box.file])) == list(orphans([box.file])) == []

    (said,) = caplog.records
    assert "was written by mathverify-sweep 99." in said.getMessage()
    assert box.file.read_bytes() == before


def test_points_come_out_together_with_the_report_behind_them_and_an_end_alone(tmp_path: Path) -> None:
    box = Outbox.of(ME, tmp_path / "box.jsonl")
    entries = [POINT, POINT, REPORT, REPORT, POINT, END, END]
    for entry in entries:
        box.append(entry)
    found = []
    while first := box.first():
        found.append(first)
        box.drop_first(len(first))

    assert found == [[POINT, POINT, REPORT], [REPORT], [POINT], [END], [END]]
    box.close()


def test_entries_are_on_the_disk_until_the_last_one_is_taken(tmp_path: Path) -> None:
    box = Outbox.of(DEAD, tmp_path / "box.jsonl")
    box.append(POINT)
    box.append(REPORT)
    box.drop_first(1)
    assert not box.close()

    (again,) = orphans([box.file])
    assert taken(again) == [POINT, REPORT], "said once more than needed, never once too few"


def test_an_empty_outbox_leaves_no_file(tmp_path: Path) -> None:
    box = Outbox.of(DEAD, tmp_path / "box.jsonl")
    box.append(POINT)
    box.drop_first(1)

    assert box.close()
    assert not box.file.exists()


@pytest.mark.parametrize("damage", [lambda b: b[:-20], lambda b: b.replace(b"0.75", b"0.95"), lambda b: b + b"\0" * 9])
def test_a_line_that_is_not_whole_is_left_out_and_said(
    tmp_path: Path, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    box = Outbox.of(DEAD, tmp_path / "box.jsonl")
    box.append(POINT)
    box.append(REPORT)
    box.close()
    assert callable(damage)
    box.file.write_bytes(damage(box.file.read_bytes()))

    with caplog.at_level(logging.WARNING):
        (left,) = orphans([box.file])

    assert taken(left)[0] == POINT
    assert "damaged" in caplog.text


def test_a_full_disk_keeps_the_entry_in_memory_and_no_half_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    box = Outbox.of(DEAD, tmp_path / "box.jsonl")
    box.append(POINT)
    whole = box.file.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (whole + 10, before[1]))
    try:
        with caplog.at_level(logging.WARNING):
            box.append(END)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)

    assert box.file.stat().st_size == whole
    assert "in memory only" in caplog.text
    box.append(REPORT)
    assert taken(box) == [POINT, END, REPORT]


def taken(box: Outbox) -> list[Entry]:
    """All that is in an outbox, which is closed."""
    found: list[Entry] = []
    while first := box.first():
        found += first
        box.drop_first(len(first))
    box.close()
    return found
