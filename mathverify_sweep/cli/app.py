"""`mvsweep`: all its commands, in the order of its help, and what an error looks like."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console

from mathverify_sweep import __version__
from mathverify_sweep.cli import chaos, data, operations, results, studies, verifiers, workers
from mathverify_sweep.cli.shared import console
from mathverify_sweep.errors import MvsweepError

app = typer.Typer(
    name="mvsweep",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Hyperparameter sweeps of QLoRA fine-tunes that judge worked solutions to math problems.\n\n"
    "Write a sweep file, then: `mvsweep check FILE`, `mvsweep plan FILE`, `mvsweep create FILE`, "
    "`mvsweep worker STUDY` on every GPU, `mvsweep status STUDY`, `mvsweep promote STUDY`, `mvsweep report STUDY`. "
    "`mvsweep run FILE` does all of it on this machine.",
)
for command in (
    studies.check,
    workers.plan,
    studies.create,
    workers.worker,
    workers.run,
    results.status,
    results.leaderboard,
    studies.stop,
    studies.resume,
    studies.enqueue,
    verifiers.gate,
    studies.promote,
    verifiers.evaluate,
    verifiers.predict,
    verifiers.export,
    verifiers.compare,
    verifiers.ensemble,
    verifiers.lineage,
    results.report,
    results.dashboard,
    operations.doctor,
    operations.reap,
    operations.proxy,
    chaos.chaos,
):
    app.command()(command)

data_app = typer.Typer(no_args_is_help=True, help="Make labelled rows.")
data_app.command()(data.build)
app.add_typer(data_app, name="data")


def main() -> None:
    """Run the command line; an error that has a name is one message and exit code 2."""
    try:
        app()
    except MvsweepError as error:
        Console(stderr=True).print(f"mvsweep: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)


def _version(wanted: bool) -> None:
    if wanted:
        console.print(f"mvsweep {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
