"""The worker's clerk: one thread that does all the talking to the database, so that training never waits for it.

It renews leases, says what is in the outbox, claims runs that were asked for, and looks after the runs of dead workers.
While the database is away it tries again and again, and everything that was to be said stays in the outbox. What it
learns reaches the worker as news. Between bursts it holds no connection.
"""

from __future__ import annotations

import logging
import os
import queue
import random
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mathverify_sweep import paths
from mathverify_sweep.errors import MvsweepError, StorageUnavailable, StudyError
from mathverify_sweep.rates import Rates
from mathverify_sweep.specs import RunResult
from mathverify_sweep.states import EndReason
from mathverify_sweep.store import database as store
from mathverify_sweep.store import leases, runs, speeds, studies, suspicion
from mathverify_sweep.store.runs import Claim, WorkerIdentity
from mathverify_sweep.worker import claims, outbox, retention, saying
from mathverify_sweep.worker.news import Failed, Lost, News, Over, Ruled
from mathverify_sweep.worker.outbox import Entry, Finished, Held, Logged, Outbox, Reported

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine as Database

    from mathverify_sweep.study.study import StudyHandle

log = logging.getLogger(__name__)

IDLE_SECONDS = 1.0, 5.0
"""How long the clerk rests before it asks for a run again, the first time and at most."""
AWAY_SECONDS = 0.5, 8.0
"""The same for a database that is away; never above a quarter of the lease period, so that all are back in time."""
REST_SECONDS = 3.0
"""A pause that is worth giving connections back for: each takes a server and its client 8 ms to make."""
CURVE_SECONDS = 10.0
"""How long a point of a curve waits for others to be said with, at most."""
SLOW_SECONDS = 5.0
"""A database that has not answered for this long counts as away: SQLite waits a minute for a lock before it says so."""


@dataclass(frozen=True)
class ClerkOptions:
    """How a clerk works. `until_idle`: it is over when the study has nothing left to do. `rates` are its worker's."""

    output: Path
    lease_seconds: float
    until_idle: bool
    trust_gpu: bool
    rates: Rates | None = None


