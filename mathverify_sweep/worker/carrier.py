"""Carries checkpoints and adapters between this worker and an output folder that is at a URL, by threads of its own.

A run waits for it twice only: before it begins, until what it goes on from is here, and when it has ended, for some
time before that is said, until what it leaves is there; that is tried on for as long as the worker lives. Its
neighbours wait for nothing. A URL that is away costs checkpoints of others a way back, and no run: one that starts from
an adapter is held back until the URL is reached. With an output folder on a disk there is nothing to carry.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mathverify_sweep import depot, paths
from mathverify_sweep.depot import Depot
from mathverify_sweep.errors import DepotAway

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
"""How often the carrier looks for new checkpoints."""
DELIVER_SECONDS = 60.0
"""How long a run's end is not said, until what it has left is at the URL; the lease is renewed meanwhile."""
TRIES_SECONDS = 5.0
"""How long it waits before it tries again to deliver or to fetch what others wait for."""
ABSENT_SECONDS = 5.0, 10.0, 20.0, 40.0, 80.0
"""The same for an adapter that a URL which is reached does not have: who trained it may be cut off from there."""
SLICE_SECONDS = 0.05
"""How long a worker that ends waits before it looks whether it still has to."""


@dataclass(frozen=True)
class _Delivery:
    """What is done when all that a run has left is at the URL, or at that time of the monotonic clock."""

    folder: Path
    until: float
    then: Callable[[], None]


class Carrier:
    """Of one worker. `told_to_end` says why it is to end, and then it waits as `hurry` allows."""

    def __init__(self, output: Path, told_to_end: Callable[[], str | None]) -> None:
        self._depot = depot.of(output)
        self._told_to_end = told_to_end
        self._followed: set[Path] = set()  # of runs that train
        self._adapters: set[Path] = set()  # of runs that have ended, whose adapters are not there yet
        self._last: set[Path] = set()  # and whose last checkpoints are not
        self._carried: dict[Path, dict[Path, bool]] = {}  # checkpoints that are there: whole, or in part
        self._locks: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)
        self._rung = threading.Event()
        self._is_away = False
        self._until = float("inf")
        self._deliveries: list[_Delivery] = []
        if self._depot is not None:
            for look in (self._look, self._look_at_ended):
                threading.Thread(target=look, args=(self._depot,), name="carrier", daemon=True).start()

    def bring(self, attempts: Sequence[Path], adapter: Path | None) -> Future[None]:
        """Have that adapter here, and the checkpoints of these attempts; done when they are, or cannot be.

        A URL that is away is waited for with the adapter, until the future is cancelled, and not with checkpoints.
        """
        future: Future[None] = Future()
        if (there := self._depot) is None:
            future.set_result(None)
            return future

        def fetch() -> None:
            if adapter is not None:
                _have(there, adapter, future)
            if future.cancelled():
                return
            try:
                for root in map(paths.checkpoints_folder, attempts):
                    for name in there.names(root):
                        if name.isdecimal() and not (root / name).exists():
                            there.fetch(root / name)
            except DepotAway as error:
                log.warning("%s. A run goes on from what is on this machine", error)

        threading.Thread(target=_do, args=(fetch, future), name="carrier", daemon=True).start()
        return future

    def follow(self, folder: Path) -> None:
        """Carry the checkpoints that a run leaves in its folder from now on."""
        self._followed.add(folder)

    def hurry(self, seconds: float) -> float:
        """Nothing is waited for when so many seconds have passed; when that is, by the monotonic clock."""
        self._until = time.monotonic() + seconds
        return self._until

    def deliver(self, folder: Path, then: Callable[[], None], *, checkpoints: bool) -> None:
        """A run has ended: have its adapter at the URL, and its last checkpoints if they count; `settle` does the rest.

        One wait is enough: there is none while the URL is away and what earlier runs have left is late.
        """
        self._followed.discard(folder)
        if self._depot is None:
            then()
            return
        is_known = self._is_away and bool(self._adapters | self._last)
        if checkpoints:
            self._last.add(folder)
        self._adapters.add(folder)
        self._rung.set()
        until = time.monotonic() + (0.0 if is_known else DELIVER_SECONDS)
        self._deliveries.append(_Delivery(folder, until, then))

    @property
    def is_delivering(self) -> bool:
        """Whether `settle` has something left to do."""
        return bool(self._deliveries)

    def settle(self) -> None:
        """Do what was to be done `then`, for each run of which all is delivered or has been waited for long enough."""
        for each in list(self._deliveries):
            is_late = each.folder in self._adapters | self._last
            if is_late and time.monotonic() < min(each.until, self._until):
                continue
            if is_late:
                log.warning("what is in %s is not at the output's URL yet; it goes there when it can", each.folder)
            self._deliveries.remove(each)
            each.then()

    def settle_all(self) -> None:
        """The same, and wait for each, in a hurry until its end."""
        while self._deliveries:
            self.settle()
            time.sleep(SLICE_SECONDS)

    def finish(self) -> None:
        """The worker ends: wait, as before, for what is late, and say what did not get to the URL.

        When there is a hurry, until its end; whoever is told to end without one waits no longer.
        """
        is_hurried = self._until < float("inf")
        until = self._until if is_hurried else time.monotonic() + DELIVER_SECONDS
        while self._adapters | self._last and time.monotonic() <= until:
            if not is_hurried and self._told_to_end() is not None:
                break
            time.sleep(SLICE_SECONDS)
        for folder in sorted(self._adapters | self._last):
            log.warning("what is in %s did not get to the output's URL", folder)

    def _look(self, there: Depot) -> None:
        is_away = False
        while True:
            time.sleep(LOOK_SECONDS)
            error = _each(self._followed, lambda folder: self._carry(there, folder))
            if error and not is_away:
                log.warning("%s. Training goes on; checkpoints stay here until it is back", error)
            is_away = error is not None

    def _look_at_ended(self, there: Depot) -> None:
        """Adapters first: others wait for them, and they are small."""

        def adapter(folder: Path) -> None:
            if (left := paths.adapter_folder(folder)).is_dir():
                there.push(left)
            self._adapters.discard(folder)

        def last(folder: Path) -> None:
            self._carry(there, folder)
            self._last.discard(folder)

        is_failing = False
        while True:
            self._rung.wait(TRIES_SECONDS)
            self._rung.clear()
            error = _each(self._adapters, adapter)
            if not isinstance(error, DepotAway):
                error = _each(self._last, last) or error
            if error and not is_failing:
                log.warning("%s. It is tried again", error)
            is_failing = error is not None
            self._is_away = isinstance(error, DepotAway)

    def _carry(self, there: Depot, folder: Path) -> None:
        """Those checkpoints that are new; then those that are no longer here go there as well."""
        with self._locks[folder]:
            carried = self._carried.setdefault(folder, {})
            for checkpoint in paths.checkpoints(folder):
                if not carried.get(checkpoint):
                    carried[checkpoint] = False
                    try:
                        there.push(checkpoint)
                    except (DepotAway, OSError):
                        if checkpoint.exists():
                            raise
                    else:
                        carried[checkpoint] = True
            for old in carried.keys() - set(paths.checkpoints(folder)):  # a newer one has taken its place
                there.drop(old)
                del carried[old]


