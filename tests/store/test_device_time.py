"""Time of a device is counted once, however many runs share it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from mathverify_sweep.store.device_time import Use, device_seconds

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def use(worker: str, begin: float, seconds: float) -> Use:
    return Use(worker, NOON + timedelta(seconds=begin), seconds)


def test_runs_that_share_a_device_share_its_time() -> None:
    together = [use("a", 0, 100), use("a", 10, 50), use("a", 90, 30)]
    assert device_seconds(together) == device_seconds(reversed(together)) == 120


def test_what_lies_between_two_runs_is_not_counted() -> None:
    assert device_seconds([use("a", 0, 10), use("a", 50, 10)]) == 20


def test_every_worker_has_a_device_of_its_own() -> None:
    assert device_seconds([use("a", 0, 10), use("b", 5, 10)]) == 20


def test_no_run_no_time() -> None:
    assert device_seconds([]) == 0
