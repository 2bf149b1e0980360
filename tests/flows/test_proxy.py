"""Workers behind Optuna's proxy, started by one command."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest

from mathverify_sweep.states import RunState
from tests.flows.commands import SWEEP, Shell, ended

pytestmark = pytest.mark.parametrize("backend", ["postgresql"])  # tests/study/test_proxy.py has both


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def test_a_worker_behind_the_proxy_does_the_whole_study(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MVSWEEP_REHEARSAL_SECONDS", "0.1")
    shell = Shell.at(tmp_path / "work", database_url, SWEEP.replace("trials: 4", "trials: 2"))
    port = free_port()
    proxy = shell.start("proxy", "--port", str(port))
    address = f"127.0.0.1:{port}"

    # A proxy that has not started yet is one that is away: the worker waits for it.
    shell.run("worker", "flow.yaml", "--engine", "rehearsal", "--until-idle", "--lease", "5", "--optuna-proxy", address)

    assert [trial.state for trial in shell.status().trials] == [RunState.COMPLETE] * 2
    proxy.send_signal(signal.SIGINT)
    assert address in ended(proxy, proxy.wait())
