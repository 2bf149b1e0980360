"""How long a study has held devices. A worker has one; the runs that share its engine share its time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta


@dataclass(frozen=True)
class Use:
    """A run was in a worker's engine from `start` on, for so long."""

    worker_id: str
    start: datetime
    seconds: float


def device_seconds(uses: Iterable[Use]) -> float:
    """The time in which each worker had at least one run, summed over workers."""
    of_worker: dict[str, list[Use]] = defaultdict(list)
    for use in uses:
        of_worker[use.worker_id].append(use)
    return sum(map(_covered, of_worker.values()))


def _covered(uses: list[Use]) -> float:
    total = 0.0
    until: datetime | None = None
    for use in sorted(uses, key=lambda use: use.start):
        end = use.start + timedelta(seconds=use.seconds)
        begin = use.start if until is None else max(use.start, until)
        total += max(0.0, (end - begin).total_seconds())
        until = end if until is None else max(end, until)
    return total
