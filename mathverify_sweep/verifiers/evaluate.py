"""How good a verifier is, on a split or on a file of labelled rows: all figures with intervals, and where it errs.

Parts of the rows: by the length of the solution, and by a column of the file (its source, its kind).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mathverify_sweep import metrics, resampling
from mathverify_sweep.data import read
from mathverify_sweep.data.rows import Row, column_of, groups, rows_of
from mathverify_sweep.data.solving import solved_rows_of
from mathverify_sweep.errors import DataError
from mathverify_sweep.metrics import Floats, Interval
from mathverify_sweep.reports.models import Evaluation, Part
from mathverify_sweep.specs import Split
from mathverify_sweep.verifiers import verifier as verifiers
from mathverify_sweep.verifiers.verifier import Verifier

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine as Database

    from mathverify_sweep.training.judge import Judge

SOURCE = "source"
"""The column that rows are told apart by when none is named and the file has it."""


@dataclass(frozen=True)
class Labelled:
    """Rows to evaluate on; `kinds` has a word per row when there is a column to tell them apart by.

    `left_out_rows`: of rows to be solved, those that have no final number to compare with.
    """

    rows: tuple[Row, ...]
    where: str
    column: str | None = None
    kinds: tuple[str, ...] = ()
    left_out_rows: int = 0


def from_file(verifier: Verifier, file: str, column: str | None) -> Labelled:
    """The rows of a parquet, CSV or JSONL file, its columns named as those of the study's data. Raises DataError."""
    table = read.read(file)
    if verifier.spec.data.task == "solving":
        if column:
            raise DataError(f"{file}: solved rows are broken down by length only. Leave out --by")
        solved, left_out = solved_rows_of(table, verifier.spec.data.columns)
        if not solved:
            raise DataError(
                f"{file}: a row to be solved is correct and has a final number; {left_out:,} have none, no row is left."
            )
        return Labelled(tuple(solved), file, left_out_rows=left_out)
    rows = tuple(rows_of(table, verifier.spec.data.columns))
    column = column or (SOURCE if SOURCE in table.columns else None)
    kinds = tuple(map(str, column_of(table, column, "--by"))) if column else ()
    return Labelled(rows, file, column, kinds)


def of_split(verifier: Verifier, split: Split) -> Labelled:
    """The rows of a split of the study's data."""
    return Labelled(verifiers.rows_of(verifier.models[0], split), split)


def on_split(database: Database, verifier: Verifier, split: Split, output: Path, judge: Judge) -> Evaluation:
    """Figures on a split of the study's data; what the models say there is kept."""
    odds = verifiers.split_log_odds(database, verifier, split, output, judge)
    return evaluation(verifier, of_split(verifier, split), odds)


def on_file(verifier: Verifier, labelled: Labelled, output: Path, judge: Judge) -> Evaluation:
    """Figures on labelled rows; nothing is kept."""
    return evaluation(verifier, labelled, verifiers.row_log_odds(verifier, labelled.rows, output, judge))


def evaluation(verifier: Verifier, labelled: Labelled, odds: Floats) -> Evaluation:
    """Figures from log-odds, in the rows' order."""
    labels = np.array([row.is_correct for row in labelled.rows])
    questions = groups(labelled.rows)
    found = metrics.judge(odds, labels, questions, verifier.threshold, verifier.spec.data.task)
    right = (odds >= verifier.threshold) == labels
    intervals = {"accuracy": Interval(found.accuracy, found.accuracy_low, found.accuracy_high)}
    if found.has_classes:
        intervals |= resampling.bootstrap_intervals(odds, labels, questions, verifier.threshold)
    parts = {"length": _parts(_lengths(labelled.rows), right, questions)}
    if labelled.column:
        parts[labelled.column] = _parts(labelled.kinds, right, questions)
    return Evaluation(
        **found.model_dump(),
        run_ids=verifier.run_ids,
        where=labelled.where,
        intervals=intervals,
        parts=parts,
        left_out_rows=labelled.left_out_rows,
    )


def _lengths(rows: Sequence[Row]) -> list[str]:
    """Quarters of the rows by the characters of their solution, the shortest first."""
    lengths = np.array([len(row.solution) for row in rows])
    ends = np.unique(np.quantile(lengths, [0.25, 0.5, 0.75, 1.0]).astype(int))
    place = np.minimum(np.searchsorted(ends, lengths), len(ends) - 1)
    width = len(f"{ends[-1]:,}")
    return [f"up to {ends[at]:>{width},} characters" for at in place]


def _parts(kinds: Sequence[str], right: np.ndarray, questions: Sequence[str]) -> tuple[Part, ...]:
    """Accuracy at the threshold of the rows of each kind."""
    members: dict[str, list[int]] = defaultdict(list)
    for position, kind in enumerate(kinds):
        members[kind].append(position)
    found = []
    for kind, positions in sorted(members.items()):
        accuracy = metrics.clustered_accuracy(right[positions], [questions[position] for position in positions])
        found.append(Part(name=kind, rows=len(positions), accuracy=accuracy))
    return tuple(found)
