"""`mvsweep doctor`: what it says of a healthy machine, of sick ones, and how long it waits for those that hang."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy.engine import Engine

from mathverify_sweep.operations import accelerator, machine, services
from mathverify_sweep.operations.findings import Check, Finding, Level, examine, ok
from mathverify_sweep.specs import RunResult, TrainParams
from mathverify_sweep.states import EndReason
from mathverify_sweep.store import file_systems, runs
from mathverify_sweep.store.health import Connections, Health
from mathverify_sweep.store.runs import WorkerIdentity
from mathverify_sweep.study.study import open_study
from tests.example_study import NAME, START, example_database

KEY = "planted-key-0123456789abcdef0123456789abcdef"
KEYS = {"WANDB_API_KEY": KEY, "HF_TOKEN": KEY}
GPU = "0, NVIDIA H200, 570.86.15, 3, 143771, 41"
HEALTH = Health("PostgreSQL 18.0", 0.001, 0.004, "0002", "0002", Connections(12, 97), 0.1, None)


def doctor(*arguments: str, **environment: str) -> tuple[int, dict[str, Finding], str]:
    """Exit code, findings by what they are about, and everything that was printed."""
    done = subprocess.run(
        [sys.executable, "-m", "mathverify_sweep", "doctor", *arguments, "-f", "json"],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    findings = [Finding(**found) for found in json.loads(done.stdout)["findings"]]
    assert done.stderr == ""
    return done.returncode, {found.about: found for found in findings}, done.stdout


def command(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of that name, before all others in PATH."""
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def levels(findings: Iterator[Finding]) -> dict[str, Level]:
    return {finding.about: finding.level for finding in findings}


# The whole


def test_a_machine_that_can_work_on_a_study_is_healthy_and_no_key_is_printed(tmp_path: Path) -> None:
    with example_database(tmp_path) as engine:
        url = engine.url.render_as_string()
        code, found, printed = doctor(NAME, "--storage", url, "--output", str(tmp_path), **KEYS)
    assert code == 0, printed
    assert json.loads(printed)["seconds"] < 20
    for about in ("python", "packages", "worker", "nf4 cpu", "tables", "study", "base model", "data", "journal"):
        assert found[about].level is Level.OK, found[about]
    assert "a key is there" in found["wandb"].found
    assert KEY not in printed


def test_a_database_that_is_not_there_is_a_problem_and_its_password_stays_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bitsandbytes.py").write_text("raise ModuleNotFoundError(\"No module named 'bitsandbytes'\")")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # a machine that only controls: no torch to wait for
    code, found, printed = doctor("--storage", f"postgresql://me:{KEY}@127.0.0.1:1/none", "--output", str(tmp_path))
    assert code == 1
    assert found["database"].level is Level.PROBLEM
    assert "cannot be used" in found["database"].found
    assert found["torch"].level is Level.WARNING
    assert KEY not in printed


def test_a_check_that_hangs_costs_its_own_line_only() -> None:
    forever = Check("slow", lambda: iter([ok("slow", str(time.sleep(60)))]), 0.2, "Look at it")
    broken = Check("broken", lambda: iter([ok("broken", str(1 / 0))]), 5, "")
    started = time.monotonic()
    slow, broke, fine = examine([forever, broken, Check("fine", lambda: [ok("fine", "yes")], 5, "")])
    assert time.monotonic() - started < 5
    assert (slow.level, slow.found, slow.fix) == (Level.PROBLEM, "no answer within 0.2 s", "Look at it")
    assert "ZeroDivisionError" in broke.found
    assert fine.level is Level.OK


# GPUs


@pytest.mark.parametrize(
    ("script", "level", "said"),
    [
        (f"echo '{GPU}'", Level.OK, "NVIDIA H200, driver 570.86.15, 3 of 143771 MiB used"),
        (f"echo '{GPU.replace(', 3,', ', 99000,')}'", Level.WARNING, "99000 of 143771 MiB"),
        (f"echo '{GPU.replace('41', '93')}'", Level.WARNING, "93 °C"),
        ("echo '0, [GPU is lost], 570.86.15, [N/A], [N/A], [N/A]'", Level.PROBLEM, "GPU is lost"),
        ("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18", Level.PROBLEM, "NVML"),
    ],
)
def test_what_nvidia_smi_says_is_judged(
    script: str, level: Level, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command(tmp_path, "nvidia-smi", script, monkeypatch)
    (finding,) = accelerator.driver()
    assert finding.level is level
    assert said in finding.found


def test_a_driver_that_hangs_is_reported_and_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command(tmp_path, "nvidia-smi", "exec sleep 60", monkeypatch)
    monkeypatch.setattr(accelerator, "DRIVER_SECONDS", 0.2)
    started = time.monotonic()
    (finding,) = accelerator.driver()
    assert time.monotonic() - started < 5
    assert (finding.level, finding.found) == (Level.PROBLEM, "nvidia-smi did not answer within 0.2 s")


def test_a_torch_that_does_not_load_is_a_problem_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bitsandbytes.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (finding,) = accelerator.training()
    assert finding.level is Level.PROBLEM
    assert "libcudart.so.13" in finding.found


# This machine


def test_a_folder_that_cannot_be_written_is_a_problem() -> None:
    (finding,) = machine.disk("output", Path("/proc/nowhere"))
    assert finding.level is Level.PROBLEM
    assert "cannot be written" in finding.found


def test_a_disk_is_looked_at_before_its_folder_is_made_and_nothing_is_left_there(tmp_path: Path) -> None:
    (finding,) = machine.disk("output", tmp_path / "not" / "there")
    assert str(tmp_path) in finding.found
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "size", "level"),
    [("LITTLE_MEMORY", 2**60, Level.WARNING), ("TOO_LITTLE_MEMORY", 2**60, Level.PROBLEM)],
)
def test_little_memory_is_said(name: str, size: int, level: Level, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, name, size)
    (finding,) = machine.memory()
    assert finding.level is level


