"""Between a sweep file and Optuna: its axes as distributions, its sampler, its pruner.

None of these is stored with an Optuna study, so they are built here from the stored sweep file, whoever opens it.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from typing import Any, cast

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial

from mathverify_sweep.config import SweepConfig
from mathverify_sweep.search_space import Choices, Range, SearchSpace, Value, grid_values


def suggest(trial: Trial, space: SearchSpace) -> dict[str, Value]:
    """The values of a trial's tuned axes. An axis whose condition does not hold is left out."""
    chosen = dict(space.fixed)
    for axis in space.axes:
        if axis.applies(chosen):
            chosen[axis.name] = _suggest(trial, axis.name, axis.distribution)
    return {name: value for name, value in chosen.items() if name not in space.fixed}


def distribution(of: Range | Choices) -> BaseDistribution:
    """An axis in Optuna's words."""
    if isinstance(of, Choices):
        return CategoricalDistribution(of.choices)
    if of.whole:
        return IntDistribution(int(of.low), int(_high(of)), log=of.log, step=int(of.step or 1))
    return FloatDistribution(of.low, _high(of), log=of.log, step=of.step)


def sampler(config: SweepConfig, trial_number: int) -> BaseSampler:
    """The sampler of one trial: seeded with its number, so that workers who start at once draw different points."""
    seed = _seed(config.sampler.seed, trial_number)
    if config.sampler.type == "quasi_random":
        return SobolSampler(config.space, config.sampler.seed, seed)
    if config.sampler.type != "tpe":
        return RandomSampler(seed=seed)  # of a grid, all points are enqueued: this completes what is enqueued by hand
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Argument ``group``", category=ExperimentalWarning)
        return TPESampler(
            n_startup_trials=config.sampler.n_startup_trials,
            seed=seed,
            multivariate=True,
            group=any(axis.when for axis in config.space.axes),
            constant_liar=True,
        )


def pruner(config: SweepConfig) -> BasePruner:
    """The pruner of the study; its steps are rows seen."""
    kind, first, factor = config.pruner.type, config.first_rung, config.pruner.reduction_factor
    if kind == "asha":
        return SuccessiveHalvingPruner(min_resource=first, reduction_factor=factor)
    if kind == "hyperband":
        return HyperbandPruner(min_resource=first, max_resource=config.data.train_rows, reduction_factor=factor)
    if kind == "median":
        return MedianPruner(n_startup_trials=config.pruner.n_startup_trials)
    return NopPruner()


class SobolSampler(BaseSampler):
    """Trial n gets point n of a scrambled Sobol sequence over all axes.

    Optuna's QMCSampler counts its points in a read and a write, so that two workers may draw the same one, draws the
    first trial at random, and knows no conditional axes.
    """

    def __init__(self, space: SearchSpace, sequence_seed: int, seed: int) -> None:
        self._space = space
        self._sequence_seed = sequence_seed
        self._independent = RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002
        """All axes, also those that this trial will not ask for."""
        return {axis.name: distribution(axis.distribution) for axis in self._space.axes}

    def sample_relative(
        self,
        study: Study,  # noqa: ARG002
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],  # noqa: ARG002
    ) -> dict[str, Any]:
        """The trial's point."""
        from scipy.stats import qmc

        if not self._space.axes:
            return {}
        sequence = qmc.Sobol(len(self._space.axes), rng=self._sequence_seed)
        if trial.number:
            sequence.fast_forward(trial.number)
        shares = sequence.random(1)[0]
        return {a.name: _at(a.distribution, float(s)) for a, s in zip(self._space.axes, shares, strict=True)}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Never needed by a study of ours; Optuna asks for one."""
        return self._independent.sample_independent(study, trial, param_name, param_distribution)


def _suggest(trial: Trial, name: str, of: Range | Choices) -> Value:
    if isinstance(of, Choices):
        return cast(Value, trial.suggest_categorical(name, of.choices))
    if of.whole:
        return trial.suggest_int(name, int(of.low), int(_high(of)), log=of.log, step=int(of.step or 1))
    return trial.suggest_float(name, of.low, _high(of), log=of.log, step=of.step)


def _high(of: Range) -> float:
    """The highest value that the steps reach; Optuna warns when it has to find it itself."""
    return of.high if of.step is None else float(grid_values(of)[-1])


def _at(of: Range | Choices, share: float) -> Value:
    """The value below which `share` of an axis lies."""
    if isinstance(of, Choices):
        return of.choices[int(share * len(of.choices))]
    if of.step is not None:
        values = grid_values(of)
        return values[int(share * len(values))]
    half = 0.5 if of.whole else 0.0
    low, high = of.low - half, of.high + half
    value = low * (high / low) ** share if of.log else low + (high - low) * share
    if of.whole:
        return min(max(math.floor(value + 0.5), int(of.low)), int(of.high))
    return min(max(value, of.low), of.high)


def _seed(study_seed: int, trial_number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{study_seed}:{trial_number}".encode()).digest()[:4], "big")
