"""Values become rows, or one error says all that is wrong with them."""

from __future__ import annotations

import pytest

from mathverify_sweep.data.rows import Row, Table, question_key, rows_of
from mathverify_sweep.errors import DataError
from mathverify_sweep.specs import ColumnsSpec

GOOD: dict[str, list[object]] = {
    "question": ["How many?", "How much?", "How far?"],
    "answer": ["1", "2", "3"],
    "solution": ["one", "two", "three"],
    "is_correct": [True, False, True],
}


def _rows(columns: ColumnsSpec | None = None, **values: list[object]) -> list[Row]:
    return rows_of(Table("data.csv", GOOD | values), columns or ColumnsSpec())


def _error(columns: ColumnsSpec | None = None, **values: list[object]) -> str:
    with pytest.raises(DataError) as error:
        _rows(columns, **values)
    return str(error.value)


@pytest.mark.parametrize(
    "labels",
    [
        [True, False, True],
        ["True", "False", "True"],
        ["true", "false", "true"],
        ["1", "0", "1"],
        ["yes", "no", "yes"],
        [1, 0, 1],
        [1.0, 0.0, 1.0],
        ["yes", 0, True],
    ],
)
def test_labels_are_read_in_every_usual_spelling(labels: list[object]) -> None:
    assert [row.is_correct for row in _rows(is_correct=labels)] == [True, False, True]


@pytest.mark.parametrize("label", ["maybe", "TRUE", "", " True", "y", 2, -1, 0.5, float("nan"), [True], b"1"])
def test_any_other_label_is_an_error_with_its_row(label: object) -> None:
    message = _error(is_correct=[True, False, label])
    assert message.startswith(
        "data.csv: column 'is_correct', row 3: a label must be True/False, true/false, 1/0 or yes/no"
    )


def test_null_labels_and_null_texts_are_named_as_such() -> None:
    assert "column 'is_correct', row 2: a label must not be null" in _error(is_correct=[True, None, True])
    assert "column 'solution', row 1: text must not be null" in _error(solution=[None, "two", "three"])


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "text must not be empty"),
        (" \n\t", "text must not be empty"),
        ("a\0b", "text must not hold a NUL byte"),
        ("a\ud800", "text must be valid unicode"),
        (7, "this must be text"),
        (["a"], "this must be text"),
    ],
)
def test_text_that_is_none_is_an_error_with_its_row(text: object, rule: str) -> None:
    assert f"data.csv: column 'question', row 2: {rule}" in _error(question=["a", text, "b"])


def test_one_error_names_everything_with_the_first_row_and_the_number_of_further_ones() -> None:
    message = _error(question=["", "b", ""], is_correct=["maybe", None, "perhaps"])
    assert "column 'question', row 1: text must not be empty, got '' (and 1 more)" in message
    assert "column 'is_correct', row 1: a label must be" in message
    assert "got 'maybe' (and 1 more)" in message
    assert "column 'is_correct', row 2: a label must not be null, got None" in message
    assert "\n" not in message


def test_a_missing_column_names_the_nearest_and_the_option_that_maps_it() -> None:
    columns = dict(GOOD)
    columns["Is_Correct"] = columns.pop("is_correct")
    with pytest.raises(DataError) as error:
        rows_of(Table("data.csv", columns), ColumnsSpec())
    assert str(error.value) == (
        "data.csv: no column 'is_correct' (the nearest is 'Is_Correct'); set data.columns.is_correct to the column "
        "that holds it. Columns there: question, answer, solution, Is_Correct"
    )


def test_columns_can_be_mapped() -> None:
    columns = {"frage": GOOD["question"], "answer": [1, 2, 3], "solution": GOOD["solution"], "ok": ["1", "0", "1"]}
    rows = rows_of(Table("data.csv", columns), ColumnsSpec(question="frage", is_correct="ok"))
    assert rows[0] == Row("How many?", "1", "one", True)


def test_answers_may_be_numbers() -> None:
    assert [row.answer for row in _rows(answer=[21, 2.5, 3.0])] == ["21", "2.5", "3"]
    assert "column 'answer', row 2" in _error(answer=[1, True, 3])
    assert "column 'answer', row 2" in _error(answer=[1, float("nan"), 3])


def test_a_wrong_solution_may_break_off_before_its_answer_but_a_right_one_may_not() -> None:
    assert _rows(answer=["1", " ", "3"])[1].answer == ""
    assert "column 'answer', row 3: an answer that is labelled correct must not be empty" in _error(
        answer=["1", "2", ""]
    )


def test_a_question_is_the_same_whatever_its_case_and_punctuation() -> None:
    assert question_key("  How MANY, in all?\n") == question_key("how many in all") == "how many in all"


def test_questions_in_another_script_stay_apart() -> None:
    assert question_key("小明有3个苹果") != question_key("小红有3本书")
