"""The words for how a run stands and how it ended, and the table of what happens next. Imports nothing of ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class RunState(StrEnum):
    """Optuna's five words, for runs as for trials."""

    WAITING = "WAITING"
    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"
    FAIL = "FAIL"


class Verdict(StrEnum):
    """The answer to a report: go on, or end as pruned."""

    CONTINUE = "continue"
    PRUNE = "prune"


class EndReason(StrEnum):
    """Why a run ended. `ENDINGS` says what state that is and whether it is tried again."""

    FINISHED = "finished"
    PRUNED = "pruned"
    LEASE_EXPIRED = "lease_expired"
    HUNG = "hung"
    KILLED = "killed"
    PREEMPTED = "preempted"
    OUT_OF_MEMORY = "out_of_memory"
    DIVERGED = "diverged"
    CRASHED = "crashed"
    STOPPED_BY_USER = "stopped_by_user"


@dataclass(frozen=True)
class Ending:
    """What an EndReason means for the run and for its trial.

    `retried`: a new attempt follows. `is_failure`: it counts against `MAX_FAILURES`.
    `last_state`: what the trial is told when no further attempt follows; the samplers read no FAIL trial, so
    an ending that is a property of the parameters is told PRUNED.
    """

    state: RunState
    last_state: RunState
    retried: bool = False
    is_failure: bool = False


MAX_FAILURES = 3

ENDINGS: Mapping[EndReason, Ending] = MappingProxyType(
    {
        EndReason.FINISHED: Ending(RunState.COMPLETE, RunState.COMPLETE),
        EndReason.PRUNED: Ending(RunState.PRUNED, RunState.PRUNED),
        EndReason.DIVERGED: Ending(RunState.PRUNED, RunState.PRUNED),
        EndReason.LEASE_EXPIRED: Ending(RunState.FAIL, RunState.FAIL, retried=True, is_failure=True),
        EndReason.HUNG: Ending(RunState.FAIL, RunState.FAIL, retried=True, is_failure=True),
        EndReason.KILLED: Ending(RunState.FAIL, RunState.FAIL, retried=True, is_failure=True),
        EndReason.PREEMPTED: Ending(RunState.FAIL, RunState.FAIL, retried=True),
        EndReason.OUT_OF_MEMORY: Ending(RunState.FAIL, RunState.PRUNED, retried=True),
        EndReason.CRASHED: Ending(RunState.FAIL, RunState.FAIL),
        EndReason.STOPPED_BY_USER: Ending(RunState.FAIL, RunState.FAIL),
    }
)
