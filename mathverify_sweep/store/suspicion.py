"""Whose fault is it: the parameters', the code's, or a GPU's? Read from how runs have ended; nothing is written.

A crash that three trials share on more than one GPU is the code's, and ends the study before the next five hundred. A
GPU on which the last three trials failed, however they did, is suspect and gets no more until a person has looked.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from mathverify_sweep.specs import RunResult
from mathverify_sweep.states import EndReason
from mathverify_sweep.store.database import transaction
from mathverify_sweep.store.tables import runs

SAME_CRASHES = 3
"""Trials that crash alike before it counts as the code's fault."""
FAILURES_OF_A_GPU = 3
"""Different trials in a row that fail on a GPU before it is quarantined."""

_A_GPUS_FAULT = (EndReason.CRASHED, EndReason.HUNG)
_FRAME = re.compile(r'File "(?:[^"]*/)?([^"/]+/[^"/]+)", line \d+, in (\S+)')
_CHANGING = re.compile(r"0x[0-9a-f]+|\d+(?:\.\d+)?|(?:/[\w.@-]+)+|'[^']*'")


def fingerprint(message: str) -> str:
    """The same for two crashes at the same place: the frames' files and functions, and the error without its figures.

    Line numbers, addresses, numbers, paths and quoted names are left out, so it is the same on all machines.
    """
    lines = message.strip().splitlines() or [""]
    frames = [f"{file}:{function}" for file, function in _FRAME.findall(message)]
    error = _CHANGING.sub("#", lines[-1])
    return hashlib.sha256("\n".join([*frames, error]).encode("utf-8", "replace")).hexdigest()[:12]


def repeated_crash(engine: Engine, study_name: str) -> str | None:
    """Why the study is to be stopped: three trials crashed alike, on two GPUs or on the only one there is."""
    crashed = sa.select(runs.c.trial_number, runs.c.host, runs.c.gpu, runs.c.result).where(
        runs.c.study_name == study_name, runs.c.end_reason == EndReason.CRASHED
    )
    devices = sa.select(runs.c.host, runs.c.gpu).where(runs.c.study_name == study_name, runs.c.gpu.is_not(None))
    with transaction(engine) as connection:
        rows = connection.execute(crashed.order_by(runs.c.position)).all()
        if len({row.trial_number for row in rows}) < SAME_CRASHES:
            return None
        only_one = len(connection.execute(devices.distinct()).all()) == 1
    alike: dict[str, list[sa.Row[Any]]] = {}
    for row in rows:
        alike.setdefault(fingerprint(_message(row)), []).append(row)
    for same in alike.values():
        trials = {row.trial_number for row in same}
        if len(trials) >= SAME_CRASHES and (only_one or len({(row.host, row.gpu) for row in same}) > 1):
            return f"{len(trials)} trials crashed alike: {_last_line(_message(same[-1]))}"
    return None


def is_quarantined(engine: Engine, study_name: str, host: str, gpu: str) -> str | None:
    """Why a GPU is not to be given runs: the last three that ended on it were different trials, and all failed."""
    query = (
        sa.select(runs.c.trial_number, runs.c.end_reason, runs.c.result)
        .where(runs.c.study_name == study_name, runs.c.host == host, runs.c.gpu == gpu, runs.c.ended_at.is_not(None))
        .where(runs.c.started_at.is_not(None))
        .order_by(runs.c.ended_at.desc(), runs.c.position.desc())
        .limit(FAILURES_OF_A_GPU)
    )
    with transaction(engine) as connection:
        last = connection.execute(query).all()
    failed = {row.trial_number for row in last if row.end_reason in _A_GPUS_FAULT}
    if len(failed) < FAILURES_OF_A_GPU:
        return None
    return f"the last {FAILURES_OF_A_GPU} trials on it failed, the last one with: {_last_line(_message(last[0]))}"


def _message(row: sa.Row[Any]) -> str:
    return RunResult.model_validate_json(row.result).message if row.result else ""


def _last_line(message: str) -> str:
    lines = message.strip().splitlines()
    return lines[-1][:300] if lines else "no message"
