"""A row as a prompt that ends where the verdict begins. Templates are named; a sweep file may add its own."""

from __future__ import annotations

import difflib
import string
from collections.abc import Mapping
from types import MappingProxyType

from mathverify_sweep.data.rows import Row
from mathverify_sweep.errors import ConfigError
from mathverify_sweep.specs import Task

VERDICTS = (" False", " True")
"""What follows a prompt, by `int(is_correct)`. Each is one token, its leading space included."""

PLACEHOLDERS = ("question", "solution", "answer")

_CASE = "Question: {question}\nSolution: {solution}\nAnswer: {answer}\n"

TEMPLATES: Mapping[str, str] = MappingProxyType(
    {
        "plain": _CASE + "Verdict:",
        "concise": "Is the answer right? Reply True or False.\n\n" + _CASE + "Right:",
        "role": (
            "You have marked school mathematics papers for twenty years and seldom miss a slip. "
            "Below is one pupil's work. Mark it True when the answer is right and False when it is not.\n\n"
            + _CASE
            + "Mark:"
        ),
        "stakes": (
            "Somebody will act on this answer without checking it again, so a wrong one that passes does real harm, "
            "and so does a right one that is thrown out. State True if the answer holds and False if it does not.\n\n"
            + _CASE
            + "Statement:"
        ),
        "reread": (
            "Question: {question}\nOnce more, slowly: {question}\n\nA solution was handed in:\n{solution}\n"
            "It arrives at: {answer}\n\nGoing back to what was asked, is this what the question wants? True or False:"
        ),
        "steps": (
            _CASE + "\nHow to check:\n1. List the given quantities and the one asked for.\n"
            "2. Decide which operations lead from the one to the other.\n"
            "3. Follow the solution line by line and redo every calculation.\n"
            "4. Compare the outcome with the answer, unit and sign included.\n"
            "True if all of it holds, otherwise False. Verdict:"
        ),
        "examiner": (
            "You are the last examiner to see this paper and your mark is final, so it has to be right.\n\n"
            + _CASE
            + "\nRead the question again, work out what it needs, go through the solution step by step, and compare "
            "the answer with what was asked. Do not trust a line because it sounds sure. Final mark (True or False):"
        ),
    }
)


SOLVING: Mapping[str, str] = MappingProxyType(
    {
        "plain": "Question: {question}\nSolution:",
        "steps": "Solve the problem step by step and end with the answer.\n\nQuestion: {question}\nSolution:",
    }
)
"""Templates of the task solving, behind which the solution is written."""


def built_in(task: Task) -> Mapping[str, str]:
    """The templates of a task."""
    return SOLVING if task == "solving" else TEMPLATES


def render(text: str, row: Row) -> str:
    """The prompt of a row by a template's text (one that `problems` finds nothing wrong with)."""
    return text.format(question=row.question, solution=row.solution, answer=row.answer)


def find(name: str, user_texts: Mapping[str, str], task: Task = "verification") -> str:
    """A template's text by its name, the user's own included; ConfigError when there is none or it is not usable."""
    known = {**built_in(task), **user_texts}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; the nearest is {near[0]!r}" if near else ""
        raise ConfigError("prompt_template", [f"no template {name!r}{hint}. Known: {', '.join(known)}"])
    found = problems(name, known[name], task) if name in user_texts else []
    if found:
        raise ConfigError("prompts", found)
    return known[name]


def problems(name: str, text: str, task: Task = "verification") -> list[str]:
    """All that is wrong with a user's template, one sentence each, its key first; empty when it can be used."""
    asked = PLACEHOLDERS[:1] if task == "solving" else PLACEHOLDERS
    found = [f"{name}: a built-in template has this name. Choose another"] if name in built_in(task) else []
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as error:
        return [*found, f"{name}: {error}. Write a brace that is text as {{{{ or }}}}"]
    fields = [(field, spec, conversion) for _, field, spec, conversion in parts if field is not None]
    names = [field for field, _, _ in fields]
    for field, spec, conversion in fields:
        if field not in asked or spec or conversion:
            shown = field + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
            found.append(f"{name}: a placeholder must be one of {_braced(asked)}, got {{{shown}}}")
    missing = [field for field in asked if field not in names]
    if missing:
        found.append(f"{name}: {_braced(missing)} must occur")
    if names.count("solution") > 1:
        found.append(f"{name}: {{solution}} must occur once, because a long one is cut; got {names.count('solution')}")
    if not parts or parts[-1][1] is not None or text != text.rstrip():
        found.append(f"{name}: must end in text without a space after it, such as `Verdict:`; got {text[-20:]!r}")
    return found


def _braced(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in names)
