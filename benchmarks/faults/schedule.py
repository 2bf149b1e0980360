"""Which fault happens when: drawn from a seed, so that two contestants are hurt alike."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

KINDS = {"kill": 35, "terminate": 18, "freeze": 15, "cut": 16, "outage": 8, "disk": 8}
"""What can happen, and how often in a hundred."""
OUTAGE_SECONDS = 5.0, 20.0
DISK_SECONDS = 3.0, 10.0


@dataclass(frozen=True)
class Fault:
    """At `at` seconds, for `seconds`. `draw`, from 0 to 1, chooses whom or what it hits."""

    at: float
    kind: str
    seconds: float
    draw: float


def schedule(seed: int, seconds: float, every: float, lease_seconds: float) -> list[Fault]:
    """Faults about `every` so many seconds; never two of a database or its disk at once, with time between them."""
    return list(_faults(random.Random(seed), seconds, every, lease_seconds))


def _faults(chance: random.Random, seconds: float, every: float, lease_seconds: float) -> Iterator[Fault]:
    at, database_free_at = 5.0, 0.0
    while (at := at + chance.expovariate(1 / every)) < seconds:
        kind = chance.choices(list(KINDS), list(KINDS.values()))[0]
        lasts = {
            "outage": chance.uniform(*OUTAGE_SECONDS),
            "disk": chance.uniform(*DISK_SECONDS),
            "freeze": lease_seconds * chance.uniform(2.5, 4.0),
        }.get(kind, 0.0)
        if kind in ("outage", "disk"):
            if at < database_free_at:
                continue
            database_free_at = at + lasts + 10
        yield Fault(at, kind, lasts, chance.random())
