"""What a worker has to say to the database and has not said yet: an append-only file, replayed in order.

Every line is a checksum and one entry as JSON, on the disk (fsync) before the worker goes on. An entry is dropped only
after the database has taken it, so after a crash some are said again: each may be, the lease token decides. Renewals
are never in here: whoever was away for long has to learn whether the run is still theirs.

Its first line says whose it is. Within one boot its process decides whether it was left behind, and a lock (flock) who
of several says what is in it. Between hosts neither means anything, a lock on a shared folder least of all: the outbox
of another host is left alone until somebody has seen its worker's lease expire.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import logging
import os
import threading
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import IO, Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from mathverify_sweep import __version__, processes
from mathverify_sweep.errors import MvsweepError
from mathverify_sweep.specs import Frozen, RunResult, RunSpec
from mathverify_sweep.store.runs import Claim, WorkerIdentity

log = logging.getLogger(__name__)


class AnotherVersion(MvsweepError):
    """An outbox whose lines are whole, and of a kind that this version does not know."""


class Opened(Frozen):
    """The first line: whose outbox it is, and which version writes it."""

    kind: Literal["opened"] = "opened"
    version: str = __version__
    worker_id: str
    boot_id: str | None
    pid: int
    process_start: int | None

    @classmethod
    def by(cls, worker: WorkerIdentity) -> Opened:
        """A worker's own."""
        return cls(
            worker_id=worker.worker_id, boot_id=worker.boot_id, pid=worker.pid, process_start=worker.process_start
        )

    def is_left(self, dead: Collection[str]) -> bool:
        """Whether its worker is gone: its process, if that can be looked up here, or else one of the ids `dead`."""
        if self.worker_id in dead:
            return True
        here = self.boot_id is not None and self.boot_id == processes.boot_id()
        return here and self.process_start is not None and processes.lives(self.pid, self.process_start) is False


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

    def __init__(self, file: Path, owner: Opened | None, stream: IO[bytes], entries: Sequence[Entry] = ()) -> None:
        """The outbox in `file`, open and locked. `owner`: None when its first line is lost."""
        self.file = file
        self._owner, self._stream = owner, stream
        self._lock = threading.Lock()
        self._entries = deque(entries)

    @classmethod
    def of(cls, worker: WorkerIdentity, file: Path) -> Outbox:
        """A new one. Raises OSError."""
        file.parent.mkdir(parents=True, exist_ok=True)
        box = cls(file, Opened.by(worker), _locked(file, "x+b"))
        with contextlib.suppress(OSError):  # a full disk: it is written with the first entry, if that can be
            box._write(b"")
        return box

    def append(self, entry: Entry) -> None:
        """Keep an entry. On a full disk it is kept in memory alone, and that is said."""
        line = _line(entry)
        with self._lock:
            self._entries.append(entry)
            try:
                self._write(line)
            except OSError as error:
                log.warning("%s cannot be written (%s): one entry is kept in memory only", self.file, error.strerror)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left to say."""
        return not self._entries

    def first(self) -> list[Entry]:
        """The oldest entries that can be said at once: points of curves, with the report behind them; or one end."""
        with self._lock:
            points = list(itertools.takewhile(lambda entry: isinstance(entry, Logged), self._entries))
            behind = list(itertools.islice(self._entries, len(points), len(points) + 1))
            return points + [entry for entry in behind if isinstance(entry, Reported) or not points]

    def drop_first(self, count: int) -> None:
        """The database has taken the oldest entries."""
        with self._lock:
            for _ in range(count):
                self._entries.popleft()
            if not self._entries:
                self._drop_from(min(len(self._head()), os.fstat(self._stream.fileno()).st_size))

    def close(self) -> bool:
        """Unlock the file, and remove it when nothing is left in it; whether that is so."""
        with self._lock:
            if not self._entries:
                self.file.unlink(missing_ok=True)
            self._stream.close()
            return not self._entries

    def _head(self) -> bytes:
        return b"" if self._owner is None else _line(self._owner)

    def _write(self, line: bytes) -> None:
        """Add a line; to a new file all that has to be in it. Raises OSError."""
        if not self._is_there():
            self._stream.close()
            self._stream = _locked(self.file, "a+b")
        end = self._stream.seek(0, os.SEEK_END)
        unwritten = memoryview(line if end else self._head() + b"".join(map(_line, self._entries)))
        try:
            while unwritten:
                unwritten = unwritten[self._stream.write(unwritten) :]
            os.fsync(self._stream.fileno())
        except OSError:
            self._drop_from(end)
            raise

    def _is_there(self) -> bool:
        """Whether the file is still the one that is open: who took its worker for dead has removed it."""
        try:
            return os.path.samestat(self.file.stat(), os.fstat(self._stream.fileno()))
        except OSError:
            return False

    def _drop_from(self, end: int) -> None:
        """Cut off what was written half; a line that stays broken is skipped when the file is read."""
        try:
            os.ftruncate(self._stream.fileno(), end)
        except OSError as error:
            log.warning("%s cannot be cut: %s", self.file, error.strerror)


def orphans(files: Sequence[Path], dead: Collection[str] = ()) -> Iterator[Outbox]:
    """The outboxes among `files` that were left behind, locked for the caller, who closes them.

    `dead`: ids of workers whose lease has expired, for outboxes of other hosts.
    """
    for file in files:
        try:
            stream = _locked(file, "r+b")
        except OSError:  # its worker lives, another one was quicker, or it is gone
            continue
        try:
            found = _left(file, stream, dead)
        except AnotherVersion as error:
            _say_once(str(error))
            found = None
        if found is not None and file.exists():
            yield found
        else:
            stream.close()


def _locked(file: Path, mode: str) -> IO[bytes]:
    """Open a file for this process alone, as far as its file system has locks. Raises OSError."""
    stream: IO[bytes] = file.open(mode, buffering=0)  # what a full disk refused must not come later
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        raise
    except OSError as error:
        log.debug("%s cannot be locked: %s", file, error.strerror)
    return stream


def _left(file: Path, stream: IO[bytes], dead: Collection[str]) -> Outbox | None:
    """What is in it; None when its worker may live. Raises AnotherVersion."""
    lines = list(_whole_lines(stream))
    owner = _owner(file, lines[0]) if lines else None
    if owner is not None and not owner.is_left(dead):
        return None
    version = owner.version if owner else "an unknown version"
    return Outbox(file, owner, stream, [_entry(file, line, version) for line in lines[owner is not None :]])


def _owner(file: Path, line: bytes) -> Opened | None:
    """The first line; None when that is the entry behind it."""
    try:
        about = json.loads(line)
        if about.get("kind") != Opened.model_fields["kind"].default:
            return None
        return Opened.model_validate(about)
    except ValidationError:
        raise _another_version(file, about.get("version", "an unknown version")) from None


def _entry(file: Path, line: bytes, version: str) -> Entry:
    try:
        return _ENTRY.validate_json(line)
    except ValidationError:
        raise _another_version(file, version) from None


def _another_version(file: Path, version: str) -> AnotherVersion:
    return AnotherVersion(
        f"{file} was written by mathverify-sweep {version}, and this is {__version__}, which cannot read it. "
        "It is left for a worker of that version"
    )


@cache
def _say_once(message: str) -> None:
    """Workers look again and again."""
    log.warning("%s", message)


def _line(entry: Entry | Opened) -> bytes:
    text = entry.model_dump_json().encode()
    return _checksum(text) + b" " + text + b"\n"


def _checksum(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:16].encode()


def _whole_lines(stream: IO[bytes]) -> Iterator[bytes]:
    """What the lines say that are whole; the last line of a worker that was killed while it wrote is not."""
    stream.seek(0)
    for number, line in enumerate(stream.read().split(b"\n"), 1):
        checksum, _, text = line.partition(b" ")
        if line and checksum == _checksum(text):
            yield text
        elif line:
            log.warning("%s: line %d is damaged and left out", stream.name, number)
