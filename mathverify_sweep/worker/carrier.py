"""Carries checkpoints and adapters between this worker and an output folder that is at a URL, by threads of its own.

Training waits for it twice only: before a run begins, until what it goes on from is here, and when one has ended, for
some time, until what it leaves is there. A URL that is away costs checkpoints of others a way back, and no run.
With an output folder on a disk there is nothing to carry.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

from mathverify_sweep import depot, paths
from mathverify_sweep.depot import Depot
from mathverify_sweep.errors import DepotAway

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
"""How often the carrier looks for new checkpoints."""
DELIVER_SECONDS = 60.0
"""How long the worker's loop waits until what a run has left is at the URL; the lease is renewed meanwhile."""
TRIES_SECONDS = 5.0
"""How long it waits before it tries again to deliver what others wait for."""


class Carrier:
    """Of one worker."""

    def __init__(self, output: Path) -> None:
        self._depot = depot.of(output)
        self._followed: set[Path] = set()
        self._carried: dict[Path, set[Path]] = {}
        self._lock = threading.Lock()
        self._until = float("inf")
        if self._depot is not None:
            threading.Thread(target=self._look, args=(self._depot,), name="carrier", daemon=True).start()

    def bring(self, attempts: Sequence[Path], adapter: Path | None) -> Future[None]:
        """Have the checkpoints of these attempts here, and that adapter; done when they are, or cannot be."""
        if (there := self._depot) is None:
            return _done()

        def fetch() -> None:
            try:
                if adapter is not None and not adapter.exists():
                    there.fetch(adapter)
                for root in map(paths.checkpoints_folder, attempts):
                    for name in there.names(root):
                        if name.isdecimal() and not (root / name).exists():
                            there.fetch(root / name)
            except DepotAway as error:
                log.warning("%s. A run goes on from what is on this machine", error)

        return _begun(fetch)

    def follow(self, folder: Path) -> None:
        """Carry the checkpoints that a run leaves in its folder from now on."""
        self._followed.add(folder)

    def hurry(self, seconds: float) -> float:
        """Nothing is waited for when so many seconds have passed; when that is, by the monotonic clock."""
        self._until = time.monotonic() + seconds
        return self._until

    def deliver(self, folder: Path) -> None:
        """A run has ended: have its adapter and its last checkpoints at the URL, or give up after some time."""
        self._followed.discard(folder)
        if (there := self._depot) is None:
            return
        until = min(self._until, time.monotonic() + DELIVER_SECONDS)

        def carry() -> None:
            while True:
                try:
                    self._carry(there, folder)
                    if (adapter := paths.adapter_folder(folder)).is_dir():
                        there.push(adapter)
                except (DepotAway, OSError) as error:
                    if time.monotonic() + TRIES_SECONDS > until:
                        raise
                    log.warning("%s. It is tried again", error)
                    time.sleep(TRIES_SECONDS)
                else:
                    return

        try:
            _begun(carry).result(max(0.0, until - time.monotonic()))
        except (DepotAway, OSError) as error:  # a TimeoutError is one
            log.warning("what is in %s did not get to the output's URL: %s", folder, error or "it takes too long")

    def _look(self, there: Depot) -> None:
        away = False
        while True:
            time.sleep(LOOK_SECONDS)
            for folder in list(self._followed):
                try:
                    self._carry(there, folder)
                    away = False
                except (DepotAway, OSError) as error:
                    if not away:
                        log.warning("%s. Training goes on; checkpoints stay here until it is back", error)
                    away = True

    def _carry(self, there: Depot, folder: Path) -> None:
        """Those checkpoints that are new; then those that are no longer here go there as well."""
        with self._lock:
            carried = self._carried.setdefault(folder, set())
            here = paths.checkpoints(folder)
            for checkpoint in here:
                if checkpoint not in carried:
                    try:
                        there.push(checkpoint)
                    except (DepotAway, OSError):
                        if checkpoint.exists():
                            raise
                        there.drop(checkpoint)  # a newer one has taken its place meanwhile
                        continue
                    carried.add(checkpoint)
            for old in carried - set(here):
                there.drop(old)
            carried.intersection_update(here)


def _begun(work: Callable[[], None]) -> Future[None]:
    """By a thread that no end of the process waits for."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - whoever waits for it is told
            future.set_exception(error)
        else:
            future.set_result(None)

    threading.Thread(target=run, name="carrier", daemon=True).start()
    return future


def _done() -> Future[None]:
    future: Future[None] = Future()
    future.set_result(None)
    return future
