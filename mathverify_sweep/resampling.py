"""What resampling says of verifiers: two on the same rows, and intervals of figures without a formula.

Whole questions are drawn, flipped or left, never rows: the rows of a question are not independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mathverify_sweep.metrics import CONFIDENCE, Bools, Floats, Interval, checked, cluster_numbers, row_losses


@dataclass(frozen=True)
class Comparison:
    """Two models on the same rows. `difference` is in accuracy, the first minus the second.

    `p_value`: two-sided, of no difference. `agreement`: share of rows with the same verdict. The last four add up to
    the rows.
    """

    difference: Interval
    p_value: float
    agreement: float
    both_right: int
    only_first_right: int
    only_second_right: int
    both_wrong: int


def paired_difference(
    log_odds_a: ArrayLike,
    log_odds_b: ArrayLike,
    labels: ArrayLike,
    groups: Sequence[str],
    *,
    thresholds: tuple[float, float] = (0.0, 0.0),
    seed: int = 0,
    resamples: int = 10_000,
) -> Interval:
    """Accuracy of a minus accuracy of b on the same rows; percentile bootstrap that draws whole questions.

    Cluster bootstrap: Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8.
    """
    a, truth = checked(log_odds_a, labels, groups)
    b, _ = checked(log_odds_b, labels, groups)
    gains = ((a >= thresholds[0]) == truth).astype(np.float64) - ((b >= thresholds[1]) == truth)
    return mean_gain(gains, groups, seed=seed, resamples=resamples)


def mean_gain(gains: ArrayLike, groups: Sequence[str], *, seed: int = 0, resamples: int = 10_000) -> Interval:
    """The mean of a number per row, such as a difference between two models; percentile bootstrap by question."""
    values = np.asarray(gains, dtype=np.float64)
    clusters = cluster_numbers(groups)
    totals, sizes = np.bincount(clusters, weights=values), np.bincount(clusters).astype(np.float64)
    rng = np.random.default_rng(seed)
    means: list[Floats] = []
    for start in range(0, resamples, 500):
        drawn = rng.integers(len(totals), size=(min(500, resamples - start), len(totals)), dtype=np.int32)
        means.append(totals[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return Interval(float(values.mean()), float(low), float(high))


def paired_comparison(
    log_odds_a: ArrayLike,
    log_odds_b: ArrayLike,
    labels: ArrayLike,
    groups: Sequence[str],
    *,
    thresholds: tuple[float, float] = (0.0, 0.0),
) -> Comparison:
    """`paired_difference`, with a test of it and what the two have in common."""
    a, truth = checked(log_odds_a, labels, groups)
    b, _ = checked(log_odds_b, labels, groups)
    right_a, right_b = (a >= thresholds[0]) == truth, (b >= thresholds[1]) == truth
    gains = right_a.astype(np.float64) - right_b
    return Comparison(
        difference=paired_difference(a, b, truth, groups, thresholds=thresholds),
        p_value=total_p_value(gains, groups),
        agreement=float(np.mean(right_a == right_b)),
        both_right=int(np.sum(right_a & right_b)),
        only_first_right=int(np.sum(right_a & ~right_b)),
        only_second_right=int(np.sum(~right_a & right_b)),
        both_wrong=int(np.sum(~right_a & ~right_b)),
    )


def total_p_value(gains: ArrayLike, groups: Sequence[str]) -> float:
    """`sign_flip_p_value` of a number per row that is 0 on average when there is no difference, summed by question."""
    return sign_flip_p_value(_totals(cluster_numbers(groups), gains))


def sign_flip_p_value(totals: Floats, *, seed: int = 0, flips: int = 20_000) -> float:
    """Two-sided p-value of a sum of independent totals that are symmetric around 0 when there is no difference.

    Fisher's randomisation test with a total per cluster: of all ways to flip their signs, drawn at random, the share
    whose sum is as far from 0; the observed way counts as one of them, so it is never 0 (Phipson and Smyth, Stat. Appl.
    Genet. Mol. Biol. 9, 2010). Totals of 0 say nothing and are left out.
    """
    telling = totals[totals != 0]
    if not len(telling):
        return 1.0
    rng = np.random.default_rng(seed)
    extreme = 0
    for start in range(0, flips, 1_000):
        signs = rng.integers(2, size=(min(1_000, flips - start), len(telling)), dtype=np.int8) * 2.0 - 1
        extreme += int(np.sum(np.abs(signs @ telling) >= abs(telling.sum()) - 1e-9))
    return (extreme + 1) / (flips + 1)


def bootstrap_intervals(
    log_odds: ArrayLike,
    labels: ArrayLike,
    groups: Sequence[str],
    threshold: float,
    *,
    seed: int = 0,
    resamples: int = 1_000,
) -> dict[str, Interval]:
    """Intervals of what `judge` gives without one, by its names: percentile bootstrap that draws whole questions."""
    scores, truth = checked(log_odds, labels, groups)
    clusters = cluster_numbers(groups)
    judged = scores >= 0
    parts = np.column_stack(
        [judged & truth, judged & ~truth, ~judged & truth, row_losses(scores, truth), (scores >= threshold) == truth]
    )
    totals = np.stack([_totals(clusters, part) for part in parts.T], axis=1)
    sizes = np.bincount(clusters).astype(np.float64)
    ranked = _Ranked.of(scores, truth, clusters)
    rng = np.random.default_rng(seed)
    ones = np.ones((1, len(sizes)))
    (estimates,) = _figures(ones, totals, sizes, ranked)
    drawn = [
        _figures(rng.multinomial(len(sizes), ones[0] / len(sizes), size=50).astype(np.float64), totals, sizes, ranked)
        for _ in range(0, resamples, 50)
    ]
    low, high = np.quantile(np.concatenate(drawn), [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2], axis=0)
    ends = zip(estimates, low, high, strict=True)
    return {name: Interval(*map(float, end)) for name, end in zip(_BOOTSTRAPPED, ends, strict=True)}


_BOOTSTRAPPED = ("precision", "recall", "f1", "log_loss", "auc", "accuracy_at_threshold")


@dataclass(frozen=True)
class _Ranked:
    """Rows by rising score: which cluster and class each is of, and where each score begins."""

    clusters: NDArray[np.int64]
    truth: Bools
    begins: NDArray[np.int64]

    @classmethod
    def of(cls, scores: Floats, truth: Bools, clusters: NDArray[np.int64]) -> _Ranked:
        order = np.argsort(scores, kind="stable")
        begins = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
        return cls(clusters[order], truth[order], begins)

    def auc(self, counts: Floats) -> Floats:
        """Of each way to count clusters, (ways, clusters); 0.5 where a class is missing."""
        weights = counts[:, self.clusters]
        right = np.add.reduceat(weights * self.truth, self.begins, axis=1)
        wrong = np.add.reduceat(weights * ~self.truth, self.begins, axis=1)
        ordered = (right * (np.cumsum(wrong, axis=1) - wrong / 2)).sum(axis=1)
        pairs = right.sum(axis=1) * wrong.sum(axis=1)
        return np.where(pairs > 0, ordered / np.maximum(pairs, 1), 0.5)


def _figures(counts: Floats, totals: Floats, sizes: Floats, ranked: _Ranked) -> Floats:
    """(ways, figures) in the order of `_BOOTSTRAPPED`, for each way to count clusters."""
    true_positives, false_positives, false_negatives, losses, right = (counts @ totals).T
    rows = counts @ sizes

    def share(part: Floats, whole: Floats) -> Floats:
        return np.where(whole > 0, part / np.maximum(whole, 1), 0.0)

    return np.column_stack(
        [
            share(true_positives, true_positives + false_positives),
            share(true_positives, true_positives + false_negatives),
            share(2 * true_positives, 2 * true_positives + false_positives + false_negatives),
            losses / rows,
            ranked.auc(counts),
            right / rows,
        ]
    )


def _totals(clusters: NDArray[np.int64], values: ArrayLike) -> Floats:
    return np.bincount(clusters, weights=np.asarray(values, dtype=np.float64)).astype(np.float64)
