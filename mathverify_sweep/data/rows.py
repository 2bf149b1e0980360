"""One labelled row, and how a table's values become rows.

Refuses empty text, nulls, NUL bytes, broken unicode and odd labels. An answer may be empty in a row that is labelled
False: a solution that breaks off arrives at none. All that is wrong with a table is said in one DataError: per column
and rule the first row (1-based) and how many more.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

from mathverify_sweep.errors import DataError
from mathverify_sweep.specs import ColumnsSpec

T = TypeVar("T")

LABELS: Mapping[object, bool] = MappingProxyType(
    {True: True, False: False, "True": True, "False": False, "true": True, "false": False}
    | {"1": True, "0": False, "yes": True, "no": False}
)


@dataclass(frozen=True, slots=True)
class Row:
    """A worked solution to a question, the answer it arrives at, and whether that is correct."""

    question: str
    answer: str
    solution: str
    is_correct: bool


@dataclass(frozen=True)
class Table:
    """Columns of equal length as they were read; `where` is what a message calls the source."""

    where: str
    columns: Mapping[str, Sequence[object]]


def question_key(question: str) -> str:
    """What makes two questions the same one: letters and digits, lower case.

    A question without any ASCII letter (another script) would lose all its words, so it keeps the letters it has.
    """
    key = re.sub(r"[^a-z0-9]+", " ", question.lower()).strip()
    return key if re.search("[a-z]", key) else re.sub(r"[\W_]+", " ", question.lower()).strip()


def groups(rows: Sequence[Row]) -> list[str]:
    """The question key of each row: the clusters of every interval and test."""
    return [question_key(row.question) for row in rows]


def rows_of(table: Table, columns: ColumnsSpec) -> list[Row]:
    """All rows of a table, or one DataError that names everything that is wrong with them."""
    _require_columns(table, columns.model_dump())
    problems: list[str] = []
    texts = _texts(table, columns, problems)
    labels = _checked(table, columns.is_correct, _label, problems)
    if not problems:
        problems += _right_without_answer(columns.answer, texts[1], labels)
    if problems:
        raise DataError(f"{table.where}: " + "; ".join(problems))
    return [Row(*fields) for fields in zip(*texts, labels, strict=True)]


def unlabelled_rows_of(table: Table, columns: ColumnsSpec) -> list[Row]:
    """The same of a table without labels, whose rows are to be judged; their `is_correct` means nothing."""
    return [Row(*fields, is_correct=False) for fields in zip(*texts_of(table, columns), strict=True)]


def texts_of(table: Table, columns: ColumnsSpec) -> tuple[list[str], list[str], list[str]]:
    """Questions, answers and solutions of a table without labels."""
    _require_columns(table, columns.model_dump(exclude={"is_correct"}))
    problems: list[str] = []
    texts = _texts(table, columns, problems)
    if problems:
        raise DataError(f"{table.where}: " + "; ".join(problems))
    return texts


def column_of(table: Table, name: str, option: str) -> Sequence[object]:
    """A further column by name; `option` is the key of the sweep file that names it."""
    _require_columns(table, {option: name})
    return table.columns[name]


_COLUMNS_SHOWN, _NAME_SHOWN = 30, 60
"""Of a table's columns, how many are named in an error, and how much of each: a file need not be a table."""


class _Bad(Exception):
    """One value breaks a rule; the text is the rule."""


def _require_columns(table: Table, names: Mapping[str, str]) -> None:
    missing = []
    for field, name in names.items():
        if name not in table.columns:
            near = difflib.get_close_matches(name.lower(), {c.lower(): c for c in table.columns}, n=1, cutoff=0.5)
            nearest = next((c for c in table.columns if near and c.lower() == near[0]), None)
            hint = f" (the nearest is {nearest!r})" if nearest else ""
            option = field if field == "split_column" else f"columns.{field}"
            missing.append(f"no column {name!r}{hint}; set data.{option} to the column that holds it")
    if missing:
        there = ", ".join(name[:_NAME_SHOWN] for name in list(table.columns)[:_COLUMNS_SHOWN]) or "none"
        raise DataError(f"{table.where}: {'; '.join(missing)}. Columns there: {there}")


def _texts(table: Table, columns: ColumnsSpec, problems: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Questions, answers and solutions, in the order of `Row`'s fields."""
    questions = _checked(table, columns.question, _text, problems)
    solutions = _checked(table, columns.solution, _text, problems)
    return questions, _checked(table, columns.answer, _answer, problems), solutions


def _checked(table: Table, column: str, convert: Callable[[object], T], problems: list[str]) -> list[T]:
    values: list[T] = []
    first: dict[str, str] = {}
    counts: dict[str, int] = {}
    for number, value in enumerate(table.columns[column], start=1):
        try:
            values.append(convert(value))
        except _Bad as bad:
            rule = str(bad)
            first.setdefault(rule, f"column {column!r}, row {number}: {rule}, got {_shown(value)}")
            counts[rule] = counts.get(rule, 0) + 1
    problems += [text + (f" (and {counts[rule] - 1} more)" if counts[rule] > 1 else "") for rule, text in first.items()]
    return values


def _right_without_answer(column: str, answers: Sequence[str], labels: Sequence[bool]) -> list[str]:
    empty = [n for n, (answer, right) in enumerate(zip(answers, labels, strict=True), start=1) if right and not answer]
    if not empty:
        return []
    more = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
    return [f"column {column!r}, row {empty[0]}: an answer that is labelled correct must not be empty, got ''{more}"]


def _text(value: object) -> str:
    if value is None:
        raise _Bad("text must not be null")
    if not isinstance(value, str):
        raise _Bad("this must be text")
    if not value.strip():
        raise _Bad("text must not be empty")
    if "\0" in value:
        raise _Bad("text must not hold a NUL byte")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _Bad("text must be valid unicode (this holds half of a surrogate pair)") from None
    return value


def _answer(value: object) -> str:
    """A column of answers is often one of numbers; a whole float is what a reader made of an int column with gaps."""
    if isinstance(value, str) and not value.strip():
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
    return _text(value)


def _label(value: object) -> bool:
    if value is None:
        raise _Bad("a label must not be null")
    if not isinstance(value, (bool, int, float, str)) or value not in LABELS:
        raise _Bad("a label must be True/False, true/false, 1/0 or yes/no")
    return LABELS[value]


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
