"""Figures agree with their definitions, and intervals cover as often as they say."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from mathverify_sweep.errors import DataError
from mathverify_sweep.metrics import (
    clustered_accuracy,
    fitted_threshold,
    higher_is_better,
    judge,
    objective_value,
)

EACH = ["a", "b", "c", "d", "e", "f"]


def clustered(rng: np.random.Generator, questions: int, mean: float, strength: float) -> tuple[np.ndarray, list[str]]:
    """Right or wrong for 1 to 9 rows a question, whose shares of right answers vary from question to question."""
    sizes = rng.integers(1, 10, questions)
    shares = rng.beta(mean / strength, (1 - mean) / strength, questions)
    groups = [f"question {q}" for q, size in enumerate(sizes) for _ in range(size)]
    return rng.random(len(groups)) < np.repeat(shares, sizes), groups


def test_figures_of_a_small_example_are_those_done_by_hand() -> None:
    metrics = judge([2.0, 1.0, -1.0, 3.0, -2.0, 0.5], [True, True, True, False, False, False], EACH)
    counts = (metrics.true_positives, metrics.false_positives, metrics.true_negatives, metrics.false_negatives)
    assert counts == (2, 2, 1, 1)
    assert metrics.rows == 6
    assert metrics.accuracy == pytest.approx(3 / 6)
    assert (metrics.precision, metrics.recall) == pytest.approx((2 / 4, 2 / 3))
    assert metrics.f1 == pytest.approx(4 / 7)
    assert metrics.auc == pytest.approx(5 / 9)  # of nine pairs five are in order
    losses = [math.log1p(math.exp(-z)) for z in (2.0, 1.0, -1.0, -3.0, 2.0, -0.5)]
    assert metrics.log_loss == pytest.approx(sum(losses) / 6)
    assert metrics.accuracy_low < metrics.accuracy < metrics.accuracy_high


def test_figures_are_those_of_scikit_learn_and_scipy() -> None:
    from scipy import special, stats
    from sklearn import metrics as theirs

    rng = np.random.default_rng(5)
    for _ in range(50):
        rows = int(rng.integers(4, 60))
        truth = np.append(rng.random(rows) < 0.5, [True, False])
        scores = np.round(rng.normal(size=rows + 2) * 3, int(rng.integers(0, 3)))  # with ties
        groups = [str(n // 2) for n in range(rows + 2)]
        ours, judged = judge(scores, truth, groups), scores >= 0
        assert ours.auc == pytest.approx(theirs.roc_auc_score(truth, scores))
        assert ours.log_loss == pytest.approx(theirs.log_loss(truth, special.expit(scores)))
        assert ours.precision == pytest.approx(theirs.precision_score(truth, judged, zero_division=0.0))
        assert ours.recall == pytest.approx(theirs.recall_score(truth, judged, zero_division=0.0))
        assert ours.f1 == pytest.approx(theirs.f1_score(truth, judged, zero_division=0.0))
    for freedom in (1, 2, 30, 4_000):
        assert special.stdtrit(freedom, 0.975) == pytest.approx(stats.t.ppf(0.975, freedom))


@pytest.mark.parametrize("label", [True, False])
@pytest.mark.parametrize("score", [-3.0, 0.0, 3.0])
def test_one_class_and_equal_scores_give_figures_and_no_crash(label: bool, score: float) -> None:
    metrics = judge([score] * 6, [label] * 6, EACH)
    assert metrics.auc == 0.5
    assert metrics.accuracy == float((score >= 0) == label)
    assert metrics.accuracy_at_threshold == 1.0
    assert 0 <= metrics.accuracy_low < metrics.accuracy_high <= 1


def test_one_row_has_figures_and_a_wide_interval() -> None:
    metrics = judge([1.0], [True], ["a"])
    assert metrics.accuracy == 1.0
    assert metrics.accuracy_low < 0.1


def test_log_loss_is_clipped() -> None:
    assert judge([1e4, -1e4], [False, True], ["a", "b"]).log_loss == pytest.approx(36.04, abs=0.01)


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_log_odds_that_are_no_numbers_are_refused_with_their_row(score: float) -> None:
    with pytest.raises(DataError, match=r"must be finite, got (nan|inf) at row 2"):
        judge([1.0, score], [True, False], ["a", "b"])


def test_unequal_lengths_and_no_rows_are_refused() -> None:
    with pytest.raises(DataError, match="got 2, 1 and 1"):
        judge([1.0, 2.0], [True], ["a"])
    with pytest.raises(DataError, match="at least one"):
        judge([], [], [])


def test_the_threshold_has_the_highest_accuracy_of_all() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores = rng.integers(-4, 5, 40) / 2.0
        labels = rng.random(40) < 0.5
        best = max(np.mean((scores >= t) == labels) for t in [*(scores - 0.25), *(scores + 0.25)])
        threshold = fitted_threshold(scores, labels)
        assert np.mean((scores >= threshold) == labels) == best


def test_the_threshold_stays_at_zero_when_no_other_is_better() -> None:
    assert fitted_threshold([-5.0, -4.0, 3.0, 9.0], [False, False, True, True]) == 0.0
    assert fitted_threshold([1.0, 2.0, 3.0], [False, False, True]) == 2.5
    assert fitted_threshold([1.0, 2.0], [False, False]) == 3.0


def test_neighbouring_floats_are_told_apart_by_the_threshold() -> None:
    low, high = 1.0, math.nextafter(1.0, 2.0)
    threshold = fitted_threshold([low, high], [False, True])
    assert low < threshold <= high


def test_a_given_threshold_is_used_as_it_is() -> None:
    metrics = judge([1.0, 2.0], [False, True], ["a", "b"], threshold=5.0)
    assert (metrics.threshold, metrics.accuracy_at_threshold) == (5.0, 0.5)


def test_every_objective_has_its_figure_and_its_direction() -> None:
    metrics = judge([2.0, -1.0, 1.0], [True, False, False], ["a", "b", "c"])
    assert objective_value(metrics, "validation_accuracy") == metrics.accuracy
    assert objective_value(metrics, "validation_log_loss") == metrics.log_loss
    assert objective_value(metrics, "validation_auc") == metrics.auc
    assert [higher_is_better(o) for o in ("validation_accuracy", "validation_log_loss", "validation_auc")] == [
        True,
        False,
        True,
    ]


def test_rows_of_one_question_widen_the_interval() -> None:
    right = np.tile([True, True, True, False], 50)
    alone = clustered_accuracy(right, [str(n) for n in range(200)])
    together = clustered_accuracy(np.sort(right), [str(n // 10) for n in range(200)])
    assert together.high - together.low > 2 * (alone.high - alone.low)


@pytest.mark.parametrize(("questions", "mean"), [(30, 0.7), (100, 0.9), (400, 0.6)])
def test_the_accuracy_interval_covers_the_truth_as_often_as_it_says(questions: int, mean: float) -> None:
    """600 simulated splits: the share that covers has a standard error of 0.9 points around 95 %."""
    rng = np.random.default_rng(1)
    covered = naive = 0
    for _ in range(600):
        right, groups = clustered(rng, questions, mean, strength=0.5)
        interval = clustered_accuracy(right, groups)
        half = 1.96 * math.sqrt(interval.estimate * (1 - interval.estimate) / len(right))
        covered += interval.low <= mean <= interval.high
        naive += abs(interval.estimate - mean) <= half
    assert 0.92 <= covered / 600 <= 0.98
    assert naive / 600 < 0.85  # what an interval by rows would cover


def test_figures_of_five_thousand_rows_take_a_moment() -> None:
    rng = np.random.default_rng(4)
    labels = rng.random(5000) < 0.7
    scores, groups = rng.normal(size=5000) + labels, [f"question {n // 5}" for n in range(5000)]
    judge(scores, labels, groups)  # imports scipy.special
    start = time.process_time()
    judge(scores, labels, groups)
    assert time.process_time() - start < 0.25  # 0.02 s on an idle core
