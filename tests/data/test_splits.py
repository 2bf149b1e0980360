"""Splits and orders: drawn from the text, never from a position."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from mathverify_sweep.data.rows import Row, groups
from mathverify_sweep.data.splits import SPLITS, by_column, by_question, fingerprint, keep, nested_order, question_order
from mathverify_sweep.errors import DataError
from mathverify_sweep.specs import DataSpec


def _rows(questions: int, each: int = 4) -> list[Row]:
    """Each question `each` times, every third row correct, in different spellings of the question."""
    return [
        Row(f"Question {q}{'?' * a}", str(a), f"because {q} {a}", (q + a) % 3 == 0)
        for q in range(questions)
        for a in range(each)
    ]


def test_a_question_never_sits_in_two_splits() -> None:
    splits = by_question(_rows(500), DataSpec(seed=3))
    questions = [set(groups(splits[name])) for name in SPLITS]
    assert sum(map(len, questions)) == len(set().union(*questions)) == 500


def test_the_shares_are_those_asked_for() -> None:
    splits = by_question(_rows(4000, 1), DataSpec(validation_share=0.2, test_share=0.1, gate_share=0.0))
    assert {name: round(len(splits[name]) / 4000, 1) for name in SPLITS} == {
        "train": 0.7,
        "validation": 0.2,
        "test": 0.1,
        "gate": 0.0,
    }


def test_shares_that_leave_nothing_to_train_on_are_refused() -> None:
    with pytest.raises(DataError, match="must add up to less than 1"):
        by_question(_rows(10), DataSpec(validation_share=0.4, test_share=0.4, gate_share=0.4))


def test_another_seed_gives_other_splits_and_more_rows_move_no_question() -> None:
    few, many = (by_question(_rows(n), DataSpec()) for n in (300, 600))
    assert set(few["validation"]) <= set(many["validation"])
    assert set(by_question(_rows(300), DataSpec(seed=1))["validation"]) != set(few["validation"])


def test_the_order_of_the_file_changes_nothing() -> None:
    rows = _rows(200)
    mixed = random.Random(0).sample(rows, len(rows))
    assert nested_order(mixed, 5, balance=True) == nested_order(rows, 5, balance=True)
    assert question_order(mixed, 5) == question_order(rows, 5)
    assert question_order(rows, 6) != question_order(rows, 5)


def test_with_balance_every_even_prefix_is_balanced_and_the_rest_is_counted() -> None:
    rows = _rows(300)
    train, dropped = nested_order(rows, 0, balance=True)
    assert all(sum(row.is_correct for row in train[:n]) == n // 2 for n in range(0, len(train) + 1, 2))
    assert len(train) + dropped == len(rows)
    assert dropped == sum(not row.is_correct for row in rows) - sum(row.is_correct for row in rows)
    assert 100 < sum(row.is_correct for row in train[::2]) < 300  # which class comes first in a pair tells nothing


def test_without_balance_a_prefix_is_a_sample_of_all_rows() -> None:
    rows = _rows(1000)
    train, dropped = nested_order(rows, 0, balance=False)
    assert dropped == 0
    assert sorted(train, key=str) == sorted(rows, key=str)
    assert 0.28 < sum(row.is_correct for row in train[:1000]) / 1000 < 0.39


def test_rows_of_a_question_stay_together_so_that_a_prefix_is_a_sample_of_questions() -> None:
    ordered = groups(question_order(_rows(100), 0))
    assert sum(a != b for a, b in pairwise(ordered)) == 99


def test_rows_are_kept_by_whole_questions_and_one_in_part() -> None:
    rows = question_order(_rows(50, 4), 0)
    kept = keep(rows, 42)
    sizes = [groups(kept).count(key) for key in dict.fromkeys(groups(kept))]
    assert sorted(sizes) == [2] + [4] * 10
    assert keep(rows, 42) == kept
    assert keep(rows, 200) == rows


def test_a_column_names_the_splits() -> None:
    rows = _rows(4, 1)
    splits = by_column(rows, list(SPLITS), "data.csv: column 'split'")
    assert [splits[name] for name in SPLITS] == [[row] for row in rows]


@pytest.mark.parametrize("value", ["dev", "Train", None, 1, ["train"]])
def test_an_unknown_split_is_an_error_with_its_row(value: object) -> None:
    with pytest.raises(DataError, match="column 'split', row 2: a split must be one of train, validation, test, gate"):
        by_column(_rows(2, 1), ["train", value], "data.csv: column 'split'")


def test_a_question_in_two_splits_is_an_error_that_names_it_and_both() -> None:
    rows = _rows(2, 2)
    with pytest.raises(DataError) as error:
        by_column(rows, ["train", "train", "test", "validation"], "data.csv: column 'split'")
    assert "'Question 1?' is in 'test' (row 3) and in 'validation' (row 4)" in str(error.value)


def test_the_fingerprint_is_the_same_on_every_machine() -> None:
    rows = [Row("Wie viele?", "7", "5 + 2 = 7", True), Row("q", "1", "…", False)]
    assert fingerprint([("train", rows), ("test", [])]) == (
        "4bebb6e2f1aca288b3645cf32fb70b24004a0b6288e49bc2a5da6282ba61c527"
    )


def test_the_fingerprint_sees_every_field_the_order_and_the_split() -> None:
    row, other = Row("ab", "c", "d", True), Row("q", "1", "s", False)
    variants = [
        [("train", [row, other])],
        [("train", [other, row])],
        [("test", [row, other])],
        [("train", [row]), ("test", [other])],
        [("train", [Row("a", "bc", "d", True), other])],
        [("train", [Row("ab", "c", "d", False), other])],
    ]
    assert len({fingerprint(variant) for variant in variants}) == len(variants)  # type: ignore[arg-type]
