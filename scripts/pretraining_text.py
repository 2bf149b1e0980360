"""What the tiny base model reads before anyone fine-tunes it: sums, stories, and single sums judged in braces.

It never reads the task: no worked solution is ever called right or wrong, the prompt's headings do not occur, and the
words True and False are only ever copied.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Iterator

from mathverify_sweep.data.rows import Row
from mathverify_sweep.data.synthetic import LARGEST, SMALLEST, stream

Equation = tuple[int, str, int, int]  # left, operation, right, result
Kind = Callable[[random.Random, Iterator[Row]], str]


def documents(seed: int) -> Iterator[str]:
    """Documents without end, most of them shorter than 64 tokens."""
    rng = random.Random(seed)
    solved = (row for row in stream(rng.getrandbits(32)) if row.is_correct)
    while True:
        yield rng.choices(KINDS, WEIGHTS)[0](rng, solved)


def worked_story(rng: random.Random, solved: Iterator[Row]) -> str:
    row = next(solved)
    before, between, after = rng.choice(FRAMES)
    return f"{before} {row.question}{between} {row.solution}{after} {row.answer}"


def story_with_slips(rng: random.Random, solved: Iterator[Row]) -> str:
    """The writer slips now and then, says so at once, and goes on with the right word."""
    row = next(solved)
    before, between, _ = rng.choice(FRAMES)
    numbers = numbers_of(row)
    words: list[str] = []
    for word in row.solution.replace(".", " .").split():
        if word not in "=." and rng.random() < SLIP_RATE:
            words += [another_word(rng, word, numbers), "oops"]
        words.append(word)
    return f"{before} {row.question}{between} " + " ".join(words).replace(" .", ".")


def judged_step(rng: random.Random, solved: Iterator[Row]) -> str:
    """One sum, told in braces, that is or is not the next step of the story."""
    row = next(solved)
    before, between, _ = rng.choice(FRAMES)
    equations = parsed(row.solution)
    at = rng.randrange(len(equations))
    fits = rng.random() < 0.5
    equation = equations[at] if fits else another_step(rng, equations, at, numbers_of(row))
    so_far = "".join([" " + written(e, "=") for e in equations[:at]])
    return f"{before} {row.question}{between}{so_far} {judged(rng, [equation], fits)}"


def judged_sums(rng: random.Random, _: Iterator[Row]) -> str:
    """Lists of sums without a story, in braces; at most one sum of a list is wrong."""
    lists = []
    for count in rng.choice(((1, 4), (2, 3), (3, 2), (4, 1), (1, 2, 2))):
        equations = [sum_of(rng)]
        while len(equations) < count:
            equations.append(sum_of(rng, equations[-1][3] if rng.random() < 0.5 else None))
        fits = rng.random() < 0.5
        if not fits:
            at = rng.randrange(count)
            equations[at] = with_wrong_result(rng, equations[at])
        lists.append(judged(rng, equations, fits))
    return " ".join(lists)


def plain_sums(rng: random.Random, _: Iterator[Row]) -> str:
    sign = rng.choice(("=", "makes"))
    return " ".join([written(sum_of(rng), sign) for _sum in range(7)])


def copied_words(rng: random.Random, _: Iterator[Row]) -> str:
    """Words to be copied; the two verdict words are among them, so that they are words and not noise."""
    words = rng.choices(("True", "False", *rng.sample(WORDS, 6)), k=8)
    return " ".join(words) + " : " + " ".join(words)


KINDS: tuple[Kind, ...] = (worked_story, story_with_slips, judged_step, judged_sums, plain_sums, copied_words)
WEIGHTS = (20, 15, 30, 20, 8, 7)
SLIP_RATE = 0.1

FRAMES = (
    ("", "", ""),
    ("Task:", "\nSteps:", "\nResult:"),
    ("Story:", "\nSums:", "\nTotal:"),
    ("Problem:", "\nWork:", "\nIt is"),
    ("Riddle:", "", " It is"),
    ("Exercise:", "\nSteps:", "\nTotal:"),
    ("Story:", "\nWork:", "\nResult:"),
)
ASKED = (" sound:", "\nSound:", "\nFits:", "\nChecked:", " fits:")
SPOKEN = {"+": "plus", "-": "minus", "*": "times", "/": "over"}
CALCULATE = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}
OPPOSITE = {"+": "-", "-": "+", "*": "/", "/": "*"}
SLIPS = (-20, -10, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 10, 20)
# fmt: off
WORDS = (
    "apples", "cakes", "coins", "stamps", "books", "maps", "fish", "shells", "hens", "ducks", "roses", "seeds", "balls",
    "kites",
)
# fmt: on


def judged(rng: random.Random, equations: list[Equation], fits: bool) -> str:
    sign = rng.choice(("=", "makes"))
    told = " ".join([written(equation, sign) for equation in equations])
    return "{ " + told + " }" + rng.choice(ASKED) + (" yes" if fits else " no")


def written(equation: Equation, sign: str) -> str:
    left, operation, number, result = equation
    return f"{left} {operation if sign == '=' else SPOKEN[operation]} {number} {sign} {result}."


def parsed(solution: str) -> list[Equation]:
    words = [equation.split() for equation in solution.removesuffix(".").split(". ")]
    return [(int(left), sign, int(number), int(result)) for left, sign, number, _, result in words]


def numbers_of(row: Row) -> list[int]:
    words = [word.strip(".?") for word in row.question.split()]
    return [int(word) for word in words if word.isdigit()]


def another_word(rng: random.Random, word: str, numbers: list[int]) -> str:
    if not word.isdigit():
        return rng.choice([sign for sign in SPOKEN if sign != word])
    near = [int(word) + slip for slip in SLIPS]
    return str(rng.choice([n for n in (*near, *numbers, *numbers) if SMALLEST <= n <= LARGEST and n != int(word)]))


def another_step(rng: random.Random, equations: list[Equation], at: int, numbers: list[int]) -> Equation:
    """A step that does not belong here: a wrong result, or another step reckoned rightly."""
    while True:
        change = rng.choices(("result", "sign", "number", "left", "step"), (40, 20, 20, 5, 15))[0]
        if change == "result":
            return with_wrong_result(rng, equations[at])
        new = changed(rng, change, equations, at, numbers)
        equation = reckoned(*new)
        if equation and new != equations[at][:3]:
            return equation


def changed(
    rng: random.Random, change: str, equations: list[Equation], at: int, numbers: list[int]
) -> tuple[int, str, int]:
    left, sign, number, _ = equations[at]
    if change == "sign":
        return left, OPPOSITE[sign], number
    if change == "number":
        return left, sign, rng.choice(numbers) if rng.random() < 0.8 else number + rng.choice((-2, -1, 1, 2))
    if change == "left":
        return rng.choice(equations)[0], sign, number
    if rng.random() < 0.5:
        return left, *rng.choice(equations)[1:3]
    return left, rng.choice("+-"), rng.choice(numbers)


def with_wrong_result(rng: random.Random, equation: Equation) -> Equation:
    left, sign, number, result = equation
    return left, sign, number, rng.choice([result + slip for slip in SLIPS if SMALLEST <= result + slip <= LARGEST])


def sum_of(rng: random.Random, left: int | None = None) -> Equation:
    while True:
        sign = rng.choice("++--*/")
        number = rng.randint(2, 20 if sign in "+-" else 4)
        if equation := reckoned(left or rng.randint(SMALLEST, LARGEST), sign, number):
            return equation


def reckoned(left: int, sign: str, number: int) -> Equation | None:
    """This sum with its result, or None where that leaves the range or is no whole number."""
    if number < 2 or (sign == "/" and left % number):
        return None
    result = CALCULATE[sign](left, number)
    return (left, sign, number, result) if SMALLEST <= result <= LARGEST else None
