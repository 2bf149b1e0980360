"""Where a soak happens: a database and an output folder on small disks of their own, which can be filled up.

A disk is a tmpfs, which takes root to mount; without it the folders are plain and no disk is filled.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Protocol

from benchmarks.faults.postgres import Postgres

_MIB = 2**20
_FILL_SECONDS = 5.0


class Disk:
    """A folder of `mib` MiB. `fill` it, and `free` it again."""

    def __init__(self, folder: Path, mib: int) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.is_real = os.geteuid() == 0 and self._mount(mib)

    def fill(self) -> None:
        """Leave no room."""
        if self.is_real:
            with (self.folder / "filler").open("ab", buffering=0) as file:
                try:
                    for size in (_MIB, 4096):
                        self._write(file.fileno(), bytes(size))
                finally:
                    os.fsync(file.fileno())

    def free(self) -> None:
        """Give the room back."""
        (self.folder / "filler").unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount and remove it."""
        if self.is_real:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _mount(self, mib: int) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=755", "tmpfs", str(self.folder)]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    @staticmethod
    def _write(descriptor: int, block: bytes) -> None:
        until = time.monotonic() + _FILL_SECONDS  # others may make room all the time
        while time.monotonic() < until:
            try:
                os.write(descriptor, block)
            except OSError:  # no space is left for a block of this size
                return


class Place(Protocol):
    """A database that faults can be done to. `url` is how workers reach it."""

    kind: str
    url: str
    disks: tuple[Disk, ...]
    output: Path
    logs: Path

    def stop(self) -> None:
        """The database is away from now on."""

    def start(self) -> None:
        """The database is back, whatever happened to it."""

    def cut(self, share: float) -> None:
        """Cut this share of the connections to it."""


class _Folders:
    """Two small disks: one under the database, one under the output folder; logs are elsewhere."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="mvsweep-soak-"))
        self.root.chmod(0o755)  # the database server is another user
        self.logs = self.root / "logs"
        self.logs.mkdir()
        self._stack = ExitStack()
        self._stack.callback(shutil.rmtree, self.root, ignore_errors=True)
        self.disks = tuple(Disk(self.root / name, mib) for name, mib in (("database", 2_000), ("output", 500)))
        for disk in self.disks:
            self._stack.callback(disk.close)
        self.output = self.disks[1].folder / "runs"

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()


class PostgresPlace(_Folders):
    """A PostgreSQL server of its own."""

    kind = "postgresql"

    def __init__(self, max_connections: int) -> None:
        super().__init__()
        self._server = Postgres(self.disks[0].folder, max_connections=str(max_connections))
        self._stack.callback(self._server.close)
        self.url = self._server.url

    def __enter__(self) -> PostgresPlace:
        return self

    def stop(self) -> None:
        """Kill the server as a crash would."""
        self._server.stop()

    def start(self) -> None:
        """Start it, also when a full disk has ended it."""
        self._server.start()

    def cut(self, share: float) -> None:
        """Have the server terminate connections; nothing when it is away."""
        self._server.cut_connections(share)


class SqlitePlace(_Folders):
    """A SQLite file; `stop` takes its write lock and keeps it."""

    kind = "sqlite"

    def __init__(self) -> None:
        super().__init__()
        self._file = self.disks[0].folder / "mvsweep.sqlite3"
        self.url = f"sqlite:///{self._file}"
        self._holder: sqlite3.Connection | None = None

    def __enter__(self) -> SqlitePlace:
        return self

    def stop(self) -> None:
        """Lock the file."""
        if self._holder is None:
            self._holder = sqlite3.connect(self._file, timeout=60, isolation_level=None, check_same_thread=False)
            self._holder.execute("BEGIN IMMEDIATE")

    def start(self) -> None:
        """Let go of it."""
        if self._holder is not None:
            self._holder.close()
            self._holder = None

    def cut(self, share: float) -> None:
        """A file has no connections to cut."""
