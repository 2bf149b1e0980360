"""Verdicts on unlabelled rows, as a file to hand in: an id and True or False, in the order of the input.

What has been judged is kept beside the output as it comes, so a command that was killed goes on where it was and writes
the same file: rows are judged in chunks that depend on nothing but the input. The output appears whole or not at all.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mathverify_sweep.data import read
from mathverify_sweep.data.rows import Row, column_of, unlabelled_rows_of
from mathverify_sweep.errors import DataError
from mathverify_sweep.metrics import Floats
from mathverify_sweep.verifiers import verifier as verifiers
from mathverify_sweep.verifiers.verifier import Model, Verifier

if TYPE_CHECKING:
    from mathverify_sweep.training.judge import Judge

CHUNK = 512
"""Rows between two lines of the journal: seconds of work, and enough to be batched by length."""

HEADER = ("ID", "is_correct")


@dataclass(frozen=True)
class Unlabelled:
    """Rows and what each is called in the output."""

    ids: tuple[str, ...]
    rows: tuple[Row, ...]


def from_file(verifier: Verifier, file: str, id_column: str | None) -> Unlabelled:
    """Rows of a parquet, CSV or JSONL file, whose columns are named as those of the study's data; labels are not read.

    Ids are a column's values; without `id_column` those of `id` or `ID` if there is one, else the numbers of the rows
    from 0. Raises DataError.
    """
    verifiers.require_judging(verifier.models[0], "asked for verdicts")
    table = read.read(file)
    rows = tuple(unlabelled_rows_of(table, verifier.spec.data.columns))
    if not rows:
        raise DataError(f"{file}: there must be rows, got none")
    column = id_column or next((name for name in table.columns if name.lower() == "id"), None)
    if column is None:
        return Unlabelled(tuple(map(str, range(len(rows)))), rows)
    return Unlabelled(tuple(map(str, column_of(table, column, "--id"))), rows)


def predict(verifier: Verifier, given: Unlabelled, target: Path, output: Path, judge: Judge) -> int:
    """Write the verdicts; how many are True. Raises DataError where the file cannot be written."""
    journal = _Journal(target.with_name(target.name + ".partial"), _fingerprint(verifier, given))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        journal.open()
        said: list[list[float]] = []
        for models in verifiers.by_base(verifier.models):
            said += _said(models, given, journal, output, judge)
        odds: Floats = np.mean(said, axis=0)
        verdicts = odds >= verifier.threshold
        _write(target, given.ids, verdicts.tolist())
        journal.path.unlink()
    except OSError as error:
        raise DataError(f"{target}: cannot be written: {error.strerror or error}. Run the command again") from error
    return int(verdicts.sum())


def _said(
    models: Sequence[Model], given: Unlabelled, journal: _Journal, output: Path, judge: Judge
) -> list[list[float]]:
    """The log-odds of all rows by each of the models, which share a base; what the journal has is not judged again."""
    first = models[0].run.run_id
    starts = range(0, len(given.rows), CHUNK)
    left = [start for start in starts if (first, start) not in journal.known]
    if left:
        score = judge.reader([model.trained(output) for model in models])
        for start in left:
            journal.add(first, start, score(given.rows[start : start + CHUNK]))
    chunks = [journal.known[first, start] for start in starts]
    return [[value for chunk in chunks for value in chunk[number]] for number in range(len(models))]


class _Journal:
    """What has been judged, a line for each chunk; the first line says of what. That of another command is dropped."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path, self._fingerprint = path, fingerprint
        self.known: dict[tuple[str, int], list[list[float]]] = {}

    def open(self) -> None:
        """Take up what an earlier command has left, or begin."""
        lines = list(self._lines())
        if lines[:1] == [{"of": self._fingerprint}]:
            self.known = {(line["first"], line["start"]): line["log_odds"] for line in lines[1:]}
        whole = [json.dumps({"of": self._fingerprint})]
        whole += [_line(first, start, odds) for (first, start), odds in self.known.items()]
        partial = self.path.with_name(self.path.name + ".new")
        partial.write_text("\n".join(whole) + "\n", encoding="utf-8")
        partial.replace(self.path)

    def add(self, first: str, start: int, odds: list[list[float]]) -> None:
        """On the disk when it returns. `first` of the models that share a base has the run id `first`."""
        self.known[first, start] = odds
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(first, start, odds) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _lines(self) -> Iterator[dict[str, Any]]:
        """Whole lines up to the first that is torn: the last one of a killed command may be."""
        try:
            text = self.path.read_text(encoding="utf-8")
        except (FileNotFoundError, UnicodeDecodeError):
            return
        for line in text.splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                return


def _line(first: str, start: int, odds: list[list[float]]) -> str:
    """Python writes and reads floats without loss."""
    return json.dumps({"first": first, "start": start, "log_odds": odds})


def _fingerprint(verifier: Verifier, given: Unlabelled) -> str:
    """Of all that decides the output."""
    digest = hashlib.sha256(json.dumps([verifier.run_ids, verifier.threshold, CHUNK, given.ids]).encode())
    for row in given.rows:
        digest.update(json.dumps([row.question, row.answer, row.solution]).encode())
    return digest.hexdigest()


def _write(target: Path, ids: tuple[str, ...], verdicts: list[bool]) -> None:
    partial = target.with_name(target.name + ".new")
    with partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER)
        writer.writerows(zip(ids, verdicts, strict=True))
    partial.replace(target)
