"""Rows to learn solving from, and whether a solution arrives at the answer: by its final number.

The final number of a text is the one behind `####`, as GSM8K has it, or else the last number in it: `-5`, `1,200.50`,
`3/4`. One that is a part of something else (`10^3`, `5:30`, `3 1/2`, `20km`) is no answer, and the text has none.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

from mathverify_sweep.data.rows import Row, Table, rows_of, texts_of
from mathverify_sweep.data.worked import NUMBER, number_of
from mathverify_sweep.specs import ColumnsSpec

_MARK = re.compile(r"<<[^<>]*>>")
_SIGNED = rf"(?:(?:^|(?<=[\s=(:{{$*#]))([-−]))?\\?\$?({NUMBER}(?:/{NUMBER})?)"
_NUMBER = re.compile(_SIGNED)
_END = re.compile(rf"####\s*(?={_SIGNED})(.*)", re.DOTALL)
_STEP = re.compile(r"#+\s*step\s+\d+", re.IGNORECASE)
"""A heading, whose number is no answer."""
_PART_OF_IT = re.compile(r"(?:[^\W\d_]|\^\{?[-−]?|\}\{|/|\d:)$")
"""Before a number that is a part: a letter, or it is a power, a denominator or minutes."""
_HAS_MORE = re.compile(r"[^\W\d_]|\^|/\d|:\d")
_WHOLE = re.compile(r"\d\s+$")
"""Before a fraction: `3 1/2` is one number."""


def solved_rows_of(table: Table, columns: ColumnsSpec) -> tuple[list[Row], int]:
    """The correct rows of a table that have a final number as `answer`, and how many correct ones have none.

    Without a column of labels all are correct. Of solutions and answers one column is enough, as in GSM8K: the worked
    solution, whose final number is the answer. Raises DataError.
    """
    if columns.solution not in table.columns and columns.answer in table.columns:
        columns = columns.model_copy(update={"solution": columns.answer})
    if columns.answer not in table.columns:
        columns = columns.model_copy(update={"answer": columns.solution})
    if columns.is_correct in table.columns:
        rows = [row for row in rows_of(table, columns) if row.is_correct]
    else:
        questions, answers, solutions = texts_of(table, columns)
        rows = [Row(*fields, is_correct=True) for fields in zip(questions, answers, solutions, strict=True)]
    known = [tidy for row in rows if (tidy := _tidy(row)) is not None]
    return known, len(rows) - len(known)


def written(row: Row) -> str:
    """The solution as a model is to write it behind a prompt, with its answer at the end."""
    return f" {row.solution}\n#### {row.answer}"


def is_same(found: str | None, answer: str) -> bool:
    """Whether a final number, or that there is none, is the answer."""
    return found is not None and _value(found) == _value(answer)


def majority(found: Sequence[str | None]) -> str | None:
    """The final number that most texts arrive at; of equals the one that came first, None when all have none."""
    numbers = [number for number in found if number is not None]
    votes = Counter(map(_value, numbers))
    return max(numbers, key=lambda number: votes[_value(number)]) if numbers else None


def final_number(text: str) -> str | None:
    """The number that a text arrives at, in digits, a fraction as `3/4`; None when it has none, or a part of one."""
    end = _END.search(text)
    told = end[3] if end else _STEP.sub("", text)
    numbers = list(_NUMBER.finditer(told))
    if not numbers:
        return None
    found = numbers[0] if end else numbers[-1]
    before, number = told[: found.start(2)], found[2].replace(",", "")
    is_part = _PART_OF_IT.search(before) or _HAS_MORE.match(told, found.end())
    _, is_fraction, below = number.partition("/")
    if is_part or (is_fraction and (_WHOLE.search(before) or not number_of(below))):
        return None
    return f"-{number}" if found[1] else number


def _value(number: str) -> Fraction:
    above, _, below = number.partition("/")
    return number_of(above) / number_of(below or "1")


def _tidy(row: Row) -> Row | None:
    answer = final_number(row.answer)
    solution = _END.sub("", _MARK.sub("", row.solution)).strip()
    if answer is None or not solution:
        return None
    return Row(row.question, answer, solution, is_correct=True)
