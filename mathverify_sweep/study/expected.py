"""What a study will do, before it has begun: settings as its space has them, trials as its pruner ends them.

Plays with Optuna in memory; opens no database.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import optuna

from mathverify_sweep.config import SweepConfig
from mathverify_sweep.specs import TrainParams
from mathverify_sweep.study import space

REPEATS = 10
"""How often a study is played: 31 trials at two rungs then differ from the mean by a percent."""
MOST_TRIALS = 100
"""Trials of a study that is played; of a longer one the rest go like these."""


@dataclass(frozen=True)
class Trials:
    """Of all trials of a study: rows that they train, looks at rungs, and how many come to their end."""

    rows: float
    looks: float
    finished: float


@dataclass(frozen=True)
class _Length:
    """Of one trial: rows that it trains unless it is pruned, and the rungs below them. `max_steps` makes it short."""

    rows: int
    rungs: tuple[int, ...]


def settings(config: SweepConfig, count: int) -> tuple[TrainParams, ...]:
    """Points that fill the search space evenly, whatever the study's sampler is."""
    return _asked(config, _evenly(config), count)


def unpruned(config: SweepConfig) -> Trials:
    """Every trial comes to its end."""
    lengths = _lengths(config)
    share = config.trials / len(lengths)
    return Trials(
        rows=share * sum(one.rows for one in lengths),
        looks=share * sum(len(one.rungs) for one in lengths),
        finished=config.trials,
    )


def pruned(config: SweepConfig) -> Trials:
    """The mean over studies in which trials come one after another, a good one as likely late as early, and one that is
    ahead at a rung is ahead at the next. The study's own pruner decides.
    """
    lengths = _lengths(config)
    dice = random.Random(config.sampler.seed)
    played = [_played(config, lengths, [dice.random() for _ in lengths]) for _ in range(REPEATS)]
    share = config.trials / len(lengths) / REPEATS
    return Trials(
        rows=share * sum(one.rows for one in played),
        looks=share * sum(one.looks for one in played),
        finished=share * sum(one.finished for one in played),
    )


def _lengths(config: SweepConfig) -> list[_Length]:
    """Of the study's trials, MOST_TRIALS at most: what is enqueued, then settings from all over the space."""
    study = _evenly(config)
    for settings in config.enqueue:
        study.enqueue_trial(dict(settings))
    every = _asked(config, study, min(config.trials, MOST_TRIALS))
    specs = (config.trial_spec(number, params, "") for number, params in enumerate(every))
    return [_Length(spec.train_rows, spec.rungs) for spec in specs]


def _asked(config: SweepConfig, study: optuna.Study, count: int) -> tuple[TrainParams, ...]:
    return tuple(config.space.params(space.suggest(study.ask(), config.space)) for _ in range(count))


def _evenly(config: SweepConfig) -> optuna.Study:
    study = _in_memory(config)
    if config.space.axes:
        study.sampler = space.SobolSampler(config.space, config.sampler.seed, config.sampler.seed)
    return study


def _played(config: SweepConfig, lengths: Sequence[_Length], values: Sequence[float]) -> Trials:
    study = _in_memory(config)
    rows = looks = finished = 0
    for length, value in zip(lengths, values, strict=True):
        trial = study.ask()
        seen = length.rows
        for rung in length.rungs:
            looks += 1
            trial.report(value, rung)
            if trial.should_prune():
                seen = rung
                break
        rows += seen
        ended = seen == length.rows
        finished += ended
        state = optuna.trial.TrialState.COMPLETE if ended else optuna.trial.TrialState.PRUNED
        study.tell(trial, value if ended else None, state=state)
    return Trials(rows, looks, finished)


def _in_memory(config: SweepConfig) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        direction="maximize", sampler=optuna.samplers.RandomSampler(0), pruner=space.pruner(config)
    )
