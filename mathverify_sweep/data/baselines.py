"""What a model must beat: the majority of the training rows, and a bag of words that cannot calculate.

A model below them is no verifier; a bag of words far above the majority says that the data gives itself away.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mathverify_sweep.data.dataset import VerificationData
from mathverify_sweep.data.rows import Row, groups
from mathverify_sweep.metrics import judge
from mathverify_sweep.specs import Metrics

MOST_ROWS = 10_000
"""Training rows that the bag of words learns from. Three times as many gain a point of accuracy on real solutions."""

HASHED_FEATURES = 2**18


def baselines(data: VerificationData) -> dict[str, Metrics]:
    """Figures of both on the validation split, by name. Their thresholds are fitted there, as a model's is.

    None of rows that are all correct: there is nothing to guess.
    """
    if all(row.is_correct for row in data.train):
        return {}
    predictors = {"majority": majority, "bag_of_words": bag_of_words}
    rows = data.validation
    labels = [row.is_correct for row in rows]
    return {name: judge(predict(data.train, rows), labels, groups(rows)) for name, predict in predictors.items()}


def majority(train: Sequence[Row], rows: Sequence[Row]) -> NDArray[np.float64]:
    """The same log-odds for every row: those of the training rows (with one more of each class, to be finite)."""
    right = sum(row.is_correct for row in train)
    return np.full(len(rows), np.log((right + 1) / (len(train) - right + 1)))


def bag_of_words(train: Sequence[Row], rows: Sequence[Row]) -> NDArray[np.float64]:
    """Log-odds of a logistic regression on hashed one- and two-word counts of solution and answer."""
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import LogisticRegression

    # Single digits and signs count as words too: the defaults would drop them, and they are half of an equation.
    words = HashingVectorizer(ngram_range=(1, 2), n_features=HASHED_FEATURES, token_pattern=r"\w+|[^\w\s]")
    model = LogisticRegression(C=10.0, solver="liblinear")
    learnt = train[:MOST_ROWS]
    model.fit(words.transform(map(_text, learnt)), [row.is_correct for row in learnt])
    log_odds: NDArray[np.float64] = model.decision_function(words.transform(map(_text, rows)))
    return log_odds


def _text(row: Row) -> str:
    return f"{row.solution} {row.answer}"
