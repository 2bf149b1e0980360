"""Labelled rows from worked solutions that are all correct: one error, carried through every later step to the answer.

Calculation errors (a slip in a result) and reasoning errors (wrong operation, wrong quantity, a step left out). A
question where no error can be carried through cleanly is left out altogether, also as a correct row: otherwise what
can be broken and what cannot would tell the classes apart.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from types import MappingProxyType

from mathverify_sweep.data.read import read
from mathverify_sweep.data.rows import Row, column_of
from mathverify_sweep.data.worked import (
    NUMBER,
    PLAIN_SIGNS,
    Mark,
    Rewrite,
    Unclear,
    Worked,
    decimals,
    evaluate,
    false_equations,
    given_numbers,
    may_be_given,
    number_of,
    numbers_in,
    parse,
    printed,
    shown,
)
from mathverify_sweep.errors import DataError

TRIES = 15
"""Draws of an error per step: first a kind, then its place and size."""

SLIP = "slip"
OTHER_SIGNS: Mapping[str, str] = MappingProxyType({"+": "-*", "-": "+", "*": "+/", "/": "*-"})
_TOKEN = re.compile(rf"({NUMBER}|[-–−+*/x×÷()])")


@dataclass(frozen=True)
class Injected:
    """A solution with an error, where it is, and what kind of error it is."""

    worked: Worked
    step: int
    kind: str


def read_worked(source: str) -> list[Worked]:
    """The solutions of a file with GSM8K's columns `question` and `answer`; those of another form are left out."""
    table = read(source)
    questions, answers = (column_of(table, name, f"columns.{name}") for name in ("question", "answer"))
    pairs = zip(questions, answers, strict=True)
    found = [parse(q, a) for q, a in pairs if isinstance(q, str) and isinstance(a, str) and q.strip()]
    worked = [item for item in found if item is not None]
    if not worked:
        raise DataError(
            f"{source}: column 'answer' must hold marks `<<48/2=24>>` and end in `#### 72`, got no such row"
        )
    return worked


def build(rows: Iterable[Worked], seed: int, wrong_share: float = 0.6) -> list[Row]:
    """One row per usable question in the given order, `wrong_share` of them wrong. The same seed, the same rows."""
    if not 0 < wrong_share < 1:
        raise DataError(f"wrong_share must lie between 0 and 1, got {wrong_share}")
    pairs = [(row, inject(row, random.Random(f"{seed} {row.question}"))) for row in rows]
    usable = [(row, injected) for row, injected in pairs if injected is not None]
    wrong = set(random.Random(seed).sample(range(len(usable)), round(wrong_share * len(usable))))
    return [
        _row(injected.worked, False) if at in wrong else _row(row, True) for at, (row, injected) in enumerate(usable)
    ]


def inject(worked: Worked, rng: random.Random) -> Injected | None:
    """An error at a random step, a calculation or a reasoning error; None when none can be carried through cleanly."""
    steps = rng.sample(range(len(worked.marks)), len(worked.marks))
    for step in (step for step in steps for _ in range(TRIES)):
        kind = rng.choice((SLIP, rng.choice(tuple(REASONING))))
        change = _slip if kind == SLIP else REASONING[kind]
        try:
            changed = change(worked, step, rng)
        except Unclear:
            continue
        if false_equations(changed) - false_equations(worked) <= (kind == SLIP):
            return Injected(changed, step, kind)
    return None


def _slip(worked: Worked, step: int, rng: random.Random) -> Worked:
    """The calculation is as it was and comes to something else."""
    rewrite = Rewrite(worked)
    rewrite.settle(step, _slipped(worked.marks[step].result, rng))
    rewrite.carry(step + 1)
    return rewrite.finished()


def _slipped(result: Fraction, rng: random.Random) -> Fraction:
    """Off by one or two, a forgotten or doubled carry, one digit misread, two swapped, or the decimal point moved."""
    unit = Fraction(1, 10 ** decimals(result))
    digits = list(str(result / unit))
    at = rng.randrange(len(digits))
    match rng.randrange(5):
        case 0:
            return result + rng.choice((-2, -1, 1, 2)) * unit
        case 1:
            return result + rng.choice((-10, 10)) * unit
        case 2:
            digits[at] = str(rng.randrange(10))
        case 3:
            digits[at - 1], digits[at] = digits[at], digits[at - 1]
        case _:
            return result * rng.choice((Fraction(1, 10), Fraction(10)))
    slipped = int("".join(digits)) * unit if "".join(digits).isdigit() and digits[0] != "0" else result
    if slipped == result:
        raise Unclear("nothing slipped")
    return slipped


