"""Every error this package raises on purpose, drawn as a tree.

MvsweepError
├── ConfigError        a sweep file, an option or a W&B sweep file breaks a rule (all broken rules at once)
├── DataError          rows, columns, labels or splits are not what the rule asks
│   ├── DataDrift      the data is not what the study was created with
│   └── HubUnreachable the hub does not answer from here, and nothing is in its cache
├── ModelError         the base model or an adapter cannot be loaded, or cannot do what is asked
├── DepotAway          the URL that an output folder is at cannot be reached: later it may
├── StudyError         no such study or run, or the study is not in a state that allows this
├── StorageError       the database cannot be opened, is of another version, or refuses
│   └── StorageUnavailable  it is away, locked, out of connections or out of disk: later it may work
└── TrainingEnded      training stopped for a reason that has a name (carries its EndReason)

A message says the rule, what came, and what to do. The command line prints it in one line and exits with 2.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mathverify_sweep.states import EndReason


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 120


def shown(value: object) -> str:
    """A value as a message quotes it: on one line, and of bounded length."""
    return _short.repr(value)


class MvsweepError(Exception):
    """Root of all errors that this package raises on purpose."""


class ConfigError(MvsweepError):
    """A file or an option breaks a rule. `problems` holds one sentence per broken rule, its key first."""

    def __init__(self, where: str, problems: Sequence[str]) -> None:
        self.where = where
        self.problems = tuple(problems)
        super().__init__("\n".join([f"{where}: {len(self.problems)} problem(s)", *(f"  {p}" for p in self.problems)]))


class DataError(MvsweepError):
    """Rows, columns, labels or splits are not what the rule asks; names file, column and row."""


class DataDrift(DataError):
    """The data that this machine reads is not the data that the study was created with."""


class HubUnreachable(DataError):
    """The hub does not answer from this machine, and the data set is not in its cache."""


class ModelError(MvsweepError):
    """The base model or an adapter cannot be loaded, or cannot do what is asked of it."""


class DepotAway(MvsweepError):
    """The URL that an output folder is at cannot be read or written now: trying again later may help."""


class StudyError(MvsweepError):
    """No such study, trial or run, or it is not in a state that allows what was asked."""


class StorageError(MvsweepError):
    """The database cannot be opened, is of another version, or refuses."""


class StorageUnavailable(StorageError):
    """The database is away, locked, out of connections or out of disk: trying again later may help."""


class TrainingEnded(MvsweepError):
    """Training stopped before its last row for a reason that has a name."""

    def __init__(self, reason: EndReason, message: str) -> None:
        self.reason = reason
        super().__init__(message)
