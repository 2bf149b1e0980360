"""One process at a time: to create a study takes steps in our tables and in Optuna's, which no transaction spans."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.engine import Engine

from mathverify_sweep.store.database import transaction, wait_for_turn

# Any fixed number, another one than that of the upgrade.
_TURN_LOCK = 7_316_041_903


@contextmanager
def one_at_a_time(engine: Engine) -> Iterator[None]:
    """Wait until no other process on this database is inside. Ends with the process, however that ends.

    On SQLite the folder is locked, not the file: SQLite loses its own locks when anybody else closes the file.
    """
    if engine.dialect.name == "postgresql":
        with transaction(engine) as connection:
            wait_for_turn(connection, _TURN_LOCK)
            yield
        return
    import fcntl  # not on Windows, where only PostgreSQL is served

    folder = os.open(Path(engine.url.database or "").absolute().parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)
