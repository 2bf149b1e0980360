"""From a DataSpec to the rows of every split, fixed and fingerprinted. The page to read first in this folder.

Refuses, with one DataError that names file, column and row, whatever cannot be a labelled row or a usable split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from mathverify_sweep.data import read, splits
from mathverify_sweep.data.rows import Row, column_of, groups, question_key, rows_of
from mathverify_sweep.data.solving import solved_rows_of
from mathverify_sweep.errors import DataError
from mathverify_sweep.specs import DataSpec, Split

__all__ = ["Row", "VerificationData", "groups", "load", "question_key"]

GENERATED = "generated"


@dataclass(frozen=True)
class VerificationData:
    """Rows by split. `train[:n]` is the n-row training subset, so a longer run sees a superset of a shorter one's rows.

    `dropped` counts rows that were read and are in no split: `balance` (training), `validation_rows`, and of the task
    solving those with `no final number`.
    """

    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    test: tuple[Row, ...]
    gate: tuple[Row, ...]
    fingerprint: str
    dropped: Mapping[str, int]

    def split(self, name: Split) -> tuple[Row, ...]:
        """The rows of a split by its name."""
        return {"train": self.train, "validation": self.validation, "test": self.test, "gate": self.gate}[name]

    def training_rows(self, count: int) -> tuple[Row, ...]:
        """The `count`-row training subset; a DataError when there are not as many."""
        if count > len(self.train):
            raise DataError(f"train_rows must be at most the {len(self.train)} training rows there are, got {count}")
        return self.train[:count]


def load(spec: DataSpec) -> VerificationData:
    """Read, check, split, order and fingerprint."""
    rows, by_name, without_number = _split(spec)
    judged = spec.task == "verification"
    _require_rows(rows, spec.source, both_classes=judged)
    train, unbalanced = splits.nested_order(by_name["train"], spec.seed, balance=spec.balance)
    ordered: dict[Split, tuple[Row, ...]] = {
        name: splits.question_order(by_name[name], spec.seed) for name in by_name if name != "train"
    }
    validation = _validation(ordered["validation"], spec)
    for name, chosen in (("train", train), ("validation", validation)):
        _require_rows(chosen, f"{spec.source}, split {name!r}", both_classes=judged)
    dropped = {
        "balance": unbalanced,
        "validation_rows": len(ordered["validation"]) - len(validation),
        "no final number": without_number,
    }
    ordered |= {"train": train, "validation": validation}
    return VerificationData(
        **{name: ordered[name] for name in splits.SPLITS},
        fingerprint=splits.fingerprint((name, ordered[name]) for name in splits.SPLITS),
        dropped=MappingProxyType({reason: count for reason, count in dropped.items() if count}),
    )


def _split(spec: DataSpec) -> tuple[list[Row], dict[Split, list[Row]], int]:
    """All rows, the same by split, and how many were left out because no final number can be found in them."""
    if spec.source == GENERATED:
        if spec.split_column is not None:
            raise DataError("data.split_column: generated rows have no further columns. Remove it, or name a file")
        rows = [row for row in _generated(spec) if row.is_correct or spec.task == "verification"]
        return rows, splits.by_question(rows, spec), 0
    table = read.read(spec.source, spec.revision)
    if spec.task == "solving":
        rows, without_number = solved_rows_of(table, spec.columns)
        if spec.split_column is not None:
            raise DataError("data.split_column: the task solving splits by question. Remove it")
        return rows, splits.by_question(rows, spec), without_number
    rows = rows_of(table, spec.columns)
    if spec.split_column is None:
        return rows, splits.by_question(rows, spec), 0
    values = column_of(table, spec.split_column, "split_column")
    return rows, splits.by_column(rows, values, f"{table.where}: column {spec.split_column!r}"), 0


def _generated(spec: DataSpec) -> list[Row]:
    from mathverify_sweep.data import synthetic

    told = synthetic.generate(spec.generated_rows, spec.seed)
    return [Row(story.question, story.answer, story.solution, story.is_correct) for story in told]


def _validation(rows: tuple[Row, ...], spec: DataSpec) -> tuple[Row, ...]:
    if spec.validation_rows is None:
        return rows
    if spec.validation_rows > len(rows):
        raise DataError(
            f"{spec.source}: data.validation_rows must be at most the {len(rows)} rows of the validation split, "
            f"got {spec.validation_rows}. Ask for fewer, or raise data.validation_share"
        )
    return splits.keep(rows, spec.validation_rows)


def _require_rows(rows: Sequence[Row], where: str, *, both_classes: bool) -> None:
    if not rows:
        raise DataError(f"{where}: there must be rows, got none")
    right = sum(row.is_correct for row in rows)
    if both_classes and right in (0, len(rows)):
        raise DataError(f"{where}: there must be rows of both classes, got {len(rows)} rows that are all {right > 0}")
