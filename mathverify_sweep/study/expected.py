"""What a study will do, before it has begun: settings as its space has them, trials as its pruner ends them.

Plays with Optuna in memory; opens no database.
"""

from __future__ import annotations

import random
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


def settings(config: SweepConfig, count: int) -> tuple[TrainParams, ...]:
    """Points that fill the search space evenly, whatever the study's sampler is."""
    if not config.space.axes:
        return (config.space.params({}),) * count
    study = _in_memory(config)
    study.sampler = space.SobolSampler(config.space, config.sampler.seed, config.sampler.seed)
    return tuple(config.space.params(space.suggest(study.ask(), config.space)) for _ in range(count))


def unpruned(config: SweepConfig) -> Trials:
    """Every trial comes to its end."""
    trials = config.trials
    return Trials(trials * config.data.train_rows, trials * len(config.rungs), trials)


def pruned(config: SweepConfig) -> Trials:
    """The mean over studies in which trials come one after another, a good one as likely late as early, and one that is
    ahead at a rung is ahead at the next. The study's own pruner decides.
    """
    count = min(config.trials, MOST_TRIALS)
    dice = random.Random(config.sampler.seed)
    played = [_played(config, [dice.random() for _ in range(count)]) for _ in range(REPEATS)]
    share = config.trials / count / REPEATS
    return Trials(
        rows=share * sum(one.rows for one in played),
        looks=share * sum(one.looks for one in played),
        finished=share * sum(one.finished for one in played),
    )


def _played(config: SweepConfig, values: list[float]) -> Trials:
    study = _in_memory(config)
    rows = looks = finished = 0
    for value in values:
        trial = study.ask()
        seen = config.data.train_rows
        for rung in config.rungs:
            looks += 1
            trial.report(value, rung)
            if trial.should_prune():
                seen = rung
                break
        rows += seen
        ended = seen == config.data.train_rows
        finished += ended
        state = optuna.trial.TrialState.COMPLETE if ended else optuna.trial.TrialState.PRUNED
        study.tell(trial, value if ended else None, state=state)
    return Trials(rows, looks, finished)


def _in_memory(config: SweepConfig) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        direction="maximize", sampler=optuna.samplers.RandomSampler(0), pruner=space.pruner(config)
    )
