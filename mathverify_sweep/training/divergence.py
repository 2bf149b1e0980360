"""When a run has diverged: the loss or the gradient is not a number, or the loss has exploded and stays there.

Exploded: the median loss of the last 20 steps is above twice the lowest level of this run, which is the least of its
first step's loss (the base model's own) and of all such medians, and above 3 ln 2. A median, so that no single step
ends a run. ln 2 is a coin toss on the verdict; three times it is a probability of 1/8 for the right one. A run that is
merely no better than tossing, or that spikes for some steps after the warm-up, is left to the pruner; one that meets
the rule has been driven far from what it or its base knew, and does not come back within its one epoch.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from statistics import median

from mathverify_sweep.errors import TrainingEnded
from mathverify_sweep.states import EndReason

WINDOW = 20
FACTOR = 2.0
NEVER_BELOW = 3 * math.log(2)


class DivergenceWatch:
    """Looks at every optimizer step of one run."""

    def __init__(self, recent: Iterable[float] = (), lowest: float | None = None) -> None:
        """With what another watch has seen up to here, this one goes on from there."""
        self._recent = deque(recent, maxlen=WINDOW)
        self._lowest = math.inf if lowest is None else lowest

    @property
    def seen(self) -> tuple[tuple[float, ...], float | None]:
        """The last losses and the lowest level, as the constructor takes them."""
        return tuple(self._recent), self._lowest if self._recent else None

    def check(self, loss: float, gradient_norm: float, rows_seen: int) -> None:
        """Raises TrainingEnded(DIVERGED) when this step ends the run."""
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            _diverged(f"loss {loss}, gradient norm {gradient_norm} after {rows_seen} rows")
        if not self._recent:
            self._lowest = loss
        self._recent.append(loss)
        if len(self._recent) < WINDOW:
            return
        level = median(self._recent)
        self._lowest = min(self._lowest, level)
        limit = max(FACTOR * self._lowest, NEVER_BELOW)
        if level > limit:
            _diverged(f"median loss {level:.3g} of {WINDOW} steps, above {limit:.3g}, after {rows_seen} rows")


def _diverged(what: str) -> None:
    raise TrainingEnded(EndReason.DIVERGED, what)