def _each(folders: set[Path], work: Callable[[Path], None]) -> Exception | None:
    """Work on each, but on none behind one for which the URL is away; the last error, if there is one."""
    last: Exception | None = None
    for folder in list(folders):
        try:
            work(folder)
        except OSError as error:  # of this folder
            last = error
        except DepotAway as error:
            return error
    return last


def _have(there: Depot, adapter: Path, wanted: Future[None]) -> None:
    """Have an adapter here; return without when the URL is reached and does not have it whole, after some tries."""
    is_away, pauses = False, list(ABSENT_SECONDS)
    while not (adapter.exists() or wanted.cancelled()):
        try:
            if there.fetch(adapter) or not pauses:
                return
        except DepotAway as error:
            if not is_away:
                log.warning("%s. A run waits for the adapter that it starts from", error)
            is_away = True
            time.sleep(TRIES_SECONDS)
        else:
            if len(pauses) == len(ABSENT_SECONDS):
                log.warning("%s is not whole at the output's URL; a run waits some time for it", adapter)
            time.sleep(pauses.pop(0))


def _do(work: Callable[[], None], future: Future[None]) -> None:
    """By a thread that no end of the process waits for."""
    try:
        work()
    except Exception as error:  # noqa: BLE001 - whoever waits for it is told
        with suppress(InvalidStateError):  # nobody does any more
            future.set_exception(error)
    else:
        with suppress(InvalidStateError):
            future.set_result(None)
