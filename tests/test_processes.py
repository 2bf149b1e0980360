"""A process is told from another one that was given its pid, from a zombie, and from what cannot be known."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from mathverify_sweep import processes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def start_of(pid: int) -> int:
    start = processes.start_of(pid)
    assert start is not None
    return start


def test_this_process_lives() -> None:
    assert processes.lives(os.getpid(), start_of(os.getpid())) is True


def test_a_pid_that_was_given_to_another_process_is_not_taken_for_alive() -> None:
    assert processes.lives(os.getpid(), start_of(os.getpid()) - 1) is False


def test_a_killed_process_is_dead_before_and_after_its_parent_asks() -> None:
    child = subprocess.Popen(["sleep", "60"])
    start = start_of(child.pid)
    assert processes.lives(child.pid, start) is True
    child.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert processes.lives(child.pid, start) is False, "a zombie"
    child.wait()
    assert processes.lives(child.pid, start) is False


def test_a_stopped_process_lives() -> None:
    child = subprocess.Popen(["sleep", "60"])
    child.send_signal(signal.SIGSTOP)
    assert processes.lives(child.pid, start_of(child.pid)) is True
    child.kill()
    child.wait()


def test_a_command_with_blanks_and_brackets_is_read_past() -> None:
    child = subprocess.Popen(["bash", "-c", "exec -a 'a ) b (' sleep 60"])
    assert processes.lives(child.pid, start_of(child.pid)) is True
    child.kill()
    child.wait()


def test_all_processes_of_a_boot_agree_on_it() -> None:
    code = "from mathverify_sweep import processes; print(processes.boot_id())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert said == processes.boot_id()


@pytest.mark.parametrize(
    ("environment", "job"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "4711", "PBS_JOBID": ""}, "slurm 4711"),
        ({"PBS_JOBID": "8.head"}, "pbs 8.head"),
        ({"JOB_ID": "3"}, "sge 3"),
    ],
)
def test_a_job_has_the_name_that_its_scheduler_knows(environment: dict[str, str], job: str | None) -> None:
    assert processes.job_id(environment) == job
