"""What the entries of an outbox do to the database, whoever says them: their worker, the next one, a person who reaps.

Each may be said again: the lease token decides what of it still counts.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mathverify_sweep import paths
from mathverify_sweep.errors import StudyError
from mathverify_sweep.specs import RunResult
from mathverify_sweep.states import EndReason, Verdict
from mathverify_sweep.store import runs, studies, suspicion
from mathverify_sweep.store.runs import Point
from mathverify_sweep.worker import retention
from mathverify_sweep.worker.outbox import Entry, Finished, Held, Logged, Reported

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine as Database

    from mathverify_sweep.study.study import StudyHandle

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Said:
    """What came of it. `lost`: runs that are not their worker's any more. `verdict`: the pruner's, on the report."""

    lost: tuple[str, ...] = ()
    verdict: Verdict | None = None


def say(database: Database, study: StudyHandle, output: Path, entries: Sequence[Entry]) -> Said:
    """Say entries as `Outbox.first` gives them. Raises StorageError; then all of them are to be said again."""
    last = entries[-1]
    if isinstance(last, Finished):
        return Said(() if _say_end(database, study, output, last) else (last.held.run_id,))
    points: dict[Held, list[Point]] = {}
    for entry in entries:
        if not isinstance(entry, Finished):
            points.setdefault(entry.held, []).append(_point(entry))
    lost = tuple(held.run_id for held, said in points.items() if not runs.progress(database, held.claim(), said))
    if not isinstance(last, Reported) or not last.asks or last.held.run_id in lost:
        return Said(lost)
    held = last.held
    verdict = study.report(held.trial_number, last.rows_seen, last.value)
    pruned = ", pruned" if verdict is Verdict.PRUNE else ""
    log.info("run %s trial %d at %d rows: %.4f%s", held.run_id, held.trial_number, last.rows_seen, last.value, pruned)
    return Said(lost, verdict)


def _say_end(database: Database, study: StudyHandle, output: Path, entry: Finished) -> bool:
    """Our row first, Optuna second; False when it came too late."""
    held, result = entry.held, entry.result
    taken = runs.finish(database, held.claim(), result, entry.at, entry.retry) or _is_ended(database, entry)
    if not taken:
        # Who only stopped because its lease was lost has nothing to keep.
        if result.end_reason is not EndReason.LEASE_EXPIRED and runs.keep_late(database, held.claim(), result):
            log.warning("run %s ended %s too late: the lease was lost", held.run_id, result.end_reason)
        retention.tidy(database, study.config.study, held.trial_number, output)
        return False
    if entry.tells:
        run = runs.get(database, held.run_id)
        points = runs.points(database, held.run_id)
        study.show(run, points, entry.link, paths.artifacts_folder(output))
        study.tell(held.trial_number, result, held.run_id)
    retention.tidy(database, study.config.study, held.trial_number, output)
    if result.end_reason is EndReason.CRASHED:
        _suspect(database, study.config.study, result)
    return True


def _is_ended(database: Database, entry: Finished) -> bool:
    """Whether the row ended with this very result: it was said before, and the answer was lost."""
    try:
        run = runs.get(database, entry.held.run_id)
    except StudyError:  # a database that was restored, or made anew beside an output folder that was not
        log.warning("run %s is not in this database: what is to be said of it is left out", entry.held.run_id)
        return False
    same_result = run.result == entry.result.model_copy(update={"log_odds": ()})
    return run.lease_token == entry.held.lease_token and same_result


def _suspect(database: Database, name: str, result: RunResult) -> None:
    """After a crash: is it the code, which ends the study?"""
    reason = suspicion.repeated_crash(database, name, result.message)
    if reason is not None and studies.get(database, name).stopped is None:
        studies.stop(database, name, reason)
        log.error("study %s stopped: %s", name, reason)


def _point(entry: Logged | Reported) -> Point:
    if isinstance(entry, Reported):
        return Point(entry.rows_seen, value=entry.value)
    return Point(entry.rows_seen, loss=entry.loss, learning_rate=entry.learning_rate)