# The database


def test_a_database_in_use_is_measured(engine: Engine) -> None:
    found = levels(services.storage(engine.url.render_as_string(hide_password=False)))
    assert set(found.values()) == {Level.OK}
    assert {"database", "tables"} < set(found)


def test_a_sqlite_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    (finding,) = services.storage(f"sqlite:///{tmp_path}/folder/none.sqlite3")
    assert finding.level is Level.WARNING
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "about", "level"),
    [
        ({"round_trip_seconds": 0.2}, "database", Level.WARNING),
        ({"round_trip_seconds": 2.0}, "database", Level.PROBLEM),
        ({"transaction_seconds": 5.0}, "database", Level.PROBLEM),
        ({"clock_ahead_seconds": -60.0}, "clocks", Level.WARNING),
        ({"connections": Connections(80, 97)}, "connections", Level.WARNING),
        ({"connections": Connections(95, 97)}, "connections", Level.PROBLEM),
        ({"journal_mode": "delete"}, "journal", Level.PROBLEM),
        ({"revision": None}, "tables", Level.WARNING),
        ({"revision": "0001"}, "tables", Level.WARNING),
        ({"revision": "9999"}, "tables", Level.PROBLEM),
    ],
)
def test_a_sick_database_is_told_from_a_healthy_one(change: dict[str, object], about: str, level: Level) -> None:
    assert set(levels(services.judged(HEALTH, "db")).values()) == {Level.OK}
    findings = {found.about: found for found in services.judged(replace(HEALTH, **change), "db")}  # type: ignore[arg-type]
    assert findings[about].level is level
    assert findings[about].fix


@pytest.mark.parametrize("allowed", ["0", "1"])
def test_a_sqlite_file_on_a_network_file_system_is_a_problem_unless_it_was_allowed(
    migrated_sqlite: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: str
) -> None:
    (tmp_path / "x.sqlite3").write_bytes(migrated_sqlite)
    monkeypatch.setattr(file_systems, "mounts", lambda: [file_systems.Mount("/", "nfs4")])
    monkeypatch.setenv(file_systems.ALLOW, allowed)
    check = Check("database", lambda: services.storage(f"sqlite:///{tmp_path}/x.sqlite3"), 10, "")
    found = {finding.about: finding for finding in examine([check])}
    about, level = ("file system", Level.WARNING) if allowed == "1" else ("database", Level.PROBLEM)
    assert found[about].level is level
    assert "network file system (nfs4)" in found[about].found


def test_a_quarantined_gpu_of_this_host_is_named(tmp_path: Path) -> None:
    me = WorkerIdentity.of_this_process("gpu 3 (H200)", 60.0)
    with example_database(tmp_path) as engine, open_study(engine, NAME) as study:
        for number in range(100, 103):
            place = runs.reserve(engine, NAME, me, runs.Budget(None, None, None), START)
            assert place is not None
            assert runs.attach(engine, place, number, study.config.trial_spec(number, TrainParams(), "f"))
            runs.finish(engine, place, RunResult(end_reason=EndReason.HUNG, message="no progress"), START)
        findings = {found.about: found for found in services.study(engine.url.render_as_string(), NAME)}
    assert findings["quarantine"].level is Level.WARNING
    assert "gpu 3 (H200): 3 trials have failed on it" in findings["quarantine"].found


# What is on the network


def test_a_server_that_takes_the_call_and_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        (finding,) = services.wandb("sqlite:///none", None)
    assert time.monotonic() - started < 5
    assert "127.0.0.1 does not answer" in finding.found
    assert finding.level is Level.OK, "offline needs no server"


def test_the_hub_may_be_left_alone_on_purpose(tmp_path: Path) -> None:
    code = "from mathverify_sweep.operations import services; print([str(f.level) for f in services.hub()])"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['ok']"
