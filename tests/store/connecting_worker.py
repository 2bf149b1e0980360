"""What a worker does with its connections, without the rest of a worker: a process of test_connections.py."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from mathverify_sweep.specs import RunResult
from mathverify_sweep.states import EndReason
from mathverify_sweep.store.database import connect
from mathverify_sweep.store.outages import patiently
from mathverify_sweep.study.study import StudyHandle, open_study

T = TypeVar("T")
PATIENCE_SECONDS = 60.0


def work(url: str, seed: int, trials: int) -> None:
    """Ask and tell; at rest in between, as while training."""
    chance = random.Random(seed)

    def insist(call: Callable[[], T]) -> T:
        return patiently(call, PATIENCE_SECONDS, chance, time.monotonic, time.sleep)

    engine = connect(url)
    handle: StudyHandle = insist(lambda: open_study(engine, "s"))
    for _ in range(trials):
        handle.rest()
        time.sleep(chance.uniform(0.0, 0.2))  # trains
        asked = insist(handle.ask)
        assert asked is not None
        insist(partial(handle.tell, asked.trial_number, RunResult(end_reason=EndReason.FINISHED, value=0.5)))
    handle.rest()
