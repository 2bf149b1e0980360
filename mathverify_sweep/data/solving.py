"""Rows to learn solving from, and whether a solution arrives at the answer: by its final number.

The final number of a text is what follows `####`, as GSM8K has it, or else the last number in it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from mathverify_sweep.data.rows import Row, Table, rows_of, texts_of
from mathverify_sweep.data.worked import NUMBER, number_of
from mathverify_sweep.specs import ColumnsSpec

_MARK = re.compile(r"<<[^<>]*>>")
_END = re.compile(r"####\s*(.*)\s*$", re.DOTALL)
_NUMBER = re.compile(rf"(?:(?:^|(?<=[\s=(:]))(-))?\$?({NUMBER})")


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
    return found is not None and number_of(found) == number_of(answer)


def majority(found: Sequence[str | None]) -> str | None:
    """The final number that most texts arrive at; of equals the one that came first, None when all have none."""
    numbers = [number for number in found if number is not None]
    votes = Counter(map(number_of, numbers))
    return max(numbers, key=lambda number: votes[number_of(number)]) if numbers else None


def final_number(text: str) -> str | None:
    """The number that a text arrives at, as digits; None when it has none."""
    end = _END.search(text)
    numbers: list[str] = [sign + digits.replace(",", "") for sign, digits in _NUMBER.findall(end[1] if end else text)]
    if not numbers:
        return None
    return numbers[0] if end else numbers[-1]


def _tidy(row: Row) -> Row | None:
    answer = final_number(row.answer)
    solution = _END.sub("", _MARK.sub("", row.solution)).strip()
    if answer is None or not solution:
        return None
    return Row(row.question, answer, solution, is_correct=True)
