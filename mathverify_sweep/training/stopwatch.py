"""How fast an engine is on a study: runs of it that are watched for some seconds, and one that is seen to its end.

Any engine: it is asked for what a worker asks for, and all is seen by a reporter. What runs leave is the caller's to
throw away. Imports no torch.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import harmonic_mean

from mathverify_sweep.errors import ModelError
from mathverify_sweep.rates import Rates
from mathverify_sweep.specs import Frozen, RunResult, RunSpec
from mathverify_sweep.states import EndReason, Verdict
from mathverify_sweep.training.order import Engine, Order

WARM_STEPS, WARM_SECONDS = 4, 2.5
"""Every run's first steps, and so many seconds, are not counted: kernels are chosen then, and passes recorded."""
STEPS, SECONDS = 3, 2.5
"""How long runs are watched: every one for more steps than this, all together for so many seconds."""
MOST_SECONDS = 300.0
"""How long at most, however few steps there were."""
SETTINGS = 3
"""Points of the search space that are measured at least, where a device has no use for as many runs at once."""
ALONE = 2
"""Of these, how many have the device for themselves, where it has room for more."""

_LONG_ROWS = 100_000
"""Rows of a run that is not to end while it is watched."""
_GENTLE = 1e-6
"""A learning rate at which nothing diverges."""

Clock = Callable[[], float]


class Measured(Frozen):
    """The rates, how the engine uses its device, and the most memory that was in use."""

    rates: Rates
    how: str
    peak_memory_bytes: int


def measure(
    engine: Engine, specs: Sequence[RunSpec], folder: Path, tell: Callable[[str], None], clock: Clock = time.monotonic
) -> Measured:
    """Trains runs of these specs, as many at once as the engine has a use for, for some seconds each.

    `specs` are trials of one study with settings of all kinds. `tell` hears what is going on. Raises ModelError.
    """
    stopwatch = _Stopwatch(engine, folder, clock)
    settings = itertools.cycle(specs)
    tell("training as many runs as there is a use for")
    rounds = [stopwatch.watched(settings, len(specs))]
    slots = len(rounds[0].watches)
    while slots * len(rounds) < SETTINGS:
        tell(f"training with other settings, {len(rounds) + 1} of {-(-SETTINGS // slots)}")
        rounds.append(stopwatch.watched(settings, slots))
    together = harmonic_mean([one.rate() for one in rounds])
    alone = together
    if slots > 1:
        tell("training a run by itself")
        alone = harmonic_mean([stopwatch.watched(settings, 1).rate() for _ in range(ALONE)])
    tell("judging, and ending a run")
    judged, run_seconds, validation_rows = stopwatch.seen_to_its_end(next(settings))
    return Measured(
        rates=Rates(
            slots=slots,
            alone=alone,
            together=together,
            judged=judged,
            run_seconds=run_seconds,
            first_seconds=max(0.0, rounds[0].warming_seconds() - slots * run_seconds),
            validation_rows=validation_rows,
        ),
        how=engine.told(),
        peak_memory_bytes=stopwatch.peak_memory_bytes,
    )


class _Watch:
    """A run's reporter that notes when steps were taken, and how long a look at a rung took."""

    def __init__(self, batch: int, is_over: Callable[[], bool], clock: Clock) -> None:
        self.batch, self._is_over, self._clock = batch, is_over, clock
        self.steps: list[float] = []
        self.looks: list[float] = []

    def report(self, rows_seen: int, value: float) -> Verdict:  # noqa: ARG002
        """The step before it was over when the look began."""
        self.looks.append(self._clock() - self.steps[-1])
        return Verdict.CONTINUE

    def log(self, rows_seen: int, loss: float, learning_rate: float) -> None:
        """Of no interest."""

    def interrupted(self) -> EndReason | None:
        """Asked after every step."""
        self.steps.append(self._clock())
        return EndReason.STOPPED_BY_USER if self._is_over() else None

    def between(self, since: float, until: float) -> list[float]:
        """When steps were taken in that time."""
        return [step for step in self.steps if since < step <= until]


