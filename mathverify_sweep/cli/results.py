"""What came out of a study: status, leaderboard, figures, comparisons, its page and the dashboard."""

from __future__ import annotations

import contextlib
import sys
from typing import Annotated

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
    write_report,
)


def status(study: Study = None, storage: Storage = DEFAULT_STORAGE, form: As = Format.table) -> None:
    """Every trial and promotion stage of a study: state, why it ended, value with interval, who runs it."""
    from mathverify_sweep.reports import rows, terminal

    database = open_database(storage)
    found = rows.status(database, the_study(database, study))
    show(form, terminal.status(found), found)


def leaderboard(
    study: Study = None,
    storage: Storage = DEFAULT_STORAGE,
    top: Annotated[int, typer.Option(help="Rows to show.", min=1)] = 10,
    form: As = Format.table,
) -> None:
    """The best trials with intervals, the baselines below them, and what promotion made of them."""
    from mathverify_sweep.reports import rows, terminal

    database = open_database(storage)
    found = rows.leaderboard(rows.status(database, the_study(database, study)), top)
    show(form, terminal.leaderboard(found), found)


def evaluate(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="A run's id or the beginning of it.")],
    split: Annotated[Split, typer.Option(help="Read `test` once, at the end.")] = Split.validation,
    storage: Storage = DEFAULT_STORAGE,
    output: Output = paths.DEFAULT_OUTPUT,
    device: Annotated[str, typer.Option(help="`cpu` or `cuda:0`.")] = "cpu",
    form: As = Format.table,
) -> None:
    """All figures of a finished run on a split. The predictions are kept: `mvsweep compare` reads them."""
    from mathverify_sweep import actions
    from mathverify_sweep.reports import terminal
    from mathverify_sweep.store import runs

    database = open_database(storage)
    with contextlib.redirect_stdout(sys.stderr):  # some training libraries greet on standard output
        found = actions.evaluate(database, runs.get(database, run_id), split.value, output.resolve(), device)
    show(form, terminal.metrics(found), found)


def compare(
    first: Annotated[str, typer.Argument(metavar="RUN", help="A run's id or the beginning of it.")],
    second: Annotated[str, typer.Argument(metavar="RUN", help="The run to hold it against.")],
    split: Annotated[Split, typer.Option(help="Both runs must have been evaluated on it.")] = Split.validation,
    storage: Storage = DEFAULT_STORAGE,
    form: As = Format.table,
) -> None:
    """Difference in accuracy of two runs on the same rows, with a paired 95 % interval clustered by question."""
    from mathverify_sweep import actions
    from mathverify_sweep.reports import terminal
    from mathverify_sweep.store import runs

    database = open_database(storage)
    found = actions.compare(database, runs.get(database, first), runs.get(database, second), split.value)
    show(form, terminal.difference(found, first, second), found)


def report(study: Study = None, storage: Storage = DEFAULT_STORAGE, output: Output = paths.DEFAULT_OUTPUT) -> None:
    """Write the study's page: one self-contained HTML file with interactive plots."""
    database = open_database(storage)
    handle = open_study(database, study)
    console.print(write_report(database, handle, output), soft_wrap=True)


def dashboard(
    storage: Storage = DEFAULT_STORAGE,
    output: Output = paths.DEFAULT_OUTPUT,
    host: Annotated[str, typer.Option(help="Address to listen on; only this machine by default.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8080,
) -> None:
    """Serve optuna-dashboard on the database, with the trials' notes and images."""
    from mathverify_sweep.study import dashboard as page

    console.print(f"http://{host}:{port}/ (Ctrl-C ends it)")
    page.serve(open_database(storage), output.resolve(), host, port)
