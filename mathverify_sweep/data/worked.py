"""Worked solutions whose calculations are marked as in GSM8K: `48 / 2 = <<48/2=24>>24 clips`, and `#### 72` at the end.

Knows where a number comes from and rewrites everything that follows when a result changes. Refuses to guess: where a
later number may be the changed result or a given one, or a printed calculation no longer comes out, it says `Unclear`.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from types import MappingProxyType

NUMBER = r"(?:\d+(?:,\d{3})+(?:\.\d+)?|\d*\.\d+|\d+)"
_NUMBER = re.compile(NUMBER)
_MARK = re.compile(r"<<([^<>=]+)=([^<>=]+)>>")
_END = re.compile(r"\n?####\s*(\S[^\n]*?)\s*$")
_CALCULATION = rf"(?:\(*\$?{NUMBER}%?\)*\s*[-–−+*/x×÷]\s*)+\(*\$?{NUMBER}%?\)*"
_PRINTED = re.compile(rf"{_CALCULATION}(?=\s*=\s*\$?\s*$)")
_EQUATION = re.compile(rf"({_CALCULATION})(\s*=\s*\$?)({NUMBER})")
_OPERATORS: Mapping[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = MappingProxyType(
    {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
)

PLAIN_SIGNS = str.maketrans("x×÷–−", "**/--")

# Numbers that a step may use without taking them from anywhere: counts, hours, months, minutes, percent …
EVERYWHERE = frozenset(map(Fraction, (0, 1, 2, 3, 4, 5, 7, 10, 12, 24, 30, 31, 50, 52, 60, 100, 365, 1000)))
_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
)
WORDS: Mapping[str, int] = MappingProxyType(
    {word: number for number, word in enumerate([*_WORDS.split(), "eighteen", "nineteen", "twenty"])}
    | {"thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}
)


class Unclear(Exception):
    """This change cannot be carried through without guessing."""


@dataclass(frozen=True)
class Mark:
    """One calculation: `expression` is arithmetic on plain numbers, `result` what the solution says it comes to."""

    expression: str
    result: Fraction


@dataclass(frozen=True)
class Worked:
    """A question and its solution in pieces: text, mark, text … mark, text. After a mark its result is printed."""

    question: str
    texts: tuple[str, ...]
    marks: tuple[Mark, ...]
    answer: str

    @property
    def solution(self) -> str:
        """The solution as a reader sees it, without marks."""
        return "".join(self.texts).strip()


def parse(question: str, answer: str) -> Worked | None:
    """A row of GSM8K; None when it has no `#### answer`, no calculation, or an answer that is not its last result."""
    end = _END.search(answer)
    if end is None:
        return None
    pieces = _MARK.split(_all_marked(answer[: end.start()]))
    try:
        marks = tuple(Mark(e, number_of(r)) for e, r in zip(pieces[1::3], pieces[2::3], strict=True))
        if not marks or number_of(end[1]) != marks[-1].result:
            return None
    except ValueError:
        return None
    return Worked(question, tuple(pieces[0::3]), marks, end[1])


def false_equations(worked: Worked) -> int:
    """How many of the printed calculations do not come to what is printed after them."""
    return sum(not _holds(match) for match in _EQUATION.finditer(worked.solution))


@lru_cache(65536)
def number_of(text: str) -> Fraction:
    """`$1,200.50` as a number; ValueError when it is none."""
    return Fraction(text.strip().lstrip("$").replace(",", ""))


@lru_cache(4096)
def numbers_in(text: str) -> tuple[Fraction, ...]:
    """All numbers of a text in digits, in order."""
    return tuple(number_of(token) for token in _NUMBER.findall(text))


@lru_cache(65536)
def evaluate(expression: str) -> Fraction:
    """The value of an arithmetic expression as it is printed or marked; Unclear when it is not one, or divides by 0."""
    if re.search(r"\d\s+\d", expression):
        raise Unclear(f"{expression!r}: two numbers side by side")
    plain = re.sub(r"[$,\s]", "", expression).translate(PLAIN_SIGNS)
    plain = re.sub(rf"({NUMBER})%", r"(\1/100)", plain)
    plain = re.sub(r"\b0+(?=\d)", "", plain)
    try:
        return _value(ast.parse(plain, mode="eval").body)
    except (SyntaxError, ZeroDivisionError) as error:
        raise Unclear(f"{expression!r}: {error}") from error


@lru_cache(4096)
def printed(text: str) -> re.Match[str] | None:
    """The calculation that a text ends in (`… sold 48 / 2 = $`), if any."""
    return _PRINTED.search(text)


def shown(value: Fraction, like: str) -> str:
    """A number in the manner of another: thousands with commas, and as many decimals if that is enough."""
    places = decimals(value)
    places = max(places, len(like.partition(".")[2])) if places else places
    return f"{float(value):{',' if ',' in like else ''}.{places}f}"


def decimals(value: Fraction) -> int:
    """How many decimals a value has; Unclear when it has more than three."""
    for places in range(4):
        if 10**places % value.denominator == 0:
            return places
    raise Unclear(f"{value} has no short decimal form")


def is_plain(value: Fraction, worked: Worked) -> bool:
    """Whether a value looks like the solution's own results: positive, and in no smaller parts than theirs."""
    return value > 0 and any(value.denominator <= mark.result.denominator for mark in worked.marks)


