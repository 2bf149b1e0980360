"""Claims about rows that are solved: where an answer is found, and when a text arrives at it."""

from __future__ import annotations

import pytest

from mathverify_sweep.data import dataset
from mathverify_sweep.data.rows import Row, Table
from mathverify_sweep.data.solving import final_number, is_same, majority, solved_rows_of, written
from mathverify_sweep.specs import ColumnsSpec, DataSpec

GSM8K = Table(
    "gsm8k",
    {
        "question": ["Clips?", "Pay?", "Why?"],
        "answer": ["48 / 2 = <<48/2=24>>24 clips.\n#### 24", "He gets $1,200.50 in all.", "Because it is so."],
    },
)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She has 3 + 4 = 7 left.\n#### 7", "7"),
        ("#### 1,234 dollars, not 9", "1234"),
        ("so she pays $12.50.", "12.50"),
        ("it is 3-2", "2"),
        ("the rest is -4", "-4"),
        ("that is 5 - 2", "2"),
        ("none", None),
        ("she ate 3/4", "3/4"),
        ("48/2 = 24", "24"),
        (r"so \boxed{-5}.", "-5"),
        ("it is $-5", "-5"),
        ("it is -$5", "-5"),
        (r"that costs \$1,200", "1200"),
        ("it is \N{MINUS SIGN}5 degrees", "-5"),
        ("**24**", "24"),
        ("#### -7", "-7"),
        ("#### Step 1: add 3 + 4 = 7\n#### Step 2", "7"),
        ("#### Step 1", None),
        ("#### Step 1\nThat is 8.\n#### 9\n#### Step 2\nThat is 10.", "9"),
        ("Answer:24", "24"),
        ("24: that is it", "24"),
    ],
)
def test_the_final_number_is_behind_the_mark_or_the_last_one(text: str, number: str | None) -> None:
    assert final_number(text) == number


@pytest.mark.parametrize(
    "text",
    [
        "10^3",
        "10^{-3}",
        "2^{10}",
        "3^x",
        "1e5",
        "at 5:30",
        "3 1/2",
        "20km",
        "the 5th",
        "x2",
        "7/10/2024",
        "3/0",
        "#### 10^3",
    ],
)
def test_a_number_that_is_a_part_of_something_else_is_no_final_number(text: str) -> None:
    assert final_number(text) is None


def test_numbers_are_compared_as_numbers() -> None:
    assert is_same("3/4", "0.75")
    assert is_same("-6/3", "-2")
    assert is_same(final_number("that makes $1,200.0"), "1200")
    assert not is_same(final_number("that makes 1201"), "1200")
    assert not is_same(final_number("that makes nothing"), "1200")


def test_a_vote_counts_numbers_and_not_their_spelling() -> None:
    assert majority(["5", "7.0", None, "7"]) == "7.0"
    assert majority(["5", "7"]) == "5", "of equals the first"
    assert majority([None, None]) is None
    assert majority(["1", "1/2", "0.5"]) == "1/2"


def test_a_table_like_gsm8k_gives_rows_without_marks_that_end_in_their_answer() -> None:
    rows, without = solved_rows_of(GSM8K, ColumnsSpec())
    assert without == 1
    assert rows == [
        Row("Clips?", "24", "48 / 2 = 24 clips.", is_correct=True),
        Row("Pay?", "1200.50", "He gets $1,200.50 in all.", is_correct=True),
    ]
    assert written(rows[0]) == " 48 / 2 = 24 clips.\n#### 24"


def test_rows_whose_answer_is_no_plain_number_are_left_out_and_counted() -> None:
    answers = ["It is 10^3.", "At 5:30.", "Half: 1/2.", "She adds.\n#### Step 2\nSo 4."]
    rows, without = solved_rows_of(Table("t", {"question": ["a", "b", "c", "d"], "answer": answers}), ColumnsSpec())
    assert without == 2
    assert [row.answer for row in rows] == ["1/2", "4"]
    assert rows[1].solution == answers[3], "a heading is no end"


def test_of_labelled_rows_the_correct_ones_are_learnt_from() -> None:
    spec = DataSpec(generated_rows=300)
    judged, solved = dataset.load(spec), dataset.load(spec.model_copy(update={"task": "solving"}))
    assert all(row.is_correct for row in (*solved.train, *solved.validation))
    assert set(solved.train) <= {row for name in ("train", "validation", "test", "gate") for row in judged.split(name)}
    assert solved.fingerprint != judged.fingerprint
