"""Templates say everything about a row and end where the verdict begins."""

from __future__ import annotations

import pytest

from mathverify_sweep.data.prompts import TEMPLATES, VERDICTS, find, problems, render
from mathverify_sweep.data.rows import Row
from mathverify_sweep.errors import ConfigError

ROW = Row("What is {x}?", "{answer} 4", "2 + {question} = 4 {}", True)


def test_plain_is_exactly_this() -> None:
    assert TEMPLATES["plain"] == "Question: {question}\nSolution: {solution}\nAnswer: {answer}\nVerdict:"
    assert VERDICTS == (" False", " True")


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_shows_the_row_whole_and_ends_before_the_verdict(name: str) -> None:
    prompt = render(find(name, {}), ROW)
    assert all(text in prompt for text in (ROW.question, ROW.answer, ROW.solution))
    assert prompt.endswith(":")
    assert not [p for p in problems("mine", TEMPLATES[name]) if "mine" in p]


def test_there_are_templates_to_choose_from() -> None:
    assert len(TEMPLATES) >= 6
    assert len(set(TEMPLATES.values())) == len(TEMPLATES)


def test_a_users_template_is_found_and_may_hold_braces() -> None:
    text = "{{json}} {question} {solution} {answer} ->"
    assert render(find("mine", {"mine": text}), ROW).startswith("{json} What is {x}?")


def test_an_unknown_template_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no template 'plane'; the nearest is 'plain'\. Known: plain, "):
        find("plane", {})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{question} {solution}:", "{answer} must occur"),
        ("{question} {solution} {answer} {label}:", "must be one of {question}, {solution}, {answer}, got {label}"),
        ("{question} {solution} {answer!r}:", "got {answer!r}"),
        ("{question:>9} {solution} {answer}:", "got {question:>9}"),
        ("{question.x} {question} {solution} {answer}:", "got {question.x}"),
        ("{} {question} {solution} {answer}:", "got {}"),
        ("{question} {solution} {answer}: ", "must end in text without a space after it"),
        ("{question} {solution} {answer}", "must end in text"),
        ("{question} {solution} {solution} {answer}:", "{solution} must occur once"),
        ("{question} {solution} {answer} }:", "Write a brace that is text as {{ or }}"),
        ("", "{question}, {solution}, {answer} must occur"),
    ],
)
def test_a_users_template_that_cannot_work_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        find("mine", {"mine": text})
    assert any(found.startswith("mine: ") and problem in found for found in error.value.problems)


def test_all_problems_of_a_template_come_at_once() -> None:
    assert len(problems("plain", "{nothing} {question} ")) == 4
