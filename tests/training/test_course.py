"""How far a run is, by a clock that is turned by hand and a model that is a number."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from io import RawIOBase
from pathlib import Path
from typing import Any, cast

import pytest

from mathverify_sweep.data.encode import Encoded, EncodedRow
from mathverify_sweep.errors import TrainingEnded
from mathverify_sweep.specs import RunSpec
from mathverify_sweep.states import EndReason
from mathverify_sweep.training.checkpoints import Checkpoints
from mathverify_sweep.training.course import Course, Step
from mathverify_sweep.training.material import Material
from mathverify_sweep.training.order import Order
from tests.training.tiny_fixture import Recorder

ROWS = 100
LABELS = (True, False) * 10


class Clock:
    """Stands still."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def unneeded() -> None:
    raise AssertionError("nothing has to be waited for")


class Track:
    """A course of steps of 10 rows, or of `rows`, 10 seconds each."""

    def __init__(self, spec: RunSpec, folder: Path, recorder: Recorder, rows: int = 10, **order: Any) -> None:
        train = Encoded(tuple(EncodedRow((1, 2), True, index) for index in range(ROWS)), left_out=0)
        material = Material(
            base=cast(Any, None),
            micro_batch_tokens=64,
            train=train,
            validation=train,
            labels=LABELS,
            groups=tuple(map(str, range(len(LABELS)))),
        )
        self.rows, self.clock, self.looks, self.number = rows, Clock(), 0, 0
        the_order = Order(spec, folder, **{"checkpoint_seconds": 35.0, **order})
        self.free_room: Callable[[], None] = unneeded
        self.course = Course(
            the_order, material, recorder, Checkpoints(the_order, "test"), self.clock, lambda _seconds: self.free_room()
        )

    def evaluate(self, count: int) -> Sequence[float]:
        self.looks += 1
        self.clock.now += 7
        return [1.0 if label else -1.0 for label in LABELS[:count]]

    def fill(self, folder: Path) -> None:
        (folder / "weights").write_text(str(self.number))

    def resume(self) -> int:
        found = self.course.resume()
        assert found is not None
        assert (found.folder / "weights").read_text() == str(found.rows_seen // self.rows)
        self.number = found.rows_seen // self.rows
        return found.rows_seen

    def go(self, steps: int, loss: float = 1.0) -> None:
        for _ in range(steps):
            self.clock.now += 10
            self.number += 1
            step = Step(
                self.number, self.number * self.rows, loss + self.number / 8, gradient_norm=1.0, learning_rate=0.1
            )
            self.course.after(step, self.evaluate, self.fill)


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").glob("*"))


def test_a_checkpoint_is_written_when_it_is_due(spec: RunSpec, tmp_path: Path) -> None:
    track = Track(spec, tmp_path, Recorder())
    track.go(3)
    assert kept(tmp_path) == []
    track.go(1)
    assert kept(tmp_path) == ["40"]
    track.go(3)
    assert kept(tmp_path) == ["40"]
    track.go(1)
    assert kept(tmp_path) == ["40", "80"]


def test_a_run_that_others_go_on_from_leaves_its_last_checkpoint_and_no_other_run_does(
    spec: RunSpec, tmp_path: Path
) -> None:
    Track(spec, tmp_path / "trial", Recorder(), checkpoint_seconds=1e9).go(10)
    assert kept(tmp_path / "trial") == []
    piece = spec.model_copy(update={"leaves_state": True})
    Track(piece, tmp_path / "piece", Recorder(), checkpoint_seconds=1e9).go(10)
    assert kept(tmp_path / "piece") == ["100"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("file systems may not be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def fill_up(file: RawIOBase) -> None:
    with suppress(OSError):
        while file.write(bytes(4096)):
            pass


def test_on_a_full_disk_training_goes_on_and_what_others_wait_for_waits_for_room(
    spec: RunSpec, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    piece = spec.model_copy(update={"leaves_state": True})
    ballast = small_disk / "ballast"
    track = Track(piece, small_disk / "run", Recorder())
    track.go(4)
    assert kept(small_disk / "run") == ["40"]
    with ballast.open("wb", buffering=0) as file:
        fill_up(file)
    looks: list[list[str]] = []

    def make_room_at_the_third_look() -> None:
        looks.append(kept(small_disk / "run"))
        if len(looks) == 3:
            ballast.unlink()

    track.free_room = make_room_at_the_third_look
    track.go(6)
    assert looks == [["40"]] * 3, "the checkpoint due at 80 was not to be had, and the one before it stays"
    assert kept(small_disk / "run") == ["100", "40"]
    assert "training goes on without (is the disk full?)" in caplog.text
    after = Track(piece, small_disk / "next", Recorder(), resume_from=(small_disk / "run",))
    assert after.resume() == 100


def test_who_is_preempted_keeps_all_and_evaluates_nothing(spec: RunSpec, tmp_path: Path) -> None:
    spec = spec.model_copy(update={"rungs": (20, 30)})
    track = Track(spec, tmp_path, Recorder(interrupt=(3, EndReason.PREEMPTED)))
    with pytest.raises(TrainingEnded) as ended:
        track.go(3)
    assert ended.value.reason is EndReason.PREEMPTED
    assert (kept(tmp_path), track.looks) == (["30"], 1)


def test_what_was_owed_is_said_by_the_next_attempt(spec: RunSpec, tmp_path: Path) -> None:
    spec = spec.model_copy(update={"rungs": (20, 25, 30, 50)})
    first, second = Recorder(interrupt=(3, EndReason.PREEMPTED)), Recorder()
    with pytest.raises(TrainingEnded):
        Track(spec, tmp_path / "a", first).go(3)
    track = Track(spec, tmp_path / "b", second, resume_from=(tmp_path / "a",))
    assert track.resume() == 30
    track.course.catch_up(track.evaluate)
    assert track.looks == 1
    track.go(2)
    assert [rows for rows, _ in first.reports] == [20]
    assert [rows for rows, _ in second.reports] == [25, 30, 50]


def test_a_run_that_was_cut_between_two_logs_logs_as_if_it_was_not(spec: RunSpec, tmp_path: Path) -> None:
    """Of 100 rows every second one is logged."""
    cut, rest, whole = Recorder(interrupt=(3, EndReason.PREEMPTED)), Recorder(), Recorder()
    with pytest.raises(TrainingEnded):
        Track(spec, tmp_path / "a", cut, rows=1).go(3)
    track = Track(spec, tmp_path / "b", rest, rows=1, resume_from=(tmp_path / "a",))
    track.resume()
    track.go(3)
    Track(spec, tmp_path / "c", whole, rows=1).go(6)
    assert [rows for rows, *_ in whole.logs] == [2, 4, 6]
    assert cut.logs + rest.logs == whole.logs


def test_a_run_that_diverges_does_so_however_it_was_cut(spec: RunSpec, tmp_path: Path) -> None:
    """Ten good steps, then bad ones: the watch looks at twenty."""
    with pytest.raises(TrainingEnded):
        Track(spec, tmp_path / "a", Recorder(interrupt=(10, EndReason.PREEMPTED))).go(10, loss=0.1)
    track = Track(spec, tmp_path / "b", Recorder(), resume_from=(tmp_path / "a",))
    track.resume()
    with pytest.raises(TrainingEnded, match="median loss") as ended:
        track.go(10, loss=90.0)
    assert ended.value.reason is EndReason.DIVERGED


def test_rows_count_the_whole_run_and_seconds_this_attempt(spec: RunSpec, tmp_path: Path) -> None:
    spec = spec.model_copy(update={"rungs": (50,)})
    with pytest.raises(TrainingEnded):
        Track(spec, tmp_path / "a", Recorder(interrupt=(4, EndReason.PREEMPTED))).go(4)
    track = Track(spec, tmp_path / "b", Recorder(), resume_from=(tmp_path / "a",))
    track.resume()
    track.go(6)
    result = track.course.finished(*track.course.finish(track.evaluate, lambda _rows: ()), adapter="adapter")
    assert (result.rows_seen, result.resumed_from_rows, result.optimizer_steps) == (100, 40, 10)
    assert (result.train_seconds, result.eval_seconds) == (60.0, 14.0)
    assert result.value == 1.0


def test_without_an_earlier_checkpoint_a_run_starts_at_its_start(spec: RunSpec, tmp_path: Path) -> None:
    track = Track(spec, tmp_path / "b", Recorder(), resume_from=(tmp_path / "a",))
    assert track.course.resume() is None
    track.go(1)
