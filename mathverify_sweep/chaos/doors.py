"""How the database goes away from a stage's workers, and comes back, without harm to what else is in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol

from mathverify_sweep.chaos.proxy import Proxy
from mathverify_sweep.store.database import connect, transaction
from mathverify_sweep.store.throwaway import server_address, through


class Door(Protocol):
    """What stands between workers and their database, reached at `url`."""

    url: str

    def shut(self) -> None:
        """The database is away from now on."""

    def open(self) -> None:
        """It is back."""

    def cut(self) -> None:
        """Cut the connections there are."""


@contextmanager
def door(url: str) -> Iterator[Door]:
    """The door to the database at `url`: a proxy before PostgreSQL, a lock on a SQLite file."""
    address = server_address(url)
    if address is None:
        lock = _Lock(url)
        try:
            yield lock
        finally:
            lock.open()
        return
    proxied = _Proxied(url, address)
    try:
        yield proxied
    finally:
        proxied.close()


class _Proxied:
    """PostgreSQL behind a proxy."""

    def __init__(self, url: str, address: tuple[str, int]) -> None:
        self._proxy = Proxy(*address)
        self.url = through(url, self._proxy.port)
        self.shut, self.open, self.cut, self.close = (
            self._proxy.shut,
            self._proxy.open,
            self._proxy.cut,
            self._proxy.close,
        )


class _Lock:
    """A SQLite file whose write lock is taken."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._engine = connect(url)
        self._held = ExitStack()

    def shut(self) -> None:
        """See Door."""
        self._held.enter_context(transaction(self._engine))

    def open(self) -> None:
        """See Door."""
        self._held.close()
        self._engine.dispose()

    def cut(self) -> None:
        """A file has no connections: it is locked for a moment."""
        self.shut()
        self.open()
