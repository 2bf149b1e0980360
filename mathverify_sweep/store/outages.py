"""What a driver's error means: the database is away, and trying again later may help, or it refuses.

The same sorting for our engine and for Optuna's sessions. No message quotes more than one line of the driver, and
never a password.
"""

from __future__ import annotations

import logging
import os
import random
import sqlite3
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import quote_plus

from sqlalchemy import exc
from sqlalchemy.engine import URL

from mathverify_sweep.errors import StorageError, StorageUnavailable

T = TypeVar("T")
log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 8.0

# PostgreSQL's SQLSTATE, by class or whole. 25006: a server that is failing over, or that its host has made read-only
# because its disk is full. 25P03: the server cut a transaction that stood still (a suspended laptop).
_AWAY_CLASSES = ("08", "53", "57", "58")
_AWAY_STATES = ("25006", "25P03", "25P04", "40001", "40P01", "55P03")
_DROPPED = "57P04"
# What is said before there is a connection has no SQLSTATE, only text: of these, time mends none.
_REFUSALS = (
    "password authentication failed",
    "no password supplied",
    "authentication failed",
    "no pg_hba.conf entry",
    "does not exist",
    "permission denied",
    "is not permitted to log in",
    "invalid connection option",
    "certificate",
)
_SQLITE_AWAY = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_NOMEM,
)


def patiently(
    call: Callable[[], T],
    patience_seconds: float,
    chance: random.Random,
    monotonic: Callable[[], float],
    sleep: Callable[[float], None],
) -> T:
    """What `call` returns, tried again while the database is away, for `patience_seconds` at most.

    The pauses grow, and are drawn: of a hundred workers that start at once and find no connection left, not all come
    back at once. After that the last StorageUnavailable is raised.
    """
    until = monotonic() + patience_seconds
    longest = FIRST_PAUSE_SECONDS
    while True:
        try:
            return call()
        except StorageUnavailable as error:
            pause = chance.uniform(0.0, longest)
            if monotonic() + pause > until:
                raise
            log.info("%s Trying again in %.1f s", error, pause)
        sleep(pause)
        longest = min(LONGEST_PAUSE_SECONDS, 2 * longest)


def storage_error(url: URL, error: BaseException) -> StorageError:
    """What a failed use of the database is called here, in one line: which database, what it said, what to do."""
    shown = url.render_as_string(hide_password=True)
    kind = StorageUnavailable if is_away(url, error) else StorageError
    if kind is StorageUnavailable or isinstance(error, exc.OperationalError | exc.InterfaceError):
        hint = "Check its URL, that it runs and that its disk has room."
        return kind(f"the database {shown} cannot be used: {_said(url, error)}. {hint}")
    return kind(f"the database {shown} refused: {_said(url, error)}")


def is_away(url: URL, error: BaseException) -> bool:
    """Whether the same may work later, with nothing changed by anybody but the database's keeper."""
    if isinstance(error, exc.TimeoutError):  # no connection of the pool came free
        return True
    if isinstance(error, exc.PendingRollbackError):  # the error before it was the database's
        return True
    if not isinstance(error, exc.DBAPIError):
        return False
    original = error.orig
    if isinstance(original, sqlite3.Error):
        return _sqlite_is_away(url, original)
    state = getattr(original, "sqlstate", None)
    if state is not None:
        return state != _DROPPED and (state[:2] in _AWAY_CLASSES or state in _AWAY_STATES)
    if error.connection_invalidated:
        return True
    text = str(original).lower()
    return isinstance(error, exc.OperationalError) and not any(refusal in text for refusal in _REFUSALS)


def _sqlite_is_away(url: URL, error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary one
    if code == sqlite3.SQLITE_CANTOPEN:  # of a file that is there and ours: its -wal found no room, or no descriptor
        return url.database is not None and os.access(url.database, os.R_OK | os.W_OK)
    return code in _SQLITE_AWAY


def _said(url: URL, error: BaseException) -> str:
    original = getattr(error, "orig", None) or error
    said = " ".join(str(original).split()) or type(original).__name__
    for form in {url.password or "", quote_plus(url.password or "")}:
        said = said.replace(form, "***") if len(form) > 2 else said
    return said