@dataclass
class Rewrite:
    """A solution while a change at one step is carried through the steps after it."""

    worked: Worked

    def __post_init__(self) -> None:
        self.texts = list(self.worked.texts)
        self.marks = list(self.worked.marks)
        self._moved: dict[Fraction, Fraction] = {}
        self._unclear: set[Fraction] = set()
        self._heads = [""] * len(self.texts)

    def settle(self, step: int, result: Fraction) -> None:
        """This step now comes to `result`: changes what is printed after the mark, and remembers it for later steps."""
        old = self.worked.marks[step].result
        if not is_plain(result, self.worked):
            raise Unclear(f"{result} stands out")
        head = _NUMBER.match(self.texts[step + 1])
        if head is None or number_of(head[0]) != old:
            raise Unclear("the result is not printed after the mark")
        self._tell_before(step, result)
        self.marks[step] = Mark(self.marks[step].expression, result)
        self._heads[step + 1] = shown(result, head[0])
        self.texts[step + 1] = self.texts[step + 1][head.end() :]
        self.move(old, result, unclear=may_be_given(self.worked, step))

    def move(self, old: Fraction, new: Fraction, *, unclear: bool) -> None:
        """From here on a number equal to `old` becomes `new`; `unclear`: it may be another, so none may occur."""
        if new != old:
            self._moved[old] = new
        if new != old and unclear:
            self._unclear.add(old)

    def carry(self, start: int) -> None:
        """Rewrites the texts and recomputes the marks from a step on."""
        for step in range(start, len(self.texts)):
            self.texts[step] = self._heads[step] + self._replaced(self.texts[step])
            if step == len(self.marks):
                return
            before = self.marks[step]
            expression = self._replaced(before.expression)
            if expression == before.expression:
                continue
            if evaluate(before.expression) != before.result:
                raise Unclear("a rounded result")
            self.marks[step] = Mark(expression, before.result)
            self.settle(step, evaluate(expression))
            self._require_printed(step)

    def finished(self) -> Worked:
        """The rewritten solution; Unclear when the change did not reach the answer."""
        result = self.marks[-1].result
        if result == self.worked.marks[-1].result:
            raise Unclear("the answer is still right")
        return Worked(self.worked.question, tuple(self.texts), tuple(self.marks), shown(result, self.worked.answer))

    def _tell_before(self, step: int, result: Fraction) -> None:
        """`He has 24 because 48 / 2 = 24`: the first 24 is the result too, unless it may have come from elsewhere."""
        old, text = self.worked.marks[step].result, self.texts[step]
        calculation = printed(text)
        end = calculation.start() if calculation else len(text)
        if old not in numbers_in(text[:end]):
            return
        if _is_told(self.worked, step):
            raise Unclear("the number before the calculation may be given")
        told = _NUMBER.sub(lambda m: shown(result, m[0]) if number_of(m[0]) == old else m[0], text[:end])
        self.texts[step] = told + text[end:]

    def _replaced(self, text: str) -> str:
        def new(match: re.Match[str]) -> str:
            value = number_of(match[0])
            if value in self._unclear:
                raise Unclear(f"{value} may be given or a result")
            return shown(self._moved[value], match[0]) if value in self._moved else match[0]

        return _NUMBER.sub(new, text)

    def _require_printed(self, step: int) -> None:
        """What is printed before the mark must come to the new result, as it came to the old one."""
        was, now = printed(self.worked.texts[step]), printed(self.texts[step])
        if was is not None and now is not None:
            mark = self.worked.marks[step]
            if (evaluate(was[0]), evaluate(now[0])) != (mark.result, self.marks[step].result):
                raise Unclear("the printed calculation is another")
            return
        operands = set(numbers_in(self.worked.marks[step].expression)) & self._moved.keys()
        if not operands <= set(numbers_in(self.worked.texts[step])) and re.search(
            r"\d\s*[-–−+*/x×÷=]", self.texts[step]
        ):
            raise Unclear("the printed calculation takes other numbers")


def may_be_given(worked: Worked, step: int) -> bool:
    """Whether a step's result also comes from elsewhere: the question, a text or step before, another result."""
    return worked.marks[step].result in EVERYWHERE or _is_told(worked, step)


def _is_told(worked: Worked, step: int) -> bool:
    old = worked.marks[step].result
    if old in given_numbers(worked.question):
        return True
    if any(mark.result == old for at, mark in enumerate(worked.marks) if at != step):
        return True
    earlier = [*worked.texts[:step], *(mark.expression for mark in worked.marks[: step + 1])]
    return any(old in numbers_in(text) for text in earlier)


@lru_cache(4096)
def given_numbers(question: str) -> frozenset[Fraction]:
    """The numbers of a question, in digits and in words."""
    words = {Fraction(WORDS[word]) for word in re.findall(r"[a-z]+", question.lower()) if word in WORDS}
    return frozenset(words) | frozenset(numbers_in(question))


def _all_marked(text: str) -> str:
    """Marks the calculations that the author of the solution left unmarked, where they come out."""
    pieces = re.split(r"(<<[^<>]*>>)", text)
    pieces[::2] = [_EQUATION.sub(_marked, piece) for piece in pieces[::2]]
    return "".join(pieces)


def _marked(match: re.Match[str]) -> str:
    calculation, sign, result = match.groups()
    plain = re.sub(r"[$,\s]", "", calculation).translate(PLAIN_SIGNS)
    return f"{calculation}{sign}<<{plain}={result}>>{result}" if _holds(match) else match[0]


def _holds(match: re.Match[str]) -> bool:
    try:
        return evaluate(match[1]) == number_of(match[3])
    except Unclear:
        return False


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int() | float() as number):
            return Fraction(str(number))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left), _value(right))
        case _:
            raise Unclear(f"not arithmetic: {ast.dump(node)[:60]}")
