"""The generated stories: the same every time, labelled truthfully, and unreadable to whoever does not do the sums."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence

import pytest
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression

from mathverify_sweep.data.rows import Row
from mathverify_sweep.data.synthetic import LARGEST, SMALLEST, generate

Equation = tuple[int, str, int, int]

BYSTANDER = re.compile(r"minutes|bus|miles|years|degrees|house")
LOSS = re.compile(
    r"eats?\b|bad\.|takes|cooks|sells|burn|drops|spends|loses|lends|pays|away|borrows|wet|back \d|lost|cuts|dry|pulls"
    r"|breaks"
)
WORDS_AND_NUMBERS = r"\d+|\w+|[^\w\s]"
WORDS_AND_DIGITS = r"\d|[^\W\d]+|[^\w\s]"


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return generate(11_000, seed=7)


def test_the_same_seed_tells_the_same_stories_and_another_seed_others(rows: list[Row]) -> None:
    assert generate(500, seed=7) == rows[:500]
    assert not {row.question for row in generate(500, seed=8)} & {row.question for row in rows[:500]}


def test_no_story_is_told_twice(rows: list[Row]) -> None:
    assert len({row.question for row in rows}) == len(rows)


def test_three_rows_of_five_are_incorrect(rows: list[Row]) -> None:
    assert sum(not row.is_correct for row in rows) == len(rows) * 3 // 5


def test_a_row_is_called_correct_exactly_when_its_solution_is_what_the_story_asks_for(rows: list[Row]) -> None:
    for row in rows:
        expected = solved(row.question)
        assert row.is_correct == (equations_of(row.solution) == expected), row
        assert row.is_correct == (row.answer == str(expected[-1][3])), row


def test_a_solution_arrives_at_its_answer(rows: list[Row]) -> None:
    for row in rows:
        assert row.solution.endswith(f" = {row.answer}."), row


def test_a_wrong_solution_errs_once_in_a_sum_or_in_the_reasoning(rows: list[Row]) -> None:
    wrong_sums = Counter(sum(map(miscalculated, equations_of(row.solution))) for row in rows if not row.is_correct)
    assert wrong_sums.keys() == {0, 1}
    assert min(wrong_sums.values()) > 0.2 * wrong_sums.total()


def test_all_numbers_stay_in_range(rows: list[Row]) -> None:
    numbers = {int(number) for row in rows for number in re.findall(r"\d+", f"{row.question} {row.solution}")}
    assert numbers <= set(range(SMALLEST, LARGEST + 1))


@pytest.mark.parametrize("tokens", [WORDS_AND_NUMBERS, WORDS_AND_DIGITS])
def test_a_bag_of_words_cannot_tell_right_from_wrong(rows: list[Row], tokens: str) -> None:
    counted = HashingVectorizer(ngram_range=(1, 2), token_pattern=tokens, lowercase=False, n_features=2**16)
    texts = counted.transform([f"{row.question} {row.solution} {row.answer}" for row in rows])
    labels = [row.is_correct for row in rows]
    reader = LogisticRegression(solver="liblinear").fit(texts[:10_000], labels[:10_000])
    assert reader.score(texts[10_000:], labels[10_000:]) < 0.62


def test_it_needs_no_torch() -> None:
    code = "import sys, mathverify_sweep.data.synthetic; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def solved(question: str) -> list[Equation]:
    """The story's sums, by reading its sentences with other rules than those that wrote them."""
    opener, *sentences, _ = re.split(r"(?<=[.?]) ", question)
    value = number_in(opener)
    equations: list[Equation] = []
    for sentence in sentences:
        if not BYSTANDER.search(sentence):
            number = number_in(sentence)
            sign = sign_of(sentence)
            equations.append((value, sign, number, calculated(value, sign, number)))
            value = equations[-1][3]
    return equations


def number_in(sentence: str) -> int:
    (number,) = re.findall(r"\d+", sentence)
    return int(number)


def sign_of(sentence: str) -> str:
    if "times" in sentence:
        return "*"
    if "one in" in sentence:
        return "/"
    return "-" if LOSS.search(sentence) else "+"


def calculated(left: int, sign: str, number: int) -> int:
    return {"+": left + number, "-": left - number, "*": left * number, "/": left // number}[sign]


def equations_of(solution: str) -> list[Equation]:
    found: Sequence[tuple[str, ...]] = re.findall(r"(\d+) (.) (\d+) = (\d+)\.", solution)
    return [(int(left), sign, int(number), int(result)) for left, sign, number, result in found]


def miscalculated(equation: Equation) -> bool:
    left, sign, number, result = equation
    return calculated(left, sign, number) != result or (sign == "/" and left % number != 0)
