"""How fast a worker is on a study, as it was measured, and how long that makes some work take. Plain arithmetic.

A run that is alone wastes some of its device: with k runs side by side a row takes 1/R(k) = a + b/k seconds, where b is
what a pass costs whoever is in it. Two measured rates say what a and b are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from pydantic import Field

from mathverify_sweep.specs import Frozen


class Rates(Frozen):
    """Of one worker on one device, in the study's own rows and the settings of its search space."""

    slots: int = Field(ge=1, description="runs that share the device when it is busy")
    alone: float = Field(gt=0, description="rows a second that a run trains which has the device for itself")
    together: float = Field(gt=0, description="rows a second that `slots` runs train, all of them")
    judged: float = Field(gt=0, description="validation rows read a second")
    run_seconds: float = Field(ge=0, description="start and end of a run, beside training and judging")
    first_seconds: float = Field(ge=0, description="what a worker's first runs take on top")
    validation_rows: int = Field(ge=1, description="read at the end of a run")

    def trained(self, side_by_side: float) -> float:
        """Rows a second with so many runs at once, on average; no more than `slots` have an effect."""
        k = min(max(1.0, side_by_side), self.slots)
        if self.slots == 1:
            return self.alone
        whole = (1 / self.alone - 1 / self.together) / (1 - 1 / self.slots)
        return 1 / (1 / self.alone - whole + whole / k)

    def seconds(self, work: Work, side_by_side: float) -> float:
        """Device time of this work, by one worker or several, without what their first runs take on top."""
        return (
            work.rows_trained / self.trained(side_by_side)
            + work.rows_judged / self.judged
            + work.runs * self.run_seconds
        )


@dataclass(frozen=True)
class Work:
    """What there is to do, or was done; expected numbers need not be whole."""

    runs: float
    rows_trained: float
    rows_judged: float


def mean(rates: Sequence[Rates]) -> Rates:
    """Of workers that were measured side by side, each number's mean."""
    first = rates[0]
    numbers = {
        name: fmean(getattr(one, name) for one in rates)
        for name in ("alone", "together", "judged", "run_seconds", "first_seconds")
    }
    return first.model_copy(update=numbers)
