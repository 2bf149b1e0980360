"""What a worker has to say to the database and has not said yet: an append-only file, replayed in order.

Every line is a checksum and one entry as JSON, on the disk (fsync) before the worker goes on. An entry is dropped only
after the database has taken it, so after a crash some are said again: each may be, the lease token decides. Renewals
are never in here: whoever was away for long has to learn whether the run is still theirs.

The file is locked by the worker that writes it; one that nobody locks was left by a dead worker and is anyone's to
replay.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import IO, Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from mathverify_sweep.specs import Frozen, RunResult, RunSpec
from mathverify_sweep.store.runs import Claim

log = logging.getLogger(__name__)


class Held(Frozen):
    """The run that an entry is about, and the token that it was held under."""

    run_id: str
    lease_token: str
    attempt: int
    trial_number: int
    continues: str | None
    failures: int

    @classmethod
    def of(cls, claim: Claim) -> Held:
        """A claim without its spec, which the database has."""
        assert claim.trial_number is not None
        return cls(
            run_id=claim.run_id,
            lease_token=claim.lease_token,
            attempt=claim.attempt,
            trial_number=claim.trial_number,
            continues=claim.continues,
            failures=claim.failures,
        )

    def claim(self) -> Claim:
        """As the store knows it."""
        return Claim(
            self.run_id, self.lease_token, self.attempt, self.trial_number, None, self.continues, self.failures
        )


class Logged(Frozen):
    """A point of the training curve."""

    kind: Literal["logged"] = "logged"
    held: Held
    rows_seen: int
    loss: float
    learning_rate: float


class Reported(Frozen):
    """A value at a rung. `asks`: a trial's, to be judged by the pruner."""

    kind: Literal["reported"] = "reported"
    held: Held
    rows_seen: int
    value: float
    asks: bool


class Finished(Frozen):
    """How a run ended, at `at`, and the spec of its next attempt. `tells`: a trial that Optuna is to hear of."""

    kind: Literal["finished"] = "finished"
    held: Held
    result: RunResult
    at: datetime
    retry: RunSpec | None
    tells: bool
    link: str | None


Entry = Logged | Reported | Finished
_ENTRY: TypeAdapter[Entry] = TypeAdapter(Annotated[Entry, Field(discriminator="kind")])


class Outbox:
    """The entries of one worker. One thread appends, another one takes them out."""

    def __init__(self, file: Path) -> None:
        """Open and lock `file`, with the entries that are in it. Raises BlockingIOError when its worker lives."""
        file.parent.mkdir(parents=True, exist_ok=True)
        self.file = file
        self._stream = file.open("a+b", buffering=0)  # what a full disk refused must not come later
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._stream.close()
            raise
        self._lock = threading.Lock()
        self._entries = deque(_read(self._stream))

    def append(self, entry: Entry) -> None:
        """Keep an entry. On a full disk it is kept in memory alone, and that is said."""
        line = _line(entry)
        with self._lock:
            self._entries.append(entry)
            end = self._stream.seek(0, os.SEEK_END)
            try:
                unwritten = memoryview(line)
                while unwritten:
                    unwritten = unwritten[self._stream.write(unwritten) :]
                os.fsync(self._stream.fileno())
            except OSError as error:
                self._drop_from(end)
                log.warning("%s cannot be written (%s): one entry is kept in memory only", self.file, error.strerror)

    def first(self) -> Entry | None:
        """The oldest entry, if there is one."""
        with self._lock:
            return self._entries[0] if self._entries else None

    def drop_first(self) -> None:
        """The database has taken the oldest entry."""
        with self._lock:
            self._entries.popleft()
            if not self._entries:
                self._drop_from(0)

    def close(self) -> bool:
        """Unlock the file, and remove it when nothing is left in it; whether that is so."""
        with self._lock:
            if not self._entries:
                self.file.unlink(missing_ok=True)
            self._stream.close()
            return not self._entries

    def _drop_from(self, end: int) -> None:
        """Cut off what was written half; a line that stays broken is skipped when the file is read."""
        try:
            os.ftruncate(self._stream.fileno(), end)
        except OSError as error:
            log.warning("%s cannot be cut: %s", self.file, error.strerror)


def orphans(files: Sequence[Path]) -> Iterator[Outbox]:
    """The outboxes among `files` whose worker is dead, locked for the caller, who closes them."""
    for file in files:
        try:
            found = Outbox(file)
        except OSError:  # its worker lives, or another one was quicker
            continue
        if file.exists():
            yield found
        else:
            found.close()


def _line(entry: Entry) -> bytes:
    text = entry.model_dump_json().encode()
    return _checksum(text) + b" " + text + b"\n"


def _checksum(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:16].encode()


def _read(stream: IO[bytes]) -> Iterator[Entry]:
    """The entries whose lines are whole; the last line of a worker that was killed while it wrote is not."""
    stream.seek(0)
    for number, line in enumerate(stream.read().split(b"\n"), 1):
        checksum, _, text = line.partition(b" ")
        if not line:
            continue
        try:
            if checksum != _checksum(text):
                raise ValueError
            yield _ENTRY.validate_json(text)
        except (ValueError, ValidationError):
            log.warning("%s: line %d is damaged and left out", stream.name, number)