class Clerk:
    """Talks to the database for one worker. `start` it, and `close` it."""

    def __init__(self, database: Database, study: StudyHandle, identity: WorkerIdentity, options: ClerkOptions) -> None:
        self._database, self._study, self._identity, self._options = database, study, identity, options
        self._name = study.config.study
        self._outbox = Outbox.of(identity, paths.outbox_file(options.output, self._name, identity.worker_id))
        self._watch = self._new_watch()
        self._chance = random.Random(identity.worker_id)
        self._held: dict[str, tuple[Claim, float]] = {}
        self._asked_for = 0
        self._claimed: Claim | None = None
        self._looked_at = self._asked_at = -float("inf")
        self._idle_seconds = IDLE_SECONDS[0]
        self._away_since: float | None = None
        self._turn_since = float("inf")
        self._news: queue.SimpleQueue[News] = queue.SimpleQueue()
        self._bell, self._bell_rope = os.pipe()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="clerk", daemon=True)

    @property
    def bell(self) -> int:
        """A file descriptor that can be read when there is news."""
        return self._bell

    @property
    def is_away(self) -> bool:
        """Whether the database was away when it was last tried, or has not answered for some time."""
        return self._away_since is not None or time.monotonic() - self._turn_since > SLOW_SECONDS

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def ask_for_run(self) -> None:
        """Have a run claimed, as soon as there is one."""
        self._asked_for += 1
        self._wake.set()

    def ask_for_nothing(self) -> None:
        """Claim no more runs. One that is being claimed right now still becomes news."""
        self._asked_for = 0

    def say(self, entry: Entry) -> None:
        """Have something said to the database, now or when it is back. It is on the disk when this returns.

        A point of a curve waits for the next turn, with those behind it: a transaction each was a third of a trial's.
        """
        self._outbox.append(entry)
        if not isinstance(entry, Logged):
            self._wake.set()

    def next_news(self) -> News | None:
        """The oldest thing that has happened and was not yet asked for; None when there is nothing new."""
        if self._news.empty():
            return None
        os.read(self._bell, 1)
        return self._news.get()

    @property
    def file(self) -> Path:
        """Where what is to be said waits."""
        return self._outbox.file

    def close(self, patience_seconds: float) -> bool:
        """Say what is left to say, and end; False while that is not done. May be called again.

        What is left when the process ends stays in the file, for the next worker with this output folder.
        """
        self._closing.set()
        self._wake.set()
        self._thread.join(patience_seconds)
        return not self._thread.is_alive() and self._outbox.is_empty

    def _work(self) -> None:
        try:
            self._take_turns()
        except Exception as error:  # noqa: BLE001 - whatever ends this thread must end the worker
            self._tell(Failed(error))

    def _take_turns(self) -> None:
        failures = 0
        while True:
            self._wake.clear()
            self._turn_since = time.monotonic()
            try:
                self._turn()
            except StorageUnavailable as error:
                self._note_away(error)
                failures += 1
                self._pause(failures)
                continue
            self._turn_since = float("inf")
            self._note_back()
            failures = 0
            if not self._closing.is_set():
                self._rest()
                self._wake.wait(self._until_next())
            elif self._outbox.is_empty:
                self._outbox.close()
                return

    def _turn(self) -> None:
        self._hand_back_unwanted()
        self._renew()
        self._empty(self._outbox)
        if self._closing.is_set():
            return
        self._look_after_others()
        self._claim()

    def _renew(self) -> None:
        now = time.monotonic()
        for run_id, (claim, renewed_at) in list(self._held.items()):
            if now - renewed_at < self._options.lease_seconds / 3:
                continue
            if runs.renew(self._database, claim, _now()):
                self._held[run_id] = (claim, now)
            else:
                self._lose(run_id)

    def _lose(self, run_id: str) -> None:
        if run_id in self._held:
            del self._held[run_id]
            log.warning("run %s: the lease is lost or was taken back; ending it here", run_id)
            self._tell(Lost(run_id))

    def _empty(self, box: Outbox) -> None:
        while first := box.first():
            self._say(first)
            box.drop_first(len(first))
            self._renew()

    def _say(self, entries: Sequence[Entry]) -> None:
        last = entries[-1]
        if isinstance(last, Finished):  # its lease ends with it, whatever becomes of the rest
            self._held.pop(last.held.run_id, None)
        said = saying.say(self._database, self._study, self._options.output, entries)
        for run_id in said.lost:
            self._lose(run_id)
        if isinstance(last, Reported) and said.verdict is not None:
            self._tell(Ruled(last.held.run_id, last.rows_seen, said.verdict))

    def _look_after_others(self) -> None:
        """A few times per lease period: say what the dead left, expire their leases, mend what they tore."""
        now = time.monotonic()
        if now - self._looked_at < self._options.lease_seconds / 3:
            return
        if self._looked_at == -float("inf"):
            retention.tidy_what_is_here(self._database, self._name, self._options.output)
        self._looked_at = now
        dead = self._watch.look(self._database, self._name)
        self._say_what_was_left({observed.worker.worker_id for observed in dead})
        for observed in dead:
            expired = leases.expire(self._database, observed, _now())
            if expired is not None:
                log.warning("run %s expired: its worker was not heard of for two lease periods", observed.run_id)
                if expired.trial_number is not None:
                    retention.tidy(self._database, self._name, expired.trial_number, self._options.output)
        for number in self._study.reconcile(time.monotonic(), 2 * self._options.lease_seconds):
            log.warning("trial %d was RUNNING in Optuna though its last run has ended: told so", number)

    def _say_what_was_left(self, dead: Collection[str]) -> None:
        """First, for it may be how a run ended that would expire."""
        for left in outbox.orphans(paths.outbox_files(self._options.output, self._name), dead):
            try:
                if not left.is_empty:
                    log.info("%s was left by a dead worker; saying what is in it", left.file)
                self._empty(left)
            finally:
                left.close()

    def _claim(self) -> None:
        if self._asked_for == 0 or time.monotonic() - self._asked_at < self._idle_seconds:
            return
        if self._claimed is None and not self._is_trusted():
            return
        self._claimed = self._claimed or claims.claim(self._database, self._study, self._identity)
        claim = self._claimed
        if claim is None:
            self._nothing_to_claim()
            return
        if self._asked_for == 0:  # since this turn began
            self._hand_back_unwanted()
            return
        self._held.setdefault(claim.run_id, (claim, time.monotonic()))
        if self._options.rates is not None:
            speeds.record(self._database, self._identity.worker_id, self._options.rates.model_dump_json())
        found = claims.with_its_past(self._database, claim, self._options.output)
        self._asked_for -= 1
        self._idle_seconds, self._asked_at = IDLE_SECONDS[0], -float("inf")
        self._tell(found)
        self._claimed = None

    def _hand_back_unwanted(self) -> None:
        """The run that was claimed for a worker that has been sent away since: also while the database is away."""
        claim = self._claimed
        if claim is not None and self._asked_for == 0:
            self._claimed = None
            unused = RunResult(end_reason=EndReason.PREEMPTED, message="not started")
            held = Held.of(claim)
            self.say(Finished(held=held, result=unused, at=_now(), retry=claim.spec, tells=False, link=None))

    def _nothing_to_claim(self) -> None:
        self._asked_at = time.monotonic()
        self._idle_seconds = min(IDLE_SECONDS[1], 1.5 * self._idle_seconds)
        stopped = studies.get(self._database, self._name).stopped is not None
        if not self._held and (stopped or (self._options.until_idle and claims.is_idle(self._database, self._study))):
            self._asked_for = 0
            self._tell(Over(done=not stopped))

    def _is_trusted(self) -> bool:
        """Whether this worker's GPU may have runs. If not the worker is to end, and hands back by this thread."""
        reason = suspicion.is_quarantined(self._database, self._name, self._identity.host, self._identity.gpu)
        if reason is None or self._options.trust_gpu or studies.get(self._database, self._name).stopped is not None:
            return True  # a study that is stopped hands out nothing, and says so itself
        self._asked_for = 0
        quarantined = StudyError(
            f"{self._identity.gpu} of {self._identity.host} is quarantined: {reason}. "
            "Look at it (mvsweep doctor), then start the worker with --trust-gpu"
        )
        self._tell(Failed(quarantined))
        return False

    def _rest(self) -> None:
        """Give the connections back: a server has fewer of them than a study may have workers."""
        if self._until_next() > REST_SECONDS:
            store.rest(self._database)
            self._study.rest()

    def _until_next(self) -> float:
        """Seconds until something is due that nobody rings for, points of curves among them."""
        now = time.monotonic()
        renewal = self._options.lease_seconds / 3
        due = [renewed_at + renewal for _claim, renewed_at in self._held.values()]
        due.append(self._looked_at + renewal)
        if self._held:
            due.append(now + CURVE_SECONDS)
        if self._asked_for:
            due.append(self._asked_at + self._idle_seconds)
        return max(0.0, min(due) - now)

    def _new_watch(self) -> leases.Watch:
        return leases.Watch(self._options.lease_seconds, time.monotonic)

    def _pause(self, failures: int) -> None:
        """Longer each time, and by chance, so that workers do not come back as one. `close` cuts one pause short."""
        longest = min(AWAY_SECONDS[1], self._options.lease_seconds / 4)
        seconds = min(longest, AWAY_SECONDS[0] * 2.0 ** min(failures, 10)) * self._chance.uniform(0.5, 1.0)
        if self._closing.is_set():
            time.sleep(seconds)
        else:
            self._closing.wait(seconds)

    def _note_away(self, error: MvsweepError) -> None:
        self._watch = self._new_watch()  # who could not renew meanwhile is not dead
        if self._away_since is None:
            self._away_since = time.monotonic()
            log.warning("%s Training goes on; what is to be said waits in %s", error, self._outbox.file)

    def _note_back(self) -> None:
        if self._away_since is not None:
            log.warning("the database is back after %.0f s", time.monotonic() - self._away_since)
            self._away_since = None

    def _tell(self, news: News) -> None:
        self._news.put(news)
        os.write(self._bell_rope, b"!")


def _now() -> datetime:
    return datetime.now(UTC)
