"""Comparisons are as sure as they say, and intervals without a formula agree with those that have one."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mathverify_sweep.metrics import clustered_accuracy, judge
from mathverify_sweep.resampling import bootstrap_intervals, paired_comparison, paired_difference, sign_flip_p_value
from tests.test_metrics import clustered


def test_the_paired_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for seed in range(200):
        right, groups = clustered(rng, 80, 0.7, strength=0.5)
        better = right | (rng.random(len(right)) < 0.2)  # 0.2 of the wrong rows become right: + 0.06
        labels = np.ones(len(right), dtype=bool)
        interval = paired_difference(better - 0.5, right - 0.5, labels, groups, seed=seed, resamples=500)
        covered += interval.low <= 0.06 <= interval.high
    assert 0.89 <= covered / 200 <= 0.99


def test_a_model_does_not_differ_from_itself_and_order_turns_the_sign() -> None:
    rng = np.random.default_rng(3)
    a, b, labels = rng.normal(size=300), rng.normal(size=300) + 0.3, rng.random(300) < 0.6
    groups = [str(n // 3) for n in range(300)]
    same = paired_difference(a, a, labels, groups)
    assert (same.estimate, same.low, same.high) == (0.0, 0.0, 0.0)
    one, other = paired_difference(a, b, labels, groups), paired_difference(b, a, labels, groups)
    assert (one.estimate, one.low, one.high) == pytest.approx((-other.estimate, -other.high, -other.low))
    assert one == paired_difference(a, b, labels, groups)


def test_thresholds_of_a_comparison_are_each_models_own() -> None:
    labels, groups = [True, False, True, False], ["a", "b", "c", "d"]
    scores = [3.0, 1.0, 4.0, 0.5]
    interval = paired_difference(scores, scores, labels, groups, thresholds=(2.0, 0.0), resamples=100)
    assert interval.estimate == 0.5


def test_a_comparison_counts_who_is_right_where() -> None:
    labels = [True, True, False, False, True]
    found = paired_comparison([1, 1, -1, 1, -1], [1, -1, -1, 1, -1], labels, ["a", "b", "c", "d", "e"])
    assert (found.both_right, found.only_first_right, found.only_second_right, found.both_wrong) == (2, 1, 0, 2)
    assert found.agreement == pytest.approx(4 / 5)
    assert found.difference.estimate == pytest.approx(1 / 5)
    assert found.p_value == 1.0, "one question that differs says nothing"


def test_a_p_value_is_the_share_of_sign_flips_that_are_as_far_from_zero() -> None:
    totals = np.array([3.0, 1.0, 2.0, 0.0, 2.0])
    sums = np.array([[a * 3 + b + c * 2 + d * 2] for a in (1, -1) for b in (1, -1) for c in (1, -1) for d in (1, -1)])
    exact = np.mean(np.abs(sums) >= 8)
    assert sign_flip_p_value(totals, flips=20_000) == pytest.approx(exact, abs=0.01)
    assert sign_flip_p_value(np.zeros(4)) == 1.0
    assert sign_flip_p_value(np.ones(100)) == pytest.approx(1 / 20_001)


def test_where_nothing_differs_a_p_value_is_small_as_often_as_it_says() -> None:
    """Rows of a question err together, so a test by rows would call one in four a difference."""
    rng = np.random.default_rng(5)
    small = 0
    for seed in range(300):
        gains = rng.choice([-1.0, 0.0, 1.0], size=60) * rng.integers(1, 10, 60)
        small += sign_flip_p_value(gains, seed=seed, flips=500) <= 0.05
    assert 0.02 <= small / 300 <= 0.08


def test_bootstrapped_figures_are_those_of_judge_with_intervals_around_them() -> None:
    rng = np.random.default_rng(6)
    labels = rng.random(400) < 0.6
    scores = np.round(rng.normal(size=400) + labels, 1)  # with ties
    groups = [str(n // 4) for n in range(400)]
    found, expected = bootstrap_intervals(scores, labels, groups, 0.5), judge(scores, labels, groups, threshold=0.5)
    assert found["auc"].estimate == pytest.approx(roc_auc_score(labels, scores))
    for name, interval in found.items():
        assert interval.estimate == pytest.approx(getattr(expected, name)), name
        assert interval.low < interval.estimate < interval.high, name


def test_a_bootstrapped_interval_is_as_wide_as_the_one_by_formula() -> None:
    rng = np.random.default_rng(7)
    right, groups = clustered(rng, 150, 0.7, strength=0.5)
    labels = np.ones(len(right), dtype=bool)
    drawn = bootstrap_intervals(right - 0.5, labels, groups, 0.0)["accuracy_at_threshold"]
    formula = clustered_accuracy(right, groups)
    assert drawn.high - drawn.low == pytest.approx(formula.high - formula.low, rel=0.15)


def test_a_bootstrap_that_draws_one_class_only_has_an_auc() -> None:
    found = bootstrap_intervals([1.0, -1.0], [True, False], ["a", "b"], 0.0, resamples=50)
    assert (found["auc"].low, found["auc"].high) == (0.5, 1.0)
