"""From checkpoint to use: evaluate runs, ask them, export, compare and combine them, and tell where they come from."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mathverify_sweep import paths
from mathverify_sweep.cli.shared import (
    DEFAULT_STORAGE,
    As,
    Format,
    Output,
    Split,
    Storage,
    Study,
    console,
    open_database,
    open_study,
    show,
    the_study,
)

if TYPE_CHECKING:
    from mathverify_sweep.training.judge import Judge

_RUN = "A run's id or the beginning of it, STUDY:3 for trial 3, or STUDY:best."
Run = Annotated[str, typer.Argument(metavar="RUN", help=_RUN)]
Runs = Annotated[list[str], typer.Argument(metavar="RUN...", help=f"{_RUN} Of several, log-odds are averaged.")]
OnDevice = Annotated[str, typer.Option("--device", help="`cpu` or `cuda:0`.")]
DataFile = Annotated[str, typer.Option("--data", metavar="FILE", help="Parquet, CSV or JSONL.")]


class Dtype(StrEnum):
    """Of a merged model's weights."""

    bf16 = "bf16"
    fp32 = "fp32"


def evaluate(
    run_ids: Runs,
    split: Annotated[Split | None, typer.Option(help="`validation` unless said. Read `test` once, at the end.")] = None,
    data: Annotated[str | None, typer.Option(metavar="FILE", help="Labelled rows instead of a split.")] = None,
    by: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="A column of the file to break down by; `source` if it is there."),
    ] = None,
    samples: Annotated[
        int,
        typer.Option(min=1, help="Of a run that solves: draw so many solutions a row, for pass@k and a vote."),
    ] = 1,
    temperature: Annotated[float, typer.Option(min=0.01, help="At which they are drawn.")] = 0.7,
    storage: Storage = DEFAULT_STORAGE,
    output: Output = paths.DEFAULT_OUTPUT,
    device: OnDevice = "cpu",
    form: As = Format.table,
) -> None:
    """All figures of finished runs, with intervals, by length and by source, on a split or on a file of labelled rows.

    The threshold is the one fitted on validation. What a run says on a split is kept: `mvsweep compare` reads it.
    """
    from mathverify_sweep.reports import verifiers as shown
    from mathverify_sweep.verifiers import evaluate as page
    from mathverify_sweep.verifiers import sampled, verifier

    if data is not None and split is not None:
        raise typer.BadParameter("a split of the study, or a file: one of the two", param_hint="--data")
    database = open_database(storage)
    asked = verifier.find(database, run_ids)
    if samples > 1:
        if data is None:
            labelled = page.of_split(asked, (split or Split.validation).value)
        else:
            labelled = page.from_file(asked, data, by)
        with _judging(device) as judge:
            drawn = sampled.sampled(asked, labelled, output.resolve(), judge, samples, temperature)
        show(form, shown.sampled(drawn), drawn)
        return
    if data is None:
        with _judging(device) as judge:
            found = page.on_split(database, asked, (split or Split.validation).value, output.resolve(), judge)
    else:
        labelled = page.from_file(asked, data, by)
        with _judging(device) as judge:
            found = page.on_file(asked, labelled, output.resolve(), judge)
    show(form, shown.evaluation(found), found)


def predict(
    run_ids: Runs,
    data: DataFile,
    target: Annotated[Path, typer.Option("-o", metavar="FILE", help="CSV to write.")],
    id_column: Annotated[
        str | None, typer.Option("--id", metavar="COLUMN", help="Ids; absent: `id` or `ID`, else row numbers from 0.")
    ] = None,
    storage: Storage = DEFAULT_STORAGE,
    output: Output = paths.DEFAULT_OUTPUT,
    device: OnDevice = "cpu",
) -> None:
    """Verdicts on unlabelled rows: a CSV of id and True or False, in input order. Killed, it goes on when run again."""
    from mathverify_sweep.verifiers import predict as page
    from mathverify_sweep.verifiers import verifier

    asked = verifier.find(open_database(storage), run_ids)
    given = page.from_file(asked, data, id_column)
    with _judging(device) as judge:
        right = page.predict(asked, given, target, output.resolve(), judge)
    console.print(f"{target}: {len(given.rows):,} verdicts, {right:,} True", soft_wrap=True)


