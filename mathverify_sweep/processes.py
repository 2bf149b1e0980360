"""This host and its processes: who a process is, so that a later look can tell whether that very process still lives.

A pid alone is given again to others, and in containers to several at once. Read from /proc: on systems without it the
answers are None, "cannot be told".
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PID_NAMESPACE = Path("/proc/self/ns/pid")

# Schedulers by the variable that they set; the first one that is set counts.
_JOB_VARIABLES = {"slurm": "SLURM_JOB_ID", "pbs": "PBS_JOBID", "lsf": "LSB_JOBID", "sge": "JOB_ID"}


def boot_id() -> str | None:
    """Where this process's pids mean something: the kernel's boot, and the pid namespace (a container has its own)."""
    try:
        namespace = _PID_NAMESPACE.stat().st_ino
        return f"{_BOOT_ID.read_text(encoding='ascii').strip()}:{namespace}"
    except OSError:
        return None


def start_of(pid: int) -> int | None:
    """When a process began, in clock ticks since boot, which no change of the clock moves."""
    found = _state_and_start(pid)
    return None if found is None else found[1]


def lives(pid: int, start: int) -> bool | None:
    """Whether the process `pid` of this boot that began at `start` still runs; None when that cannot be told."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # there is one, of another user
    found = _state_and_start(pid)
    if found is None:
        return None
    state, began = found
    return began == start and state not in ("Z", "X")  # a zombie waits for its parent, and does nothing any more


def end_with_parent(number: int) -> None:
    """Have this process sent signal `number` when its parent dies (Linux; elsewhere nothing happens)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def job_id(environment: Mapping[str, str]) -> str | None:
    """The scheduler's job, as `slurm 4711`; None outside of one."""
    jobs = (f"{name} {environment[key]}" for name, key in _JOB_VARIABLES.items() if environment.get(key))
    return next(jobs, None)


def _state_and_start(pid: int) -> tuple[str, int] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The second field is the command in brackets, which may hold blanks and brackets itself.
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[19])
