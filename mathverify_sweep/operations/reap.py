"""`mvsweep reap`: watch those of whom nothing is known, and mend what the dead have left. Ends nobody who may live.

Dead is who has no process any more, on this host; or whose lease expired while it was watched, by the rule of
`store.leases`; or a trial that stood still for as long. Whoever renews meanwhile is alive.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mathverify_sweep.operations import leftovers
from mathverify_sweep.operations.suspects import Kind, Life, Suspect, Worker, suspects
from mathverify_sweep.specs import Frozen
from mathverify_sweep.store import blocked, leases
from mathverify_sweep.store.leases import Observed
from mathverify_sweep.store.runs import WorkerIdentity
from mathverify_sweep.worker import retention

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine as Database

    from mathverify_sweep.study.study import StudyHandle

LEASE_SECONDS = 60.0
"""Of a worker whose row does not say it, and of whoever should take a trial or tell of it."""

_OF_TRIALS = (Kind.UNTOLD, Kind.UNTAKEN)


class Mended(Frozen):
    """What was done, in sentences, and what is left as it is because nothing is known of it."""

    done: tuple[str, ...]
    unknown: tuple[Suspect, ...]


@dataclass(frozen=True)
class Clock:
    """Time as the watch sees it."""

    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class _Seen:
    """What a watch has seen: leases that expired, by run, and runs whose lease was renewed or begun."""

    expired: dict[str, Observed]
    renewed: set[str]


def watched(database: Database, study: StudyHandle, clock: Clock) -> list[Suspect]:
    """The suspects after two lease periods, or sooner when all is known.

    Raises StorageError when the database goes away meanwhile: then nothing is known.
    """
    before = suspects(database, study)
    seen = _watch(database, study.config.study, before, clock)
    stood_still = {_key(suspect) for suspect in before}
    return [_judged(suspect, seen, stood_still) for suspect in suspects(database, study)]


def mend(database: Database, study: StudyHandle, found: Sequence[Suspect], output: Path) -> Mended:
    """Say what dead workers left unsaid under `output`, expire the dead, end what waits in vain, tell Optuna.

    Those of whom nothing is known stay as they are.
    """
    dead = [suspect for suspect in found if _is_dead(suspect, Kind.RUNNING)]
    # First: it may be how a run ended that would expire.
    done = leftovers.say(database, study, output, {s.worker.worker_id for s in dead if s.worker})
    done += [_expire(database, study, suspect, output) for suspect in dead]
    ended = blocked.end_blocked(database, study.config.study, datetime.now(UTC))
    if ended:
        done.append(f"ended {ended} run(s) that waited for one that failed")
    left = suspects(database, study)  # those that expired just now may have left trials behind
    numbers = {suspect.trial_number for suspect in [*found, *left] if _is_dead(suspect, *_OF_TRIALS)}
    mended = study.reconcile(time.monotonic(), 0.0, only=[number for number in numbers if number is not None])
    done += [f"trial {number}: told Optuna how it ended" for number in mended]
    known = {_key(suspect) for suspect in found if suspect.life is not Life.UNKNOWN}
    unknown = [suspect for suspect in left if suspect.life is Life.UNKNOWN and suspect.kind is not Kind.LATE]
    return Mended(
        done=tuple(done),
        unknown=tuple(s for s in unknown if _key(s) not in known and s.trial_number not in mended),
    )


def _watch(database: Database, name: str, before: Sequence[Suspect], clock: Clock) -> _Seen:
    of_trials = [_lease(s) for s in before if s.kind in _OF_TRIALS and s.life is Life.UNKNOWN]
    of_runs = [_lease(s) for s in before if s.kind is Kind.RUNNING and s.life is not Life.DEAD]
    if not of_trials and not of_runs:
        return _Seen({}, set())
    period = min(of_trials + of_runs)
    watch = leases.Watch(period, clock.monotonic)
    first = {lease.run_id: lease for lease in leases.running(database, name)}
    seen = _Seen({}, set())
    end = clock.monotonic() + 2 * max(of_trials + of_runs) + period
    while clock.monotonic() < end:
        seen.expired.update({lease.run_id: lease for lease in watch.look(database, name)})
        now = leases.running(database, name)
        seen.renewed.update(lease.run_id for lease in now if lease != first.get(lease.run_id))
        if not of_trials and all(lease.run_id in seen.expired or lease.run_id in seen.renewed for lease in now):
            break
        clock.sleep(period / 3)
    return seen


def _judged(suspect: Suspect, seen: _Seen, stood_still: set[object]) -> Suspect:
    if suspect.kind is Kind.RUNNING and suspect.run_id in seen.renewed:
        return _now(suspect, Life.ALIVE, "it renewed its lease while it was watched")
    if suspect.kind is Kind.RUNNING and suspect.run_id in seen.expired:
        lives = ", though its process lives" if suspect.life is Life.ALIVE else ""
        return _now(suspect, Life.DEAD, f"it did not renew its lease for two lease periods{lives}")
    if suspect.kind in _OF_TRIALS and suspect.life is Life.UNKNOWN and _key(suspect) in stood_still:
        return _now(suspect, Life.DEAD, f"{suspect.why}; nothing changed while it was watched")
    return suspect


def _now(suspect: Suspect, life: Life, why: str) -> Suspect:
    return suspect.model_copy(update={"life": life, "why": why})


def _is_dead(suspect: Suspect, *kinds: Kind) -> bool:
    return suspect.kind in kinds and suspect.life is Life.DEAD


def _expire(database: Database, study: StudyHandle, suspect: Suspect, output: Path) -> str:
    """By what was seen of the lease: whoever renewed it since then keeps it."""
    worker = suspect.worker
    assert worker is not None
    assert suspect.run_id is not None
    assert suspect.lease_token is not None
    assert worker.renewed_at is not None
    identity = WorkerIdentity(**worker.model_dump(exclude={"renewals", "renewed_at"}))
    lease = Observed(
        suspect.run_id, suspect.lease_token, worker.renewals, suspect.trial_number, identity, worker.renewed_at
    )
    expired = leases.expire(database, lease, datetime.now(UTC))
    if expired is None:
        return f"run {suspect.run_id} is left alone: it was renewed or ended meanwhile"
    if expired.trial_number is None:
        return f"run {suspect.run_id} dropped: it had no trial yet"
    retention.tidy(database, study.config.study, expired.trial_number, output)
    then = f"run {expired.next_run_id} goes on with it" if expired.next_run_id else "that was its last attempt"
    return f"run {suspect.run_id} of trial {expired.trial_number} expired; {then}"


def _lease(suspect: Suspect) -> float:
    worker: Worker | None = suspect.worker
    return (worker.lease_seconds if worker else None) or LEASE_SECONDS


def _key(suspect: Suspect) -> object:
    return suspect.kind, suspect.run_id, suspect.lease_token, suspect.trial_number