def export(
    run_id: Run,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that is not there yet.")],
    merge: Annotated[bool, typer.Option("--merge", help="The adapter in the base model's weights.")] = False,
    dtype: Annotated[Dtype, typer.Option(help="Of a merged model's weights.")] = Dtype.bf16,
    storage: Storage = DEFAULT_STORAGE,
    output: Output = paths.DEFAULT_OUTPUT,
    device: OnDevice = "cpu",
    form: As = Format.table,
) -> None:
    """A run as a folder that plain transformers and PEFT load: weights, tokenizer, prompt, threshold, model card.

    `--merge` merges into the dequantised base that the adapter was trained on, and says how many verdicts flip.
    """
    from mathverify_sweep.reports import verifiers as shown
    from mathverify_sweep.verifiers import export as page
    from mathverify_sweep.verifiers import verifier

    database = open_database(storage)
    model = verifier.model(verifier.named(database, run_id))
    wanted = page.Wanted(merge, "bfloat16" if dtype is Dtype.bf16 else "float32", device, datetime.now(UTC))
    with contextlib.redirect_stdout(sys.stderr):  # some training libraries greet on standard output
        found = page.export(database, model, output.resolve(), folder, wanted)
    show(form, shown.exported(found), found)


def compare(
    run_ids: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help=_RUN)],
    split: Annotated[Split, typer.Option(help="All runs must have been evaluated on it.")] = Split.validation,
    storage: Storage = DEFAULT_STORAGE,
    form: As = Format.table,
) -> None:
    """Runs held against each other on the same rows: paired intervals and tests clustered by question, agreement."""
    from mathverify_sweep.reports import verifiers as shown
    from mathverify_sweep.verifiers import compare as page

    found = page.compare(open_database(storage), run_ids, split.value)
    show(form, shown.compared(found), found)


def ensemble(
    study: Study = None,
    top: Annotated[int, typer.Option(help="Runs in it at most.", min=1)] = 5,
    storage: Storage = DEFAULT_STORAGE,
    output: Output = paths.DEFAULT_OUTPUT,
    device: OnDevice = "cpu",
    form: As = Format.table,
) -> None:
    """Choose runs, greedily on validation, whose mean log-odds is the best verifier; then evaluate or ask them.

    Runs whose log-odds on validation are not in the database are read there first.
    """
    from mathverify_sweep.reports import verifiers as shown
    from mathverify_sweep.verifiers import ensemble as page
    from mathverify_sweep.verifiers import verifier

    database = open_database(storage)
    name = the_study(database, study)
    candidates = page.candidates(database, name)
    if unread := verifier.unread(database, candidates, "validation"):
        with _judging(device) as judge:
            verifier.have_read(unread, "validation", verifier.Place(database, output.resolve(), judge))
    found = page.choose(database, name, candidates, top)
    show(form, shown.ensemble(found), found)


def gate(
    study: Study = None,
    top: Annotated[int, typer.Option(help="How many trials to choose.", min=1)] = 1,
    storage: Storage = DEFAULT_STORAGE,
    output: Output = paths.DEFAULT_OUTPUT,
    device: OnDevice = "cpu",
    form: As = Format.table,
) -> None:
    """Choose trials to promote: those that validation cannot tell apart are trained again and judged on the gate split.

    Say it again when workers have trained what it has queued, until it has chosen; it says why.
    """
    from mathverify_sweep.reports import verifiers as shown
    from mathverify_sweep.verifiers import gate as page
    from mathverify_sweep.verifiers import verifier

    database = open_database(storage)
    handle = open_study(database, study)
    with _judging(device) as judge:
        place = verifier.Place(database, output.resolve(), judge)
        found = page.gate(place, handle, top, datetime.now(UTC))
    page.keep(found, paths.gate_file(output.resolve(), handle.config.study))
    show(form, shown.gate(found), found)


def lineage(
    run_id: Run,
    sweep_file: Annotated[
        Path | None, typer.Option("--sweep-file", metavar="FILE", help="Write a sweep file that makes the run again.")
    ] = None,
    storage: Storage = DEFAULT_STORAGE,
    form: As = Format.table,
) -> None:
    """Where a run comes from: trial, stages, checkpoints, rows, seeds, code, versions; and how to make it again."""
    from mathverify_sweep.reports import lineage as page
    from mathverify_sweep.verifiers import verifier

    database = open_database(storage)
    run = verifier.named(database, run_id)
    found = page.of(database, run)
    if sweep_file is not None:
        page.write_sweep_file(database, run, sweep_file)
    if form is Format.json:
        show(form, "", found)
    else:
        console.print(page.told(found), soft_wrap=True, markup=False, highlight=False)


@contextlib.contextmanager
def _judging(device: str) -> Iterator[Judge]:
    """With standard output kept for what was asked: some training libraries greet on it."""
    from mathverify_sweep.training.judge import Judge  # imports torch: only when it is needed

    with contextlib.redirect_stdout(sys.stderr):
        yield Judge(device)
