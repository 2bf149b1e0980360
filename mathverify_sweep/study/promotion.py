"""Which trials deserve a long run, and the spec that its plan changes. Queues nothing: `store.promotions` does."""

from __future__ import annotations

from mathverify_sweep import metrics
from mathverify_sweep.errors import StudyError
from mathverify_sweep.specs import RunSpec
from mathverify_sweep.states import RunState
from mathverify_sweep.study.study import StudyHandle
from mathverify_sweep.study.views import TrialView


def select(study: StudyHandle, top: int) -> list[int]:
    """The numbers of the `top` best complete trials, the best first; of equals, the earlier one.

    Scores from elsewhere are for the sampler: they choose nothing. Raises StudyError when fewer are complete.
    """
    sign = -1 if metrics.higher_is_better(study.config.objective) else 1
    values = {t.number: t.value for t in complete(study) if t.value is not None}
    if len(values) < top:
        raise StudyError(
            f"study {study.config.study!r} has {len(values)} complete trial(s), {top} were asked for. "
            "Run more trials, or promote fewer."
        )
    return sorted(values, key=lambda number: (sign * values[number], number))[:top]


def complete(study: StudyHandle) -> list[TrialView]:
    """The trials that were trained here to their end."""
    return [trial for trial in study.trials() if trial.state is RunState.COMPLETE and not trial.ran_elsewhere]


def spec_of(study: StudyHandle, trial_number: int) -> RunSpec:
    """The spec of a trial to promote. Raises StudyError unless it is COMPLETE."""
    trial = next((t for t in study.trials() if t.number == trial_number), None)
    if trial is None or trial.state is not RunState.COMPLETE:
        stands = "does not exist" if trial is None else f"is {trial.state}"
        raise StudyError(
            f"trial {trial_number} of study {study.config.study!r} {stands}; only a COMPLETE trial can be promoted."
        )
    config = study.config
    return config.trial_spec(trial_number, config.space.params(trial.params), study.data_fingerprint)
