"""The messages that README.md and docs/operations.md explain are messages that the package prints.

The first column of a table that opens with `you see` has them in backticks. What varies is written as …, a number, a
name in <brackets>, or an example of a file or fingerprint; the rest must stand, in this order, in a source text.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from mathverify_sweep.states import EndReason, RunState

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "docs" / "operations.md"]
VARIES = re.compile(r"…|<[^>]+>|\b[0-9a-f]*\d[0-9a-f]*\b|\b\d[\d.,]*\b|[\w./-]+\.(?:yaml|jsonl|sqlite3|log)\b")
PLACE = "\0"
STATES = {word.replace("_", " ").lower() for word in (*EndReason, *RunState)}


def explained(document: Path) -> Iterator[str]:
    """The messages in the first columns of its tables."""
    in_table = False
    for line in document.read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            in_table = False
        elif line.startswith("| you see |"):
            in_table = True
        elif in_table:
            yield from re.findall(r"`([^`]+)`", line.split("|")[1])


MESSAGES = [(path.name, message) for path in DOCUMENTS if path.exists() for message in explained(path)]


def warnings_and_errors() -> Iterator[tuple[str, str]]:
    """Every text that the package logs as a warning or an error, with its file."""
    for path in sorted((ROOT / "mathverify_sweep").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("warning", "error")
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "log"
                and isinstance(node.args[0], ast.Constant)
                and re.search("[A-Za-z]{3}", re.sub(r"%\.?\d*[sdgf]", "", str(node.args[0].value)))
            ):
                yield path.name, _with_places(str(node.args[0].value))


@cache
def texts() -> tuple[str, ...]:
    """Every text in the package's source, with one mark for each part that varies."""
    found: list[str] = []
    for path in sorted((ROOT / "mathverify_sweep").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (str(part.value) if isinstance(part, ast.Constant) else PLACE for part in node.values)
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(_with_places(node.value))
    return tuple(" ".join(text.split()) for text in found)


def _with_places(text: str) -> str:
    return " ".join(re.sub(r"%[.\d]*[sdgfr]", PLACE, text).split())


def pattern_of(message: str) -> re.Pattern[str] | None:
    """What stands in a message, whatever varies; None when nothing does."""
    fragments = [part for part in VARIES.split(message) if part.strip(" .,:()'\"")]
    return re.compile(".*".join(re.escape(part.strip()) for part in fragments), flags=re.DOTALL) if fragments else None


def is_printed(message: str) -> bool:
    if re.sub(r", try \d+$", "", message) in STATES:
        return True
    pattern = pattern_of(message)
    return pattern is not None and any(pattern.search(text) for text in texts())


@pytest.mark.parametrize(("document", "message"), MESSAGES)
def test_a_message_that_is_explained_is_one_that_is_printed(document: str, message: str) -> None:
    # What one message says of another is found in two texts: `study x stopped: 3 trials crashed alike: …`.
    parts = [message] if is_printed(message) else message.split(": ", 1)
    assert all(is_printed(part) for part in parts), f"{document}: nothing in the source prints this"


@pytest.mark.parametrize(("file", "text"), sorted(set(warnings_and_errors())))
def test_every_warning_and_error_of_the_log_is_explained(file: str, text: str) -> None:
    whole = [message.split(": 3 trials")[0] for document, message in MESSAGES if document == "operations.md"]
    patterns = [pattern for message in whole if (pattern := pattern_of(message)) is not None]
    assert any(pattern.search(text) for pattern in patterns), f"{file} logs it, and docs/operations.md does not say why"


def test_a_message_that_nothing_prints_is_found_out() -> None:
    assert not is_printed("the study was created on a Tuesday, this machine reads 3c4d…")
    assert is_printed("study … exists with another configuration (differs in …)")


def test_both_documents_explain_messages() -> None:
    assert {document for document, _ in MESSAGES} == {path.name for path in DOCUMENTS}
