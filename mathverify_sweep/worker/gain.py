"""What is known on validation of the stages of a promotion: whether the next one is worth training, and what it begins
with.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from mathverify_sweep import metrics
from mathverify_sweep.data import dataset
from mathverify_sweep.metrics import Interval
from mathverify_sweep.resampling import paired_difference
from mathverify_sweep.specs import DataSpec, RunSpec
from mathverify_sweep.states import RunState
from mathverify_sweep.store import runs
from mathverify_sweep.store.runs import Claim, RunRecord

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine as Database

log = logging.getLogger(__name__)


def unneeded(database: Database, claim: Claim, spec: RunSpec) -> str | None:
    """Why the stage is not to be trained; None when it is, or when that cannot be told yet.

    The last finished stage is held against the best one before it: what counts is that the whole 95 % interval of the
    paired difference in accuracy, clustered by question, lies below `least_gain`. So a gain that is merely unsure goes
    on. Pieces of a trunk do not count: their learning rate has not come down.
    """
    if spec.least_gain is None:
        return None
    before = _finished_before(database, claim, spec)
    if len(before) < 2:
        return None
    last, best = before[-1], best_of(spec, before[:-1])
    found = _gain(database, spec, last, best)
    if found is None or found.high >= spec.least_gain:
        return None
    return f"not needed: {_told(last, best, found)}, below promotion.least_gain = {spec.least_gain:g}"


def last_that_stands(database: Database, spec: RunSpec, finished: Sequence[RunRecord]) -> RunRecord:
    """Of finished stages, in order, the last one; the best before it when the last is known to have made it worse.

    Known is what the whole 95 % interval of the paired difference says, so a stage that only seems worse stands.
    """
    last = finished[-1]
    if len(finished) == 1:
        return last
    best = best_of(spec, finished[:-1])
    found = _gain(database, spec, last, best)
    if found is None or found.high >= 0:
        return last
    log.info("stage %s goes back to stage %s: %s", spec.stage, best.stage, _told(last, best, found))
    return best


def best_of(spec: RunSpec, finished: Sequence[RunRecord]) -> RunRecord:
    """By the objective on validation; of equals, the first."""
    sign = 1 if metrics.higher_is_better(spec.objective) else -1
    return max(finished, key=lambda run: sign * _value(run))


def _gain(database: Database, spec: RunSpec, last: RunRecord, best: RunRecord) -> Interval | None:
    """Of one finished run over another; None when it cannot be told: predictions of an older version, or other data on
    this machine, which the engine says.
    """
    odds = [runs.log_odds(database, run.run_id, "validation") for run in (last, best)]
    labels, questions = _validation(spec.data)
    if odds[0] is None or odds[1] is None or len(odds[0]) != len(labels):
        return None
    return paired_difference(odds[0], odds[1], labels, questions)


def _told(last: RunRecord, best: RunRecord, found: Interval) -> str:
    return (
        f"stage {last.stage} brought {100 * found.estimate:+.2f} points "
        f"[{100 * found.low:+.2f}, {100 * found.high:+.2f}] over stage {best.stage}"
    )


def _finished_before(database: Database, claim: Claim, spec: RunSpec) -> list[RunRecord]:
    """The finished stages of the same promotion before this one, in order."""
    promotion_id = runs.get(database, claim.run_id).promotion_id
    found = [
        run
        for run in runs.runs(database, spec.study_name)
        if run.promotion_id == promotion_id and run.state is RunState.COMPLETE and run.spec is not None
    ]
    stages = [run for run in found if (run.stage or 0) < (spec.stage or 0) and run.spec and not run.spec.leaves_state]
    return sorted(stages, key=lambda run: run.stage or 0)


def _value(run: RunRecord) -> float:
    assert run.result is not None
    assert run.result.value is not None
    return run.result.value


@lru_cache(maxsize=1)
def _validation(spec: DataSpec) -> tuple[tuple[bool, ...], tuple[str, ...]]:
    rows = dataset.load(spec).validation
    return tuple(row.is_correct for row in rows), tuple(dataset.groups(rows))
