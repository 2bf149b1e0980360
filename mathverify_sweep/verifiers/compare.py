"""Runs held against each other on the same rows: who is more accurate, how sure that is, and where they agree."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from mathverify_sweep import resampling
from mathverify_sweep.data.rows import groups
from mathverify_sweep.errors import StudyError
from mathverify_sweep.reports.models import ComparedPair, ComparedRuns
from mathverify_sweep.specs import Split
from mathverify_sweep.verifiers import verifier as verifiers

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine as Database


def compare(database: Database, run_ids: Sequence[str], split: Split) -> ComparedRuns:
    """Every pair of two or more runs on a split that all of them have been evaluated on. Raises StudyError.

    Accuracy is that at log-odds 0: a threshold would be fitted on the rows of one split, and flatter there.
    """
    if len(run_ids) < 2:
        raise StudyError(f"two runs or more are compared, got {len(run_ids)}. Name them by their ids.")
    models = [verifiers.model(verifiers.named(database, run_id)) for run_id in run_ids]
    verifiers.require_same_rows(models)
    odds = [verifiers.kept_log_odds(database, each, split) for each in models]
    rows = verifiers.rows_of(models[0], split)
    labels, questions = [row.is_correct for row in rows], groups(rows)
    pairs = []
    for (first, a), (second, b) in combinations(zip(models, odds, strict=True), 2):
        found = resampling.paired_comparison(a, b, labels, questions)
        pairs.append(ComparedPair(first=first.run.run_id, second=second.run.run_id, comparison=found))
    return ComparedRuns(split=split, rows=len(rows), questions=len(set(questions)), pairs=tuple(pairs))
