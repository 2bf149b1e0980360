"""Which checkpoints stay: a rule over what the database has of a trial's runs, the same whoever looks.

    of a run that waits or runs                              the newest two, over all its attempts
    of a stage that failed and may be resumed by a person    the same
    of a finished piece of a trunk                           the same, while a run that goes on from it is one of these
    of any other                                             none

So nothing is deleted that a resume may need, and what no resume can need goes when its run ends, whoever says so: its
own worker, the next one that finds its outbox, or who has seen its lease expire.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mathverify_sweep import depot, paths
from mathverify_sweep.states import RunState
from mathverify_sweep.store import runs
from mathverify_sweep.store.runs import RunRecord
from mathverify_sweep.training.order import KEPT_CHECKPOINTS

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine as Database

Line = Sequence[RunRecord]
"""The attempts of one run, the first one first."""


def tidy(database: Database, study_name: str, trial_number: int, output: Path) -> None:
    """Delete, under this output folder, what the rule does not keep of a trial's runs. To be said when one has ended.

    May be said again, and by several. Raises StorageError.
    """
    lines = lines_of(runs.of_trial(database, study_name, trial_number))
    kept = {line[-1].run_id for line in lines if is_kept(line, lines)}
    for line in lines:
        left = KEPT_CHECKPOINTS if line[-1].run_id in kept else 0
        for attempt in reversed(line):
            left -= _keep_newest(attempt, left, output)


def tidy_what_is_here(database: Database, study_name: str, output: Path) -> None:
    """The same for all trials that have checkpoints under this output folder: to be said when a worker begins.

    In a cache of an output folder at a URL they may be of runs that another host has ended since. Raises StorageError.
    """
    found = {
        run.trial_number
        for run in runs.runs(database, study_name)
        if run.trial_number is not None
        and run.lease_token is not None
        and paths.checkpoints_folder(paths.run_folder(output, study_name, run.run_id, run.lease_token)).exists()
    }
    for trial_number in sorted(found):
        tidy(database, study_name, trial_number, output)


def lines_of(attempts: Sequence[RunRecord]) -> list[Line]:
    """The attempts of a trial's runs, run by run."""
    found: dict[tuple[str | None, int | None], list[RunRecord]] = defaultdict(list)
    for attempt in sorted(attempts, key=lambda run: run.attempt):
        found[attempt.promotion_id, attempt.stage].append(attempt)
    return list(found.values())


def is_kept(line: Line, others: Sequence[Line]) -> bool:
    """Whether the rule keeps checkpoints of this run; `others` are all runs of its trial."""
    return _may_go_on(line) or (_leaves_state(line) and any(_builds_on(other, line) for other in others))


def _may_go_on(line: Line) -> bool:
    last = line[-1]
    may_be_resumed = last.stage is not None and last.state is RunState.FAIL
    return may_be_resumed or last.state in (RunState.WAITING, RunState.RUNNING)


def _leaves_state(line: Line) -> bool:
    last = line[-1]
    return last.state is RunState.COMPLETE and last.spec is not None and last.spec.leaves_state


def _builds_on(other: Line, line: Line) -> bool:
    """Whether this run goes on, or may go on, from a checkpoint of that one."""
    spec = other[-1].spec
    return _may_go_on(other) and spec is not None and spec.goes_on_from in {attempt.run_id for attempt in line}


def _keep_newest(attempt: RunRecord, most: int, output: Path) -> int:
    """Of an attempt that has ended; how many of its checkpoints are left."""
    if attempt.lease_token is None:
        return 0
    folder = paths.run_folder(output, attempt.study_name, attempt.run_id, attempt.lease_token)
    try:
        there = paths.checkpoints(folder)
    except OSError:  # the engine that goes on from them says what is wrong
        return 0
    if attempt.state is RunState.RUNNING:  # its engine sees to them
        return len(there)
    if most <= 0:
        depot.drop(output, paths.checkpoints_folder(folder))
        return 0
    for old in there[:-most]:
        depot.drop(output, old)
    return min(most, len(there))
