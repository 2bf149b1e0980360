"""Baselines: what a model must beat, on data where the right figure is known."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from mathverify_sweep.data.baselines import bag_of_words, baselines, majority
from mathverify_sweep.data.dataset import load
from mathverify_sweep.data.rows import Row
from mathverify_sweep.specs import DataSpec

POOL = Path(__file__).parents[3] / "shared" / "data" / "verification_pool.parquet"


def _rows(count: int, cue: str, seed: int = 0) -> list[Row]:
    rng = random.Random(seed)
    labels = [rng.random() < 0.7 for _ in range(count)]
    return [
        Row(f"q{n}", str(n), f"so {rng.choice('abc')} {cue if right else ''}", right) for n, right in enumerate(labels)
    ]


def _accuracy(log_odds: np.ndarray, rows: list[Row]) -> float:
    return float(np.mean((log_odds >= 0) == [row.is_correct for row in rows]))


def test_the_majority_says_the_same_of_every_row() -> None:
    train, rows = _rows(500, ""), _rows(300, "", seed=1)
    log_odds = majority(train, rows)
    assert set(log_odds) == {log_odds[0]}
    assert _accuracy(log_odds, rows) == sum(row.is_correct for row in rows) / 300
    assert np.isfinite(majority([row for row in train if row.is_correct], rows)).all()


def test_a_bag_of_words_finds_a_word_that_gives_the_verdict_away_and_nothing_where_there_is_none() -> None:
    assert (
        _accuracy(bag_of_words(_rows(400, "indeed"), _rows(200, "indeed", seed=1)), _rows(200, "indeed", seed=1)) > 0.99
    )
    assert _accuracy(bag_of_words(_rows(400, ""), _rows(200, "", seed=1)), _rows(200, "", seed=1)) < 0.78


def test_the_generated_default_gives_nothing_away() -> None:
    found = baselines(load(DataSpec(generated_rows=4000, validation_share=0.3)))
    assert found["majority"].accuracy == pytest.approx(0.6, abs=0.04)
    assert found["bag_of_words"].accuracy < 0.64  # 1,200 rows: a standard error of 1.4 points


@pytest.mark.skipif(not POOL.exists(), reason=f"the pool of real solutions is not at {POOL}")
def test_baselines_of_the_real_pool_are_about_the_published_ones() -> None:
    """Published: 0.735 for the majority and 0.751 for a bag of words that learnt from all training rows."""
    found = baselines(load(DataSpec(source=str(POOL), split_column="split")))
    assert found["majority"].accuracy == pytest.approx(0.735, abs=0.001)
    assert found["bag_of_words"].accuracy == pytest.approx(0.751, abs=0.015)
