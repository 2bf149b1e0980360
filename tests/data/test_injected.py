"""Errors in worked solutions: one place is wrong, everything after follows from it, nothing else has changed."""

from __future__ import annotations

import ast
import json
import random
import re
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from mathverify_sweep.data import worked as w
from mathverify_sweep.data.baselines import bag_of_words
from mathverify_sweep.data.injected import REASONING, SLIP, build, inject, read_worked
from mathverify_sweep.data.worked import Unclear, Worked, evaluate, parse, shown
from mathverify_sweep.errors import DataError

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k" / "train.jsonl"
needs_gsm8k = pytest.mark.skipif(not GSM8K.exists(), reason=f"GSM8K is not at {GSM8K}")

QUESTION = "A shop sells 38 red and 17 blue pens a day, each for $3. How much does it take in 9 days?"
ANSWER = (
    "It sells 38 + 17 = <<38+17=55>>55 pens a day.\n"
    "They bring 55 x 3 = $<<55*3=165>>165 a day.\n"
    "In all it takes 165 * 9 = $<<165*9=1485>>1,485.\n#### 1,485"
)
_EQUATION = re.compile(r"((?:\(?[\d.]+\)?[-+*/])+\(?[\d.]+\)?)=([\d.]+)")


def _pens() -> Worked:
    found = parse(QUESTION, ANSWER)
    assert found is not None
    return found


def _printed_equations(text: str) -> list[bool]:
    """Independent of the code under test: every `a op b = c` of a text, and whether it is true."""
    plain = re.sub(r"[$,]", "", text).replace(" x ", "*").replace("x", "*")
    plain = re.sub(r" ?([-+*/=]) ?", r"\1", plain)
    found = []
    for left, right in _EQUATION.findall(plain):
        try:
            tree = ast.parse(re.sub(r"\b0+(?=\d)", "", left), mode="eval")
            value = eval(compile(tree, "", "eval"), {"__builtins__": {}})
        except (SyntaxError, ZeroDivisionError):
            continue
        found.append(abs(value - float(right.rstrip("."))) < 0.006)
    return found


def test_a_solution_is_parsed_and_shown_without_its_marks() -> None:
    pens = _pens()
    assert [mark.result for mark in pens.marks] == [55, 165, 1485]
    assert pens.answer == "1,485"
    assert pens.solution == re.sub("<<.*?>>", "", ANSWER).removesuffix("\n#### 1,485")


@pytest.mark.parametrize("answer", ["7 + 1 = <<7+1=8>>8", "no sum\n#### 8", "7 + 1 = <<7+1=8>>8\n#### 9", "", "#### x"])
def test_a_solution_of_another_form_is_left_out(answer: str) -> None:
    assert parse("q", answer) is None


def test_a_calculation_without_a_mark_is_seen_too() -> None:
    found = parse("q", "First 7 + 8 = 15.\nThen 15 – 6 = <<15-6=9>>9.\n#### 9")
    assert found is not None
    assert [mark.expression for mark in found.marks] == ["7+8", "15-6"]


def test_every_kind_of_error_is_carried_through() -> None:
    seen = {}
    for seed in range(200):
        injected = inject(_pens(), random.Random(seed))
        assert injected is not None
        changed = injected.worked
        assert changed.answer != "1,485"
        assert w.number_of(changed.answer) == changed.marks[-1].result
        assert f"= ${changed.answer}." in changed.solution
        wrong = [step for step, mark in enumerate(changed.marks) if evaluate(mark.expression) != mark.result]
        assert wrong == ([injected.step] if injected.kind == SLIP else [])
        seen.setdefault((injected.kind, injected.step), changed.solution)
    assert {kind for kind, _ in seen} == {SLIP, *REASONING}
    assert {step for _, step in seen} == {0, 1, 2}


def test_a_step_that_is_left_out_takes_its_line_along() -> None:
    for seed in range(300):
        injected = inject(_pens(), random.Random(seed))
        if injected is not None and (injected.kind, injected.step) == ("left_out", 1):
            assert injected.worked.solution in (
                "It sells 38 + 17 = 55 pens a day.\nIn all it takes 55 * 9 = $495.",
                "It sells 38 + 17 = 55 pens a day.\nIn all it takes 3 * 9 = $27.",
            )
            return
    raise AssertionError("no step was left out")


def test_a_result_that_is_told_before_its_calculation_changes_too() -> None:
    found = parse("She has 88 pens and gives 21 away.", "She keeps 67 pens because 88 - 21 = <<88-21=67>>67\n#### 67")
    assert found is not None
    for seed in range(20):
        injected = inject(found, random.Random(seed))
        assert injected is not None
        assert not re.search(r"\b67\b", injected.worked.solution)