def _wrong_operation(worked: Worked, step: int, rng: random.Random) -> Worked:
    """One sign of the calculation is another one; it is worked out correctly."""
    seen, marked = _calculation(worked, step)
    at = rng.choice([i for i in range(1, len(marked), 2) if marked[i] in OTHER_SIGNS])
    marked[at] = rng.choice(OTHER_SIGNS[marked[at]])
    seen[at] = "x" if marked[at] == "*" and re.search(r"\d ?x ?\d", worked.solution) else marked[at]
    return _with_calculation(worked, step, "".join(seen), "".join(marked))


def _wrong_quantity(worked: Worked, step: int, rng: random.Random) -> Worked:
    """One number of the calculation is another one, from the question or from an earlier step."""
    seen, marked = _calculation(worked, step)
    at = rng.choice([i for i in range(1, len(marked), 2) if re.fullmatch(NUMBER, marked[i])])
    known = given_numbers(worked.question) | {mark.result for mark in worked.marks[:step]}
    others = sorted(known - {Fraction(0), number_of(marked[at])})
    if not others:
        raise Unclear("no other quantity")
    other = rng.choice(others)
    seen[at], marked[at] = shown(other, seen[at]), shown(other, "")
    return _with_calculation(worked, step, "".join(seen), "".join(marked))


def _left_out(worked: Worked, step: int, rng: random.Random) -> Worked:
    """The line of the step is missing, and one of its numbers is used where its result should be."""
    head, found_head, _ = worked.texts[step].rpartition("\n")
    _, found_tail, tail = worked.texts[step + 1].partition("\n")
    if not found_tail or (step > 0 and not found_head):
        raise Unclear("the step is not a line of its own")
    texts = (*worked.texts[:step], head + found_head + tail, *worked.texts[step + 2 :])
    marks = worked.marks[:step] + worked.marks[step + 1 :]
    if not marks:
        raise Unclear("the only step")
    rewrite = Rewrite(replace(worked, texts=texts, marks=marks))
    used = rng.choice(numbers_in(worked.marks[step].expression))
    rewrite.move(worked.marks[step].result, used, unclear=may_be_given(worked, step))
    rewrite.carry(step)
    return rewrite.finished()


REASONING: Mapping[str, Callable[[Worked, int, random.Random], Worked]] = MappingProxyType(
    {"operation": _wrong_operation, "quantity": _wrong_quantity, "left_out": _left_out}
)


def _calculation(worked: Worked, step: int) -> tuple[list[str], list[str]]:
    """The step's calculation as printed and as marked, split alike: tokens at odd places stand for each other."""
    match = printed(worked.texts[step])
    if match is None:
        raise Unclear("no printed calculation")
    seen, marked = (_TOKEN.split(text) for text in (match[0], worked.marks[step].expression))
    if len(seen) != len(marked) or any(_same(a) != _same(b) for a, b in zip(seen[1::2], marked[1::2], strict=True)):
        raise Unclear("printed and marked calculation differ")
    if evaluate(worked.marks[step].expression) != worked.marks[step].result:
        raise Unclear("a rounded result")
    return seen, marked


def _same(token: str) -> str | Fraction:
    return number_of(token) if re.fullmatch(NUMBER, token) else token.translate(PLAIN_SIGNS)


def _with_calculation(worked: Worked, step: int, seen: str, marked: str) -> Worked:
    match = printed(worked.texts[step])
    assert match is not None
    rewrite = Rewrite(worked)
    text = worked.texts[step]
    rewrite.texts[step] = text[: match.start()] + seen + text[match.end() :]
    rewrite.marks[step] = Mark(marked, worked.marks[step].result)
    result = evaluate(marked)
    if result != evaluate(seen) or result == worked.marks[step].result:
        raise Unclear("the change changes nothing, or not the same thing in print")
    rewrite.settle(step, result)
    rewrite.carry(step + 1)
    return rewrite.finished()


def _row(worked: Worked, is_correct: bool) -> Row:
    return Row(worked.question, worked.answer, worked.solution, is_correct)
