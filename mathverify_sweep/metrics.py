"""Figures of a verifier from its log-odds; the intervals know that the rows of a question are not independent.

Log-odds are log P(True) - log P(False); a row is judged True when they are at least the threshold, 0 unless fitted.
scipy.special is imported when a figure is computed, so that what only shows figures starts without it; scikit-learn and
scipy.stats, which have these figures too, take 1.6 seconds and 130 MB in every process that asks them. A test compares.
What is drawn anew from the rows is in `resampling.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mathverify_sweep.errors import DataError
from mathverify_sweep.specs import Metrics, Objective, Task

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its 95 % interval."""

    estimate: float
    low: float
    high: float


def judge(
    log_odds: ArrayLike,
    labels: ArrayLike,
    groups: Sequence[str],
    threshold: float | None = None,
    task: Task = "verification",
) -> Metrics:
    """All figures of one model on one split; the threshold is fitted on these rows when none is given. Of rows to be
    solved the accuracy alone, which is pass@1.

    Defined here where the usual formula has no value: AUC is 0.5 when all labels are equal (no pair to
    rank); precision, recall and F1 are 0 when nothing was judged True, or nothing is. Log-loss clips probabilities as
    scikit-learn does (at the float64 epsilon, so one row costs at most 36).
    """
    scores, truth = checked(log_odds, labels, groups)
    judged = scores >= 0
    true_positives, false_positives = int(np.sum(judged & truth)), int(np.sum(judged & ~truth))
    false_negatives, true_negatives = int(np.sum(~judged & truth)), int(np.sum(~judged & ~truth))
    accuracy = clustered_accuracy(judged == truth, groups)
    share = {"accuracy": accuracy.estimate, "accuracy_low": accuracy.low, "accuracy_high": accuracy.high}
    if task == "solving":
        return Metrics(task=task, rows=len(scores), **share)
    used = fitted_threshold(scores, truth) if threshold is None else threshold
    return Metrics(
        rows=len(scores),
        **share,
        precision=_share(true_positives, true_positives + false_positives),
        recall=_share(true_positives, true_positives + false_negatives),
        f1=_share(2 * true_positives, 2 * true_positives + false_positives + false_negatives),
        log_loss=log_loss(scores, truth),
        auc=_auc(scores, truth),
        true_positives=true_positives,
        false_positives=false_positives,
        true_negatives=true_negatives,
        false_negatives=false_negatives,
        threshold=used,
        accuracy_at_threshold=float(np.mean((scores >= used) == truth)),
    )


def objective_value(metrics: Metrics, objective: Objective) -> float:
    """The figure that a study optimises."""
    figures = {
        "validation_accuracy": metrics.accuracy,
        "pass_at_1": metrics.accuracy,
        "validation_log_loss": metrics.log_loss,
        "validation_auc": metrics.auc,
    }
    return figures[objective]


def higher_is_better(objective: Objective) -> bool:
    """Whether the study maximises the objective."""
    return objective != "validation_log_loss"


def clustered_accuracy(is_right: ArrayLike, groups: Sequence[str]) -> Interval:
    """Share of rows that are right, with a Wilson interval at the effective sample size.

    The variance is that of a ratio of cluster totals (Cochran, Sampling Techniques, 3rd ed., eq. 6.13 with clusters as
    units; "clustered standard errors"); the number of independent rows with the same variance takes the place of n in
    Wilson's interval, with Student's t at (clusters - 1) degrees of freedom (Korn and Graubard, Survey Methodology 24,
    1998; Dean and Pagano, J. Survey Stat. Methodol. 3, 2015). Where all rows are equal the variance says nothing, and
    the number of clusters takes that place.
    """
    from scipy.special import stdtrit

    right = np.asarray(is_right, dtype=np.float64)
    clusters = cluster_numbers(groups)
    count = int(clusters.max()) + 1
    estimate = float(right.mean())
    errors = np.bincount(clusters, weights=right - estimate)
    variance = float(errors @ errors) * count / max(count - 1, 1) / len(right) ** 2
    effective = estimate * (1 - estimate) / variance if variance > 0 else float(count)
    quantile = float(stdtrit(max(count - 1, 1), 0.5 + CONFIDENCE / 2))  # Student's t
    low, high = _wilson(estimate, min(effective, float(len(right))), quantile)
    return Interval(estimate, low, high)


