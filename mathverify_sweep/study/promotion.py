"""Which trials deserve a long run, and the stages of that run. Queues nothing: `store.promotions` does."""

from __future__ import annotations

import logging

from mathverify_sweep import metrics
from mathverify_sweep.config import StageSize
from mathverify_sweep.errors import StudyError
from mathverify_sweep.specs import RunSpec
from mathverify_sweep.states import RunState
from mathverify_sweep.study.study import StudyHandle

log = logging.getLogger(__name__)


def select(study: StudyHandle, top: int) -> list[int]:
    """The numbers of the `top` best complete trials, the best first; of equals, the earlier one.

    Raises StudyError when fewer are complete.
    """
    sign = -1 if metrics.higher_is_better(study.config.objective) else 1
    values = {t.number: t.value for t in study.trials() if t.state is RunState.COMPLETE and t.value is not None}
    if len(values) < top:
        raise StudyError(
            f"study {study.config.study!r} has {len(values)} complete trial(s), {top} were asked for. "
            "Run more trials, or promote fewer."
        )
    return sorted(values, key=lambda number: (sign * values[number], number))[:top]


def stages(study: StudyHandle, trial_number: int, available: int) -> tuple[RunSpec, ...]:
    """The runs of a trial's cumulative promotion: stage k trains one epoch over the first n_k rows, with no rungs.

    `available`: training rows that there are; a larger stage is capped, and one that then is no larger than the stage
    before it is left out, and that is logged. Where a stage starts from is the store's to fill in.
    """
    trial = next((t for t in study.trials() if t.number == trial_number), None)
    if trial is None or trial.state is not RunState.COMPLETE:
        stands = "does not exist" if trial is None else f"is {trial.state}"
        raise StudyError(
            f"trial {trial_number} of study {study.config.study!r} {stands}; only a COMPLETE trial can be promoted."
        )
    config = study.config
    spec = config.trial_spec(trial_number, config.space.params(trial.params), study.data_fingerprint)
    return tuple(
        RunSpec.model_validate({**spec.model_dump(), "stage": stage, "train_rows": rows, "rungs": ()})
        for stage, rows in enumerate(sizes(config.promotion.stages, available), 1)
    )


def sizes(wanted: tuple[StageSize, ...], available: int) -> list[int]:
    """Training rows of each stage, growing; `wanted` are numbers, shares, or `all`."""
    kept: list[int] = []
    for size in wanted:
        rows = min(_rows(size, available), available)
        if kept and rows <= kept[-1]:
            log.warning(
                "stage %s left out: it is %d of %d rows, the stage before it %d", size, rows, available, kept[-1]
            )
            continue
        kept.append(rows)
    return kept


def _rows(size: StageSize, available: int) -> int:
    if isinstance(size, str):
        return available
    return max(1, round(size * available)) if isinstance(size, float) else size
