"""Web pages and the proxy are for this machine alone, unless somebody says otherwise."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path

import psutil
import pytest

from tests.flows.commands import Shell

STARTED_SECONDS = 60.0


def addresses(pid: int) -> set[str]:
    """Where a process listens, once it does."""
    until = time.monotonic() + STARTED_SECONDS
    while time.monotonic() < until:
        # gRPC says 127.0.0.1 as IPv6 does.
        found = {
            c.laddr.ip.removeprefix("::ffff:")
            for c in psutil.Process(pid).net_connections("inet")
            if c.status == psutil.CONN_LISTEN
        }
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError("it listens nowhere")


@pytest.mark.parametrize("backend", ["sqlite"])
@pytest.mark.parametrize("command", ["dashboard", "proxy"])
def test_a_server_listens_on_this_machine_only(tmp_path: Path, database_url: str, command: str) -> None:
    shell = Shell.at(tmp_path / "work", database_url)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = shell.start(command, "--port", str(port))
    try:
        assert addresses(process.pid) == {"127.0.0.1"}
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