def fitted_threshold(log_odds: ArrayLike, labels: ArrayLike) -> float:
    """The threshold with the highest accuracy on these rows; among equals 0, else the one nearest to 0.

    Candidates lie midway between neighbouring scores, and one beyond either end, so scores that tie are judged alike.
    """
    scores = np.asarray(log_odds, dtype=np.float64)
    truth = np.asarray(labels, dtype=np.bool_)
    values, inverse = np.unique(scores, return_inverse=True)
    gain = np.bincount(inverse, weights=np.where(truth, 1.0, -1.0))  # lost when a value falls below the threshold
    right = truth.sum() - np.concatenate([[0.0], np.cumsum(gain)])
    between = values[:-1] + np.diff(values) / 2
    between = np.where(between > values[:-1], between, values[1:])
    candidates = np.concatenate([[min(values[0], 0.0) - 1], between, [max(values[-1], 0.0) + 1]])
    candidates, right = np.append(candidates, 0.0), np.append(right, ((scores >= 0) == truth).sum())
    best = candidates[right == right.max()]
    return float(best[np.argmin(np.abs(best))])


def checked(log_odds: ArrayLike, labels: ArrayLike, groups: Sequence[str]) -> tuple[Floats, Bools]:
    """Log-odds and labels as arrays. Raises DataError unless they are as many as questions, and finite."""
    scores = np.asarray(log_odds, dtype=np.float64)
    truth = np.asarray(labels, dtype=np.bool_)
    if not (scores.ndim == 1 and len(scores) == len(truth) == len(groups) > 0):
        raise DataError(
            "figures need as many log-odds as labels and questions, and at least one, "
            f"got {scores.size}, {truth.size} and {len(groups)}"
        )
    odd = np.flatnonzero(~np.isfinite(scores))
    if len(odd):
        raise DataError(f"log-odds must be finite, got {scores[odd[0]]} at row {odd[0] + 1} (and {len(odd) - 1} more)")
    return scores, truth


def log_loss(log_odds: ArrayLike, labels: ArrayLike) -> float:
    """The mean log-loss of the rows."""
    return float(row_losses(np.asarray(log_odds, dtype=np.float64), np.asarray(labels, dtype=np.bool_)).mean())


def row_losses(scores: Floats, truth: Bools) -> Floats:
    """The log-loss of each row; probabilities are clipped as in `judge`."""
    from scipy.special import expit

    epsilon = np.finfo(np.float64).eps
    right = np.clip(expit(np.where(truth, scores, -scores)), epsilon, 1 - epsilon)
    losses: Floats = -np.log(right)
    return losses


def cluster_numbers(groups: Sequence[str]) -> NDArray[np.int64]:
    """Of each row the number of its question, counted from 0 in the order of first sight."""
    numbers: dict[str, int] = {}
    return np.fromiter((numbers.setdefault(key, len(numbers)) for key in groups), dtype=np.int64, count=len(groups))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _auc(scores: Floats, truth: Bools) -> float:
    """The share of pairs of a right and a wrong row that are in order, ties counting half (Mann-Whitney's U)."""
    pairs = int(truth.sum()) * int((~truth).sum())
    if pairs == 0:
        return 0.5
    _values, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # the mean rank of each tie
    right = int(truth.sum())
    return float((ranks[inverse[truth]].sum() - right * (right + 1) / 2) / pairs)


def _wilson(share: float, rows: float, quantile: float) -> tuple[float, float]:
    square = quantile**2
    center = (share + square / (2 * rows)) / (1 + square / rows)
    half = quantile * np.sqrt(share * (1 - share) / rows + square / (4 * rows**2)) / (1 + square / rows)
    return max(0.0, float(center - half)), min(1.0, float(center + half))
