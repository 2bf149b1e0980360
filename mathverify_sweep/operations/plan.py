"""`mvsweep plan`: what a sweep will take on this machine, from rates that are measured here and now.

Counts the work, has the rates measured, divides. What it cannot know it says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from mathverify_sweep.config import SweepConfig
from mathverify_sweep.rates import Work
from mathverify_sweep.reports.checked import load_data
from mathverify_sweep.reports.planned import Part, PlanReport
from mathverify_sweep.specs import PlannedStage, RunSpec
from mathverify_sweep.study import expected, plans
from mathverify_sweep.study.expected import Trials
from mathverify_sweep.worker import devices, measuring
from mathverify_sweep.worker.devices import Device
from mathverify_sweep.worker.engine import EngineOptions
from mathverify_sweep.worker.measuring import Bench, Found

SETTINGS = 32
"""Points of the search space that are measured at most: as many as an engine trains at once."""

ASSUMED = (
    "Measured: rows a second, what comes beside, memory; with rows of this study and settings from all of its space.",
    "Assumed: trials get no better with time. Those of a sampler that learns are pruned later, and take longer.",
    "Assumed: workers are busy to the end. The last runs have fewer beside them, and take longer where runs share.",
    "Not in it: second attempts, waiting for the database or W&B, budgets of hours and deadlines that end it early.",
)


@dataclass(frozen=True)
class Wanted:
    """Workers that are to be: how many, with which options, on devices like this one or sharing this CPU."""

    device: Device
    options: EngineOptions
    workers: int


def make(config: SweepConfig, wanted: Wanted, tell: Callable[[str], None]) -> PlanReport:
    """Measure, which takes from some seconds to minutes, and predict. `tell` hears what is going on.

    The rates are remembered for workers of this study on such a device. Raises MvsweepError.
    """
    data = load_data(config)
    settings = expected.settings(config, SETTINGS)
    specs = tuple(config.trial_spec(number, params, data.fingerprint) for number, params in enumerate(settings))
    stages = plans.plan(specs[0], len(data.train), config.promotion)
    bench = _bench(wanted, specs)
    found = measuring.measure(bench, tell)
    measuring.remember(config, data.fingerprint, bench, found)
    return PlanReport(
        study=config.study,
        device=bench.device.kind,
        workers=wanted.workers,
        engine=found.engine,
        note=found.note or "",
        how=found.how,
        rates=found.rates,
        load_seconds=found.load_seconds,
        peak_bytes=found.peak_bytes,
        device_bytes=found.device_bytes,
        parts=tuple(_parts(config, stages, found, wanted.workers)),
        assumed=ASSUMED,
    )


def work_of_trials(config: SweepConfig, trials: Trials, validation_rows: int) -> Work:
    """What all trials train and judge."""
    at_a_rung = min(config.training.rung_rows or validation_rows, validation_rows)
    judged = trials.looks * at_a_rung + trials.finished * validation_rows
    return Work(runs=config.trials, rows_trained=trials.rows, rows_judged=judged)


def work_of_promotions(stages: Sequence[PlannedStage], top: int, validation_rows: int) -> Work:
    """What `top` promotions of these stages train and judge, when none is stopped. A run that goes on from another one
    does not train its rows again.
    """
    before = [0 if one.goes_on_from is None else stages[one.goes_on_from].spec.rows_to_meet for one in stages]
    rows = sum(one.spec.rows_to_meet - there for one, there in zip(stages, before, strict=True))
    return Work(runs=top * len(stages), rows_trained=top * rows, rows_judged=top * len(stages) * validation_rows)


def _bench(wanted: Wanted, specs: tuple[RunSpec, ...]) -> Bench:
    """Workers with a GPU each do not meet, so one is measured; those that share a CPU slow each other down."""
    device = wanted.device
    if device.torch_name != "cpu":
        return Bench(device, wanted.options, 1, specs)
    environment = {**device.environment, **devices.shared(wanted.workers)}
    return Bench(replace(device, environment=environment), wanted.options, wanted.workers, specs)


def _parts(config: SweepConfig, stages: Sequence[PlannedStage], found: Found, workers: int) -> Iterator[Part]:
    """Trials at most, trials as they may be pruned, and promotions by the workers that have done the trials."""
    validation, count, top = found.rates.validation_rows, config.trials, config.promotion.top
    busy = min(workers, count)
    kinds = {"trials, none pruned": expected.unpruned(config)}
    if config.pruner.type != "none":
        kinds["trials, pruned"] = expected.pruned(config)
    for name, trials in kinds.items():
        part = _part(name, work_of_trials(config, trials, validation), busy, count / busy, found)
        first = found.rates.first_seconds
        yield part.model_copy(
            update={
                "device_seconds": part.device_seconds + busy * first,
                "seconds": part.seconds + first + found.load_seconds,
            }
        )
    busy = min(workers, top)
    yield _part(f"promotion of {top}", work_of_promotions(stages, top, validation), busy, top / busy, found)


def _part(name: str, work: Work, workers: int, side_by_side: float, found: Found) -> Part:
    """By workers that are all loaded, and equally busy."""
    seconds = found.rates.seconds(work, side_by_side)
    return Part(
        name=name,
        runs=round(work.runs),
        rows_trained=round(work.rows_trained),
        rows_judged=round(work.rows_judged),
        device_seconds=seconds,
        seconds=seconds / workers,
    )
