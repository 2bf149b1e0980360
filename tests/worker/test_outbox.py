"""The outbox: in order, whole lines only, locked by its worker, and kept until the database has taken an entry."""

from __future__ import annotations

import logging
import resource
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mathverify_sweep.specs import RunResult
from mathverify_sweep.states import EndReason
from mathverify_sweep.worker.outbox import Entry, Finished, Held, Logged, Outbox, Reported, orphans

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

KILLED = """
import os, signal, sys
from pathlib import Path
from tests.worker.test_outbox import END, POINT, REPORT
from mathverify_sweep.worker.outbox import Outbox
box = Outbox(Path(sys.argv[1]))
for entry in (POINT, REPORT, END):
    box.append(entry)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_entries_come_out_in_the_order_in_which_they_went_in(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "box.jsonl")
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
    box = Outbox(tmp_path / "box.jsonl")
    box.append(POINT)

    assert list(orphans([box.file])) == []
    with pytest.raises(BlockingIOError):
        Outbox(box.file)
    taken(box)


def test_entries_are_on_the_disk_until_the_last_one_is_taken(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "box.jsonl")
    box.append(POINT)
    box.append(REPORT)
    box.drop_first()
    assert not box.close()

    (again,) = orphans([box.file])
    assert taken(again) == [POINT, REPORT], "said once more than needed, never once too few"


def test_an_empty_outbox_leaves_no_file(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "box.jsonl")
    box.append(POINT)
    box.drop_first()

    assert box.close()
    assert not box.file.exists()


@pytest.mark.parametrize("damage", [lambda b: b[:-20], lambda b: b.replace(b"0.75", b"0.95"), lambda b: b + b"\0" * 9])
def test_a_line_that_is_not_whole_is_left_out_and_said(
    tmp_path: Path, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    box = Outbox(tmp_path / "box.jsonl")
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
    box = Outbox(tmp_path / "box.jsonl")
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
    found = []
    while (entry := box.first()) is not None:
        found.append(entry)
        box.drop_first()
    box.close()
    return found