class _Round:
    """Runs side by side, from the start of the first until all of them have been watched for long enough.

    Each run is taken by its own beat, from step to step: together they step in bursts, and a burst at the border of a
    window would count or not by chance.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began = clock()
        self._full: float | None = None
        self._since: float | None = None
        self._until: float | None = None
        self.watches: list[_Watch] = []

    def add(self, spec: RunSpec) -> _Watch:
        """The reporter of one more run."""
        self.watches.append(_Watch(spec.params.effective_batch_size, self._is_over, self._clock))
        return self.watches[-1]

    def fill(self) -> None:
        """No more runs will be added."""
        self._full = self._clock()

    def rate(self) -> float:
        """Rows a second that all runs trained. Raises ModelError."""
        assert self._since is not None
        assert self._until is not None
        found = 0.0
        for watch in self.watches:
            steps = watch.between(self._since, self._until)
            if len(steps) < 2:
                raise ModelError(
                    f"a run must take two steps in {MOST_SECONDS:g} s to be measured, one with an effective batch of "
                    f"{watch.batch} rows took {len(steps)}. This device is too slow for this model"
                )
            found += watch.batch * (len(steps) - 1) / (steps[-1] - steps[0])
        return found

    def warming_seconds(self) -> float:
        """What the time before the window was longer than its rows would have taken within."""
        assert self._since is not None
        rows = sum(watch.batch * len(watch.between(self._began, self._since)) for watch in self.watches)
        return self._since - self._began - rows / self.rate()

    def _is_over(self) -> bool:
        if self._full is None or self._until is not None:
            return self._until is not None
        now = self._clock()
        if self._since is None:
            if now - self._full >= WARM_SECONDS and all(len(watch.steps) >= WARM_STEPS for watch in self.watches):
                self._since = now
            return False
        watched = all(len(watch.between(self._since, now)) > STEPS for watch in self.watches)
        if now - self._since >= (SECONDS if watched else MOST_SECONDS):
            self._until = now
        return self._until is not None


class _Stopwatch:
    """Starts runs in the engine, and lets it work."""

    def __init__(self, engine: Engine, folder: Path, clock: Clock) -> None:
        self._engine, self._folder, self._clock = engine, folder, clock
        self._numbers = itertools.count()
        self._running = 0
        self.peak_memory_bytes = 0

    def watched(self, settings: Iterator[RunSpec], most: int) -> _Round:
        """Runs that are started until `most` are there, or the engine has no use for another one; then watched."""
        found = _Round(self._clock)
        is_full = False
        while not is_full or self._running:
            if not is_full:
                spec = _long(next(settings))
                self._start(spec, found.add(spec))
                is_full = len(found.watches) == most or not self._engine.free_slots()
                if is_full:
                    found.fill()  # before the step, in which an engine of one slot trains to the end of the run
            self._step()
        return found

    def seen_to_its_end(self, spec: RunSpec) -> tuple[float, float, int]:
        """A run of two steps with a look at a rung, which is not counted: validation rows judged a second at its end,
        seconds for its start and end without that, and validation rows.
        """
        spec = _short(spec)
        watch = _Watch(spec.params.effective_batch_size, lambda: False, self._clock)
        began = self._clock()
        self._start(spec, watch)
        starting = self._clock() - began
        ended: list[RunResult] = []
        while self._running:
            ended = self._step()
        (result,) = ended
        if result.metrics is None:
            raise ModelError(f"a measured run must get to its end, it ended {result.end_reason}: {result.message}")
        judging = max(result.eval_seconds - sum(watch.looks), 1e-6)
        ending = self._clock() - watch.steps[-1] - judging
        return result.metrics.rows / judging, starting + max(0.0, ending), result.metrics.rows

    def _start(self, spec: RunSpec, watch: _Watch) -> None:
        run_id = f"measured-{next(self._numbers)}"
        folder = self._folder / run_id
        folder.mkdir(parents=True)
        self._engine.start(run_id, Order(spec, folder), watch)
        self._running += 1

    def _step(self) -> list[RunResult]:
        results = [result for _, result in self._engine.step()]
        for result in results:
            if result.end_reason not in (EndReason.STOPPED_BY_USER, EndReason.FINISHED):
                raise ModelError(f"a measured run must not fail, it ended {result.end_reason}: {result.message}")
            self.peak_memory_bytes = max(self.peak_memory_bytes, result.peak_memory_bytes)
        self._running -= len(results)
        return results


def _long(spec: RunSpec) -> RunSpec:
    """A run that looks at nothing and is not over soon."""
    epochs = max(1.0, _LONG_ROWS / spec.train_rows)
    return spec.model_copy(update={"params": _gentle(spec), "rungs": (), "epochs": epochs})


def _short(spec: RunSpec) -> RunSpec:
    """A run of two steps that looks after the first one."""
    batch = spec.params.effective_batch_size
    epochs = 2 * batch / spec.train_rows
    return spec.model_copy(update={"params": _gentle(spec), "rungs": (batch,), "epochs": epochs})


def _gentle(spec: RunSpec) -> object:
    return spec.params.model_copy(update={"learning_rate": _GENTLE})
