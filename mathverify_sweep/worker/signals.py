"""What tells a worker to end: Ctrl-C, SIGTERM, and SIGUSR1, which schedulers can send some time before."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def hearing_signals(note: Callable[[int], None]) -> Iterator[None]:
    """Within it, `note` is told each of them, in the main thread, between two of its instructions."""

    def handle(number: int, _frame: FrameType | None) -> None:
        note(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
