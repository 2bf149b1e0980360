"""Whose fault is it: the parameters', the code's, or a GPU's? Read from how runs have ended; nothing is written.

A crash that three trials share on more than one GPU is the code's, and ends the study before the next five hundred. A
GPU on which three trials failed since the last one that got anywhere is suspect, and gets no more until a person has
looked: whatever the failures were, and however the other GPUs do, for a GPU may be the first of several to go.
"""

from __future__ import annotations

import hashlib
import re

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from mathverify_sweep.specs import RunResult
from mathverify_sweep.states import EndReason
from mathverify_sweep.store.database import reading
from mathverify_sweep.store.tables import runs

SAME_CRASHES = 3
"""Trials that crash alike before it counts as the code's fault."""
FAILURES_OF_A_GPU = 3
"""Different trials that fail on a GPU, with none that gets anywhere in between, before it is quarantined."""

_A_GPUS_FAULT = (EndReason.CRASHED, EndReason.HUNG)
# GPU memory that runs out is the parameters' or a neighbour's doing and is tried again with less; whoever kills (the
# host out of memory, a person, a scheduler) and a lease that expires say nothing of the GPU: these count neither way.
_GOT_SOMEWHERE = (EndReason.FINISHED, EndReason.PRUNED, EndReason.DIVERGED)
_LOOK_BACK = 50
"""Ended runs of a GPU that are read: more attempts than three trials can have."""

_TRACEBACK = "Traceback (most recent call last):"
_FRAME = re.compile(r'File "(?:[^"\n]*[/\\])?([^"/\\\n]+[/\\][^"/\\\n]+|[^"/\\\n]+)", line \d+, in (\S+)')
_ERROR = re.compile(r"^[^\S\n|]*\|?[^\S\n]*([A-Za-z_][\w.]*)(?::|$)", re.MULTILINE)
_CHANGING = re.compile(r"0x[0-9a-fA-F]+|(?:[A-Za-z]:)?(?:[/\\][\w.@+-]+)+|'[^'\n]*'|\"[^\"\n]*\"|\d+(?:[.,]\d+)*")


def fingerprint(message: str) -> str:
    """The same for two crashes at the same place, on whatever machine.

    Of a traceback, the last one of a chain: the kind of error, and each frame's file (with its folder) and function. Of
    other text: the text. Numbers, addresses, paths and quoted names are left out, so are line numbers.
    """
    _, _, last = message.rpartition(_TRACEBACK)
    frames = list(_FRAME.finditer(last))
    if not frames:
        return _digest(_CHANGING.sub("#", message.strip()))
    places = [f"{frame[1]}:{frame[2]}".replace("\\", "/") for frame in frames]
    after = last[frames[-1].end() :].partition("\n")[2]  # without the rest of the frame's own line
    lines = [line for line in after.splitlines() if not line.startswith("    ")]  # the source, and what points at it
    kind = _ERROR.search("\n".join(lines))
    return _digest("\n".join([*places, kind[1] if kind else ""]))


def repeated_crash(engine: Engine, study_name: str, message: str) -> str | None:
    """Why the study is to be stopped after a crash with this message: three trials crashed so, on two GPUs or on the
    only one that worked on it.

    A study that a person has resumed is stopped again by the next crash of that kind.
    """
    crashed = sa.select(runs.c.trial_number, runs.c.host, runs.c.gpu, runs.c.result).where(
        runs.c.study_name == study_name, runs.c.end_reason == EndReason.CRASHED, runs.c.started_at.is_not(None)
    )
    devices = sa.select(runs.c.host, runs.c.gpu).where(runs.c.study_name == study_name, runs.c.gpu.is_not(None))
    with reading(engine) as connection:
        rows = connection.execute(crashed.order_by(runs.c.position)).all()
        if len({row.trial_number for row in rows}) < SAME_CRASHES:
            return None
        only_one = len(connection.execute(devices.distinct()).all()) == 1
    kind = fingerprint(message)
    alike = [(trial, host, gpu) for trial, host, gpu, result in rows if fingerprint(_message(result)) == kind]
    trials, gpus = {trial for trial, *_ in alike}, {(host, gpu) for _, host, gpu in alike}
    if len(trials) >= SAME_CRASHES and (only_one or len(gpus) > 1):
        return f"{len(trials)} trials crashed alike: {_last_line(message)}"
    return None


def is_quarantined(engine: Engine, study_name: str, host: str, gpu: str) -> str | None:
    """Why a GPU is not to be given runs: three different trials failed on it since the last that got anywhere."""
    query = (
        sa.select(runs.c.trial_number, runs.c.end_reason, runs.c.result)
        .where(runs.c.study_name == study_name, runs.c.host == host, runs.c.gpu == gpu)
        .where(runs.c.started_at.is_not(None), runs.c.end_reason.in_([*_A_GPUS_FAULT, *_GOT_SOMEWHERE]))
        .order_by(runs.c.ended_at.desc(), runs.c.position.desc())
        .limit(_LOOK_BACK)
    )
    with reading(engine) as connection:
        newest_first = connection.execute(query).all()
    failed: dict[int, str] = {}
    for trial, end_reason, result in newest_first:
        if end_reason in _GOT_SOMEWHERE:
            break
        failed.setdefault(trial, _message(result))
    if len(failed) < FAILURES_OF_A_GPU:
        return None
    last = _last_line(next(iter(failed.values())))
    return f"{len(failed)} trials have failed on it since the last one that got anywhere, the latest with: {last}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:12]


def _message(result: str | None) -> str:
    return RunResult.model_validate_json(result).message if result else ""


def _last_line(message: str) -> str:
    lines = message.strip().splitlines()
    return lines[-1][:300] if lines else "no message"
