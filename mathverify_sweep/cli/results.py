"""What came out of a study: status, leaderboard, its page and the dashboard."""

from __future__ import annotations

from typing import Annotated

import typer

from mathverify_sweep import paths
from mathverify_sweep.cli.shared import (
    DEFAULT_STORAGE,
    As,
    Format,
    Output,
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
