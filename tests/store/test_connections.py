"""Claims about connections: few serve many workers, at their start and while they train."""

from __future__ import annotations

import multiprocessing
import random
from contextlib import suppress
from datetime import UTC, datetime

import pytest

from mathverify_sweep.config import SweepConfig
from mathverify_sweep.errors import StorageError, StorageUnavailable
from mathverify_sweep.states import RunState
from mathverify_sweep.store.database import connect
from mathverify_sweep.store.outages import LONGEST_PAUSE_SECONDS, patiently
from mathverify_sweep.study import study, views
from tests.own_server import own_server
from tests.store import connecting_worker


class Clock:
    """A clock that only moves when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)


def test_patience_waits_longer_each_time_by_chance_and_in_bounds() -> None:
    clock, left = Clock(), iter(range(12))

    def call() -> str:
        with suppress(StopIteration):
            next(left)
            raise StorageUnavailable("away")
        return "back"

    assert patiently(call, 600.0, random.Random(0), clock.monotonic, clock.sleep) == "back"
    assert len(clock.slept) == 12
    assert all(pause <= min(0.5 * 2**n, LONGEST_PAUSE_SECONDS) for n, pause in enumerate(clock.slept))
    assert max(clock.slept) > 4
    assert len(set(clock.slept)) == 12


def test_patience_ends_with_the_error_after_the_time_it_was_given() -> None:
    clock = Clock()

    def call() -> None:
        raise StorageUnavailable("still away")

    with pytest.raises(StorageUnavailable, match="still away"):
        patiently(call, 60.0, random.Random(0), clock.monotonic, clock.sleep)
    assert 60.0 - LONGEST_PAUSE_SECONDS <= clock.now <= 60.0


def test_a_refusal_is_not_waited_for() -> None:
    clock = Clock()

    def call() -> None:
        raise StorageError("wrong password")

    with pytest.raises(StorageError, match="wrong password"):
        patiently(call, 60.0, random.Random(0), clock.monotonic, clock.sleep)
    assert clock.slept == []


@pytest.mark.slow
def test_more_workers_than_connections_all_start_and_all_get_on() -> None:
    config = {
        "study": "s",
        "search_space": {"learning_rate": {"low": 1e-5, "high": 1e-1, "log": True}},
        "data": {"train_rows": 800},
        "sampler": {"type": "random"},
    }
    workers, trials = 24, 3
    with own_server() as server:
        engine = connect(server.url)
        study.create(engine, SweepConfig.model_validate(config), "f", datetime(2026, 1, 1, tzinfo=UTC))
        engine.dispose()
        server.allow(connections=8)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.store.connecting_worker"])
        processes = [
            context.Process(target=connecting_worker.work, args=(server.url, seed, trials)) for seed in range(workers)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0] * workers
        states = [trial.state for trial in views.trials(engine, "s")]
        assert states == [RunState.COMPLETE] * (workers * trials)
        engine.dispose()
