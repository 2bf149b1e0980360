"""What finished runs say of rows, and how reports of benchmarks print it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mathverify_sweep.data.rows import groups
from mathverify_sweep.metrics import Bools, Floats, Interval, row_losses
from mathverify_sweep.store.runs import RunRecord
from mathverify_sweep.verifiers import verifier

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine as Database


@dataclass(frozen=True)
class Read:
    """What a run says of each row: 1 where it is right and 0 elsewhere, and the log-loss. Or means over runs."""

    right: Floats
    losses: Floats


def labels_of(run: RunRecord) -> tuple[Bools, list[str]]:
    """Of the validation rows, which the run's whole study shares: whether each is correct, and its question."""
    rows = verifier.rows_of(verifier.model(run), "validation")
    return np.array([row.is_correct for row in rows]), groups(rows)


def reading_of(database: Database, run: RunRecord, labels: Bools) -> Read:
    """What a finished run has said on validation."""
    odds = verifier.kept_log_odds(database, verifier.model(run), "validation")
    return Read(right(odds, labels), row_losses(odds, labels))


def right(odds: Floats, labels: Bools, threshold: float = 0.0) -> Floats:
    """Of each row 1 where it is judged right, else 0."""
    judged: Floats = ((odds >= threshold) == labels).astype(np.float64)
    return judged


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    head, *rest = ["| " + " | ".join(row) + " |" for row in (header, *lines)]
    return "\n".join([head, "|" + "---|" * len(header), *rest]) + "\n"


def points(gain: Interval) -> str:
    """A difference of two shares, in points, with its interval."""
    return f"{100 * gain.estimate:+.2f} [{100 * gain.low:+.2f}, {100 * gain.high:+.2f}]"


def loss(gain: Interval) -> str:
    """A difference of two log-losses with its interval."""
    return f"{gain.estimate:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