def test_where_a_number_comes_from_is_never_guessed() -> None:
    # 38 is given and also the first result, so nobody can say which one the second step uses.
    found = parse("Of 76 pens half are red. 38 are blue.", "76/2=<<76/2=38>>38\n38+5=<<38+5=43>>43\n#### 43")
    assert found is not None
    for seed in range(50):
        injected = inject(found, random.Random(seed))
        assert injected is not None
        assert injected.step == 1


@pytest.mark.parametrize(
    ("expression", "value"),
    [("48 / 2", 24), ("$1,200 x 3", 3600), ("50% * 8", 4), ("(7–2)×3", 15), (".5*09", Fraction(9, 2)), ("-5+8", 3)],
)
def test_printed_arithmetic_is_evaluated(expression: str, value: int) -> None:
    assert evaluate(expression) == value


@pytest.mark.parametrize("expression", ["1/0", "2**9", "x+1", "", "__import__('os')", "1 if 2 else 3", "5 5"])
def test_anything_else_is_not_evaluated(expression: str) -> None:
    with pytest.raises(Unclear):
        evaluate(expression)


def test_a_number_is_shown_in_the_manner_of_the_one_it_replaces() -> None:
    assert shown(Fraction(1234), "9,876") == "1,234"
    assert shown(Fraction(1234), "76") == "1234"
    assert shown(Fraction(5, 2), "7.25") == "2.50"
    assert shown(Fraction(3), "7.25") == "3"


def test_shares_out_of_range_and_files_without_worked_solutions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="wrong_share must lie between 0 and 1"):
        build([_pens()], 0, wrong_share=1.0)
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "q", "answer": "8"}))
    with pytest.raises(DataError, match="must hold marks"):
        read_worked(str(path))


@cache
def _sample() -> list[Worked]:
    return read_worked(str(GSM8K))[:800]


@needs_gsm8k
def test_nine_of_ten_gsm8k_questions_are_usable_and_the_shares_are_those_asked_for() -> None:
    lines = GSM8K.read_text(encoding="utf-8").splitlines()
    rows = build(_sample(), seed=0)
    parsed = len(_sample()) / (len(read_worked(str(GSM8K))) / len(lines))  # lines that gave these solutions
    assert len(rows) / parsed >= 0.9
    assert sum(row.is_correct for row in rows) == len(rows) - round(0.6 * len(rows))
    assert len({row.question for row in rows}) == len(rows)


@needs_gsm8k
def test_the_same_seed_builds_the_same_rows() -> None:
    few = _sample()[:100]
    assert build(few, 1) == build(few, 1) != build(few, 2)


@needs_gsm8k
def test_correct_rows_are_the_given_solutions_without_marks() -> None:
    given = {item["question"]: item["answer"] for item in map(json.loads, GSM8K.read_text("utf-8").splitlines())}
    for row in build(_sample(), seed=0):
        if row.is_correct:
            solution, _, answer = re.sub("<<[^<>]*>>", "", given[row.question]).rpartition("####")
            assert (row.solution, row.answer) == (solution.strip(), answer.strip())


@needs_gsm8k
def test_every_wrong_row_is_wrong_in_one_place_and_consistent_after_it() -> None:
    kinds = []
    for number, worked in enumerate(_sample()):
        injected = inject(worked, random.Random(number))
        if injected is None:
            continue
        changed = injected.worked
        kinds.append(injected.kind)
        assert w.number_of(changed.answer) == changed.marks[-1].result != worked.marks[-1].result
        assert "<<" not in changed.solution
        before = _printed_equations(worked.solution).count(False)
        assert _printed_equations(changed.solution).count(False) - before <= (injected.kind == SLIP), changed.solution
        assert changed.texts[0][:5] == worked.texts[0][:5] or injected.step == 0
    assert {kinds.count(kind) > 30 for kind in (SLIP, *REASONING)} == {True}


@needs_gsm8k
def test_words_alone_do_not_give_the_errors_away() -> None:
    """Right and wrong rows differ by sums, not by words, so a bag of words is no better than the majority's 0.60.

    The standard error of an accuracy of 0.6 on 1,000 rows is 1.5 points; the bound is three of them above. (The whole
    set was built once with a seed of 0: 0.55 on 1,500 held-out rows, where the majority scored 0.59.)
    """
    rows = build(read_worked(str(GSM8K))[:2500], seed=0)
    test, train = rows[:1000], rows[1000:]
    accuracy = np.mean((bag_of_words(train, test) >= 0) == [row.is_correct for row in test])
    assert accuracy < 0.645
