"""What a check found, and how checks run: all at once, each with its own time; one that hangs costs its line only."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from mathverify_sweep.errors import MvsweepError
from mathverify_sweep.specs import Frozen


class Level(StrEnum):
    """`warning`: it works, and somebody should know. `problem`: it does not work."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


class Finding(Frozen):
    """One line: what was looked at, how it is, what was found, and what to do about it."""

    about: str
    level: Level
    found: str
    fix: str = ""


@dataclass(frozen=True)
class Check:
    """Something to look at. `about` names it when it does not answer within `seconds`."""

    about: str
    look: Callable[[], Iterable[Finding]]
    seconds: float
    on_silence: str


def ok(about: str, found: str) -> Finding:
    """It works."""
    return Finding(about=about, level=Level.OK, found=found)


def warning(about: str, found: str, fix: str) -> Finding:
    """It works, and somebody should know."""
    return Finding(about=about, level=Level.WARNING, found=found, fix=fix)


def problem(about: str, found: str, fix: str) -> Finding:
    """It does not work."""
    return Finding(about=about, level=Level.PROBLEM, found=found, fix=fix)


def examine(checks: Sequence[Check]) -> list[Finding]:
    """The findings of all checks, in the order of the checks. Takes as long as the longest of them is given."""
    started = time.monotonic()
    answers: list[list[Finding] | None] = [None] * len(checks)

    def answer(number: int) -> None:
        answers[number] = _answer(checks[number])

    # Daemons: a thread that waits for a dead server or driver cannot be ended, and must not keep the process.
    threads = [threading.Thread(target=answer, args=(number,), daemon=True) for number in range(len(checks))]
    for thread in threads:
        thread.start()
    for thread, check in zip(threads, checks, strict=True):
        thread.join(max(0.0, started + check.seconds - time.monotonic()))
    found: list[Finding] = []
    for check, answered in zip(checks, answers, strict=True):
        silent = problem(check.about, f"no answer within {check.seconds:g} s", check.on_silence)
        found += [silent] if answered is None else answered
    return found


def _answer(check: Check) -> list[Finding]:
    try:
        return list(check.look())
    except MvsweepError as error:
        return [problem(check.about, " ".join(str(error).split()), "")]
    except Exception as error:  # noqa: BLE001 - a check that breaks is a finding like any other, and costs its own line
        return [problem(check.about, f"the check broke: {type(error).__name__}: {error}", "Report it")]
