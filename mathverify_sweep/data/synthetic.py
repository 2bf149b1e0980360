"""Short arithmetic stories with a worked solution that is right or wrong: the data set of the quickstart.

The same `seed` always tells the same stories in the same order, and tells no story twice.

Nothing on the surface tells right from wrong. Behind each row stand two calculations that differ in one place; both
stay within 1-99 and either could have been the right one. Only then is it drawn whether the row shows the right one.
So operations, lengths, numbers and answers are spread alike over both classes, and nobody can judge a row without
doing its sums.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

from mathverify_sweep.data.rows import Row

SMALLEST, LARGEST = 1, 99
"""Every number of a story and of its solution lies in this range."""

LABELS_OF_FIVE = (True, True, False, False, False)
"""60 % of the rows are incorrect, so answering False to all of them scores 0.60."""


def generate(rows: int, seed: int) -> list[Row]:
    """The first `rows` rows of this seed. More rows of one seed begin with the same rows."""
    return list(islice(stream(seed), rows))


def stream(seed: int) -> Iterator[Row]:
    """Rows without end."""
    rng = random.Random(seed)
    told: set[str] = set()
    while True:
        for is_correct in rng.sample(LABELS_OF_FIVE, len(LABELS_OF_FIVE)):
            row = _draw_row(rng, is_correct)
            while row.question in told:
                row = _draw_row(rng, is_correct)
            told.add(row.question)
            yield row


# What happens, and what goes wrong

_Step: TypeAlias = tuple[str, int]
_Equation: TypeAlias = tuple[int, str, int, int]  # left, operation, right, result


@dataclass(frozen=True, slots=True)
class _Plot:
    """What happens in a story. The bystander is a number that is told before step `bystander_at` but plays no part."""

    start: int
    steps: tuple[_Step, ...]
    bystander: int | None = None
    bystander_at: int = 0


_Mistaken: TypeAlias = tuple[_Plot, list[_Equation] | None]


def _draw_row(rng: random.Random, is_correct: bool) -> Row:
    while True:  # about half of the draws leave the range or change nothing
        plot, wrong = rng.choices(_MISTAKES, _MISTAKE_WEIGHTS)[0](rng)
        right = _work_out(plot.start, plot.steps)
        if right and wrong and right[-1][3] != wrong[-1][3]:
            break
    equations = right if is_correct else wrong
    solution = " ".join([f"{left} {sign} {number} = {result}." for left, sign, number, result in equations])
    return Row(_tell(rng, plot), str(equations[-1][3]), solution, is_correct)


def _wrong_sum(rng: random.Random) -> _Mistaken:
    plot = _draw_plot(rng, (2, 3, 4))
    return plot, _work_out(plot.start, plot.steps, slip_at=rng.randrange(len(plot.steps)), slip=rng.choice(_SLIPS))


def _wrong_operation(rng: random.Random) -> _Mistaken:
    plot = _draw_plot(rng, (2, 3, 4))
    at = rng.randrange(len(plot.steps))
    sign, number = plot.steps[at]
    return plot, _work_out(plot.start, _replaced(plot.steps, at, (_OPPOSITE[sign], number)))


def _wrong_quantity(rng: random.Random) -> _Mistaken:
    """One number is mistaken for the bystander, or for the number of another step of its kind."""
    plot = _draw_plot(rng, (2, 3))
    at = rng.randrange(len(plot.steps))
    sign, number = plot.steps[at]
    others = [n for s, n in plot.steps if _NUMBERS[s] == _NUMBERS[sign] and n != number]
    if plot.bystander is None and others:
        other = rng.choice(others)
    else:
        other = rng.choice(_NUMBERS[sign])
        plot = _Plot(plot.start, plot.steps, other, rng.randint(0, len(plot.steps)))
    return plot, _work_out(plot.start, _replaced(plot.steps, at, (sign, other)))


def _forgotten_result(rng: random.Random) -> _Mistaken:
    """A step starts from the value before the last one."""
    plot = _draw_plot(rng, (2, 3, 4))
    return plot, _work_out(plot.start, plot.steps, forgotten_at=rng.randrange(1, len(plot.steps)))


def _wrong_length(rng: random.Random) -> _Mistaken:
    """A step is skipped, or a bystander is taken for one: as often, so that the number of equations tells nothing."""
    longer = _draw_plot(rng, (3, 4), bystanders=0.0)
    at = rng.randrange(len(longer.steps))
    shorter = longer.steps[:at] + longer.steps[at + 1 :]
    if rng.random() < 0.5:
        return longer, _work_out(longer.start, shorter)
    return _Plot(longer.start, shorter, longer.steps[at][1], at), _work_out(longer.start, longer.steps)


_MISTAKES = (_wrong_sum, _wrong_operation, _wrong_quantity, _forgotten_result, _wrong_length)
_MISTAKE_WEIGHTS = (65, 14, 11, 3, 7)
_SLIPS = (-10, -3, -2, -1, 1, 2, 3, 10)
_OPPOSITE = {"+": "-", "-": "+", "*": "/", "/": "*"}
_NUMBERS = {"+": range(2, 21), "-": range(2, 21), "*": range(2, 5), "/": range(2, 5)}
_SIGNS = "+++---*/"
_COUNT_WEIGHTS = {2: 70, 3: 26, 4: 4}
_STARTS = range(5, 61)


def _draw_plot(rng: random.Random, step_counts: tuple[int, ...], bystanders: float = 0.2) -> _Plot:
    count = rng.choices(step_counts, [_COUNT_WEIGHTS[n] for n in step_counts])[0]
    steps = tuple([(sign, rng.choice(_NUMBERS[sign])) for sign in rng.choices(_SIGNS, k=count)])
    bystander = rng.choice(_NUMBERS["+"]) if rng.random() < bystanders else None
    return _Plot(rng.choice(_STARTS), steps, bystander, rng.randint(0, count))


def _replaced(steps: tuple[_Step, ...], at: int, step: _Step) -> tuple[_Step, ...]:
    return (*steps[:at], step, *steps[at + 1 :])


def _work_out(
    start: int, steps: tuple[_Step, ...], slip_at: int = -1, slip: int = 0, forgotten_at: int = -1
) -> list[_Equation] | None:
    """The equations of these steps, or None where one leaves the range or does not divide evenly."""
    equations: list[_Equation] = []
    value = before = start
    for at, (sign, number) in enumerate(steps):
        left = before if at == forgotten_at else value
        if sign == "/" and left % number:
            return None
        result = _CALCULATE[sign](left, number) + (slip if at == slip_at else 0)
        if not SMALLEST <= result <= LARGEST:
            return None
        equations.append((left, sign, number, result))
        before, value = value, result
    return equations


_CALCULATE = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}


# How it is told


@dataclass(frozen=True, slots=True)
class _Setting:
    things: tuple[str, ...]
    gains: tuple[str, ...]
    losses: tuple[str, ...]


def _tell(rng: random.Random, plot: _Plot) -> str:
    name, they = rng.choice(_PEOPLE)
    setting = rng.choice(_SETTINGS)
    things = rng.choice(setting.things)
    sentences = [rng.choice(_OPENERS).format(name=name, n=plot.start, things=things)]
    for sign, number in plot.steps:
        template = rng.choice(setting.gains if sign == "+" else setting.losses if sign == "-" else _SCALES[sign])
        sentences.append(template.format(they=they, n=number))
    if plot.bystander is not None:
        sentences.insert(1 + plot.bystander_at, rng.choice(_BYSTANDERS).format(n=plot.bystander))
    sentences.append(rng.choice(_CLOSERS).format(name=name, things=things))
    return " ".join(sentences)


_OPENERS = (
    "{name} has {n} {things}.",
    "{name} starts with {n} {things}.",
    "{name} owns {n} {things}.",
    "{name} counts {n} {things}.",
    "At first {name} has {n} {things}.",
    "There are {n} {things} with {name}.",
)
_CLOSERS = (
    "How many {things} now?",
    "How many in the end?",
    "How many has {name} now?",
    "What does {name} have now?",
    "How many {things} are there?",
    "How many now?",
)
_BYSTANDERS = (
    "It takes {n} minutes.",
    "A bus with {n} seats stops.",
    "The road is {n} miles long.",
    "A dog is {n} years old.",
    "It is {n} degrees outside.",
    "The next house is number {n}.",
)
_SCALES = {
    "*": ("Soon there are {n} times as many.", "{they} makes it {n} times as many.", "The number grows {n} times."),
    "/": ("Only one in {n} stays.", "{they} keeps one in {n}.", "Just one in {n} is good."),
}
_SETTINGS = (
    _Setting(
        ("apples", "pears", "plums", "lemons"),
        ("{they} picks {n} more.", "{they} finds {n} in the grass.", "A neighbour brings {n}.", "{n} more fall down."),
        ("{they} eats {n}.", "{n} go bad.", "A bird takes {n}.", "{they} cooks {n}."),
    ),
    _Setting(
        ("cakes", "pies", "rolls", "cookies"),
        ("{they} bakes {n} more.", "The oven gives {n} more.", "A friend brings {n}.", "{they} buys {n} more."),
        ("{they} sells {n}.", "{n} burn.", "Guests eat {n}.", "{they} drops {n}."),
    ),
    _Setting(
        ("coins", "notes", "stamps", "tickets"),
        ("{they} earns {n}.", "{they} wins {n} more.", "An aunt sends {n}.", "{they} gets {n} back."),
        ("{they} spends {n}.", "{they} loses {n}.", "{they} lends out {n}.", "{they} pays {n}."),
    ),
    _Setting(
        ("books", "pens", "maps", "cards"),
        ("{they} buys {n} more.", "{they} gets {n} new ones.", "The school adds {n}.", "{n} more come by post."),
        ("{they} gives away {n}.", "{they} sells {n}.", "A friend borrows {n}.", "{n} get wet."),
    ),
    _Setting(
        ("fish", "crabs", "shells", "stones"),
        ("{they} catches {n} more.", "{they} collects {n}.", "The tide brings {n}.", "{they} finds {n} more."),
        ("{they} throws back {n}.", "The sea takes {n}.", "{they} drops {n}.", "{they} gives away {n}."),
    ),
    _Setting(
        ("hens", "ducks", "goats", "sheep"),
        ("{n} more are born.", "{they} buys {n} more.", "{n} come home.", "A farmer brings {n}."),
        ("{n} run away.", "{they} sells {n}.", "A fox takes {n}.", "{n} get lost."),
    ),
    _Setting(
        ("roses", "seeds", "plants", "bulbs"),
        ("{they} plants {n} more.", "{they} adds {n}.", "{n} more come up.", "{they} grows {n} more."),
        ("{they} cuts {n}.", "{n} dry out.", "Snails eat {n}.", "{they} pulls out {n}."),
    ),
    _Setting(
        ("balls", "toys", "kites", "marbles"),
        ("{they} wins {n}.", "{they} finds {n}.", "A cousin gives {n}.", "{they} makes {n} more."),
        ("{they} loses {n}.", "{they} breaks {n}.", "{n} roll away.", "A brother takes {n}."),
    ),
)
# fmt: off
_WOMEN = (
    "Ada", "Amy", "Anna", "Cleo", "Dana", "Ella", "Emma", "Eva", "Ida", "Jane",
    "Kate", "Lena", "Lily", "Mia", "Nina", "Olga", "Rosa", "Sara", "Tina", "Zoe",
)
_MEN = (
    "Abe", "Adam", "Alan", "Ben", "Carl", "Dan", "Eli", "Finn", "Gus", "Hugo",
    "Ian", "Jack", "Leo", "Max", "Noah", "Omar", "Paul", "Sam", "Tom", "Will",
)
# fmt: on
_PEOPLE = (*((name, "She") for name in _WOMEN), *((name, "He") for name in _MEN))
