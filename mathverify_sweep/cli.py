"""The commands of `mvsweep`, nothing else: parse, call, print. Exit code 0 only when the asked work is done."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic_core import to_json
from rich.console import Console, RenderableType

from mathverify_sweep import __version__, paths
from mathverify_sweep.errors import MvsweepError, StudyError

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine as Database

    from mathverify_sweep.reports.models import StatusReport
    from mathverify_sweep.study.study import StudyHandle

app = typer.Typer(
    name="mvsweep",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Hyperparameter sweeps of QLoRA fine-tunes that judge worked solutions to math problems.\n\n"
    "Write a sweep file, then: `mvsweep check FILE`, `mvsweep create FILE`, `mvsweep worker STUDY` on every GPU, "
    "`mvsweep status STUDY`, `mvsweep promote STUDY`, `mvsweep report STUDY`. "
    "`mvsweep run FILE` does all of it on this machine.",
)
data_app = typer.Typer(no_args_is_help=True, help="Make labelled rows.")
app.add_typer(data_app, name="data")
console = Console()


class Format(StrEnum):
    """How a command prints."""

    table = "table"
    json = "json"


class Split(StrEnum):
    """A split that can be read."""

    validation = "validation"
    test = "test"
    gate = "gate"


SweepFile = Annotated[str, typer.Argument(metavar="FILE", help="A sweep file (.yaml), or the name of one that ships.")]
Study = Annotated[str | None, typer.Argument(metavar="[STUDY]", help="Name of a study; not needed when there is one.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key: `--set budget.trials=4`."),
]
_DATABASE = "Database: `sqlite:///FILE` or `postgresql://USER:PASSWORD@HOST/NAME`."
Storage = Annotated[str, typer.Option("--storage", envvar="OPTUNA_STORAGE", metavar="URL", help=_DATABASE)]
Output = Annotated[
    Path, typer.Option("--output", envvar="MVSWEEP_OUTPUT", metavar="DIR", help="Adapters, W&B files, reports.")
]
As = Annotated[Format, typer.Option("-f", "--format", help="A table for people, or JSON for programs.")]
DEFAULT_STORAGE = f"sqlite:///{paths.DEFAULT_DATABASE}"


@app.command()
def check(file: SweepFile, overrides: Overrides = None, form: As = Format.table) -> None:
    """Validate a sweep file; show its search space, splits and rows. Writes nothing."""
    from mathverify_sweep import sweep_file
    from mathverify_sweep.reports import checked

    found = checked.check(sweep_file.require(file, overrides or ()), sweep_file.read_as(file))
    _print(form, checked.rendered(found), found)


@app.command()
def create(file: SweepFile, storage: Storage = DEFAULT_STORAGE, overrides: Overrides = None) -> None:
    """Create the study of a sweep file. Repeatable; a study is never changed by it."""
    from mathverify_sweep import actions, sweep_file

    config = sweep_file.require(file, overrides or ())
    created = actions.create(_database(storage), config)
    console.print(f"study {config.study} {'created' if created else 'is there already, unchanged'}")
    console.print("start workers, one for each GPU, on any machine that reaches the database:")
    option = "" if storage == DEFAULT_STORAGE or "OPTUNA_STORAGE" in os.environ else " --storage URL"
    console.print(f"  mvsweep worker {config.study}{option}", soft_wrap=True)


@app.command()
def worker(
    study: Annotated[
        str, typer.Argument(metavar="FILE_OR_STUDY", help="A study's name, or a sweep file to create it from.")
    ],
    storage: Storage = DEFAULT_STORAGE,
    output: Output = paths.DEFAULT_OUTPUT,
    gpu: Annotated[int | None, typer.Option(help="GPU number; without it the first one that no worker holds.")] = None,
    device: Annotated[str | None, typer.Option(help="`cpu` or `cuda`.")] = None,
    count: Annotated[int | None, typer.Option(help="Take at most this many runs.", min=1)] = None,
    until_idle: Annotated[
        bool, typer.Option("--until-idle", help="End when the study has nothing left to do.")
    ] = False,
    lease: Annotated[
        float, typer.Option(help="Lease period in seconds: a dead worker is noticed after two.", min=1)
    ] = 60.0,
) -> None:
    """Work on a study: take trials and promotion stages until it is stopped. Ctrl-C hands the current run back."""
    from mathverify_sweep import actions, sweep_file
    from mathverify_sweep.store import studies
    from mathverify_sweep.worker import devices
    from mathverify_sweep.worker.loop import Worker, WorkerOptions

    _log_to_stderr()
    database = _database(storage)
    if study not in studies.names(database) and (config := sweep_file.find(study)) is not None:
        actions.create(database, config)
        study = config.study
    handle = _open(database, study)
    chosen = devices.choose(gpu, device)
    options = WorkerOptions(output.resolve(), chosen, count=count, until_idle=until_idle, lease_seconds=lease)
    raise typer.Exit(0 if Worker(database, handle, options).work() else 1)


@app.command()
def run(
    file: SweepFile,
    storage: Storage = DEFAULT_STORAGE,
    output: Output = paths.DEFAULT_OUTPUT,
    workers: Annotated[int, typer.Option(help="Worker processes on this machine, GPUs dealt in turn.", min=1)] = 1,
    device: Annotated[str | None, typer.Option(help="`cpu` or `cuda`; without it GPUs if there are any.")] = None,
    overrides: Overrides = None,
) -> None:
    """The whole job on this machine: create, work with N workers, promote the best, write the report. Resumable."""
    from mathverify_sweep import actions, sweep_file
    from mathverify_sweep.reports import rows, terminal
    from mathverify_sweep.states import RunState
    from mathverify_sweep.store import database as storage_page
    from mathverify_sweep.worker import local

    config = sweep_file.require(file, overrides or ())
    database = _database(storage)
    actions.create(database, config)
    job = local.Job(config.study, storage, output.resolve(), workers, device)
    handle = _open(database, config.study)
    with local.workers(job) as running:

        def is_over(report: StatusReport) -> bool:
            running.require_alive()
            return report.state in ("done", "stopped")

        terminal.watch(database, config.study, is_over, console)
        actions.promote(database, handle, config.promotion.top, None)
        ended = terminal.watch(database, config.study, is_over, console)
    console.print(terminal.leaderboard(rows.leaderboard(ended, top=10)))
    console.print(f"report     {_write_report(database, handle, output)}", soft_wrap=True)
    where = f"--storage {storage_page.safe_url(storage)} --output {output}"
    console.print(f"dashboard  mvsweep dashboard {where}", soft_wrap=True)
    console.print(
        f"W&B        wandb sync {paths.study_folder(output, config.study)}/*/wandb/offline-run-*", soft_wrap=True
    )
    if ended.state == "stopped" or any(row.state is not RunState.COMPLETE for row in ended.promotions):
        raise StudyError(f"study {config.study} did not get to its end: mvsweep status {config.study} says why.")


@app.command()
def status(study: Study = None, storage: Storage = DEFAULT_STORAGE, form: As = Format.table) -> None:
    """Every trial and promotion stage of a study: state, why it ended, value with interval, who runs it."""
    from mathverify_sweep.reports import rows, terminal

    database = _database(storage)
    found = rows.status(database, _name(database, study))
    _print(form, terminal.status(found), found)


@app.command()
def leaderboard(
    study: Study = None,
    storage: Storage = DEFAULT_STORAGE,
    top: Annotated[int, typer.Option(help="Rows to show.", min=1)] = 10,
    form: As = Format.table,
) -> None:
    """The best trials with intervals, the baselines below them, and what promotion made of them."""
    from mathverify_sweep.reports import rows, terminal

    database = _database(storage)
    found = rows.leaderboard(rows.status(database, _name(database, study)), top)
    _print(form, terminal.leaderboard(found), found)


@app.command()
def stop(
    study: Study = None,
    storage: Storage = DEFAULT_STORAGE,
    now: Annotated[bool, typer.Option("--now", help="End the running trials too, as stopped_by_user.")] = False,
) -> None:
    """Hand out no more runs; those that run are finished, unless `--now`. `mvsweep resume` takes it back."""
    from mathverify_sweep import actions

    database = _database(storage)
    handle = _open(database, study)
    ended = actions.stop(database, handle, now)
    console.print(f"study {handle.config.study} stopped" + (f"; {ended} running run(s) ended" if now else ""))


@app.command()
def resume(study: Study = None, storage: Storage = DEFAULT_STORAGE) -> None:
    """Hand out runs of a stopped study again."""
    from mathverify_sweep.store import studies

    database = _database(storage)
    handle = _open(database, study)
    studies.resume(database, handle.config.study)
    console.print(f"study {handle.config.study} goes on")


@app.command()
def enqueue(
    study: Study = None,
    storage: Storage = DEFAULT_STORAGE,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="AXIS=VALUE", help="One trial: `--set learning_rate=2e-4`.")
    ] = None,
    table: Annotated[Path | None, typer.Option(help="CSV with one trial a row and one axis a column.")] = None,
) -> None:
    """Try settings that you name before the sampler's own: one trial by `--set`, or a table of them."""
    from mathverify_sweep import actions

    database = _database(storage)
    handle = _open(database, study)
    added = actions.enqueue(handle, settings or (), table)
    console.print(f"{added} trial(s) enqueued in {handle.config.study}; they count in its budget of trials")


@app.command()
def promote(
    study: Study = None,
    storage: Storage = DEFAULT_STORAGE,
    top: Annotated[int, typer.Option(help="How many of the best trials.", min=1)] = 1,
    trial: Annotated[int | None, typer.Option(help="This trial instead of the best.", min=0)] = None,
) -> None:
    """Queue long cumulative runs of the best trials; the study's workers train them. Said twice, it changes nothing."""
    from mathverify_sweep import actions

    database = _database(storage)
    handle = _open(database, study)
    for done in actions.promote(database, handle, top, trial):
        stages = ", ".join(f"{rows:,} rows" for rows in done.stages)
        how = "promoted" if done.created else "is promoted already"
        console.print(f"trial {done.trial_number} {how}: stages {stages} (promotion {done.promotion_id})")


@app.command()
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

    database = _database(storage)
    with contextlib.redirect_stdout(sys.stderr):  # some training libraries greet on standard output
        found = actions.evaluate(database, runs.get(database, run_id), split.value, output.resolve(), device)
    _print(form, terminal.metrics(found), found)


@app.command()
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

    database = _database(storage)
    found = actions.compare(database, runs.get(database, first), runs.get(database, second), split.value)
    _print(form, terminal.difference(found, first, second), found)


@app.command()
def report(study: Study = None, storage: Storage = DEFAULT_STORAGE, output: Output = paths.DEFAULT_OUTPUT) -> None:
    """Write the study's page: one self-contained HTML file with interactive plots."""
    database = _database(storage)
    handle = _open(database, study)
    console.print(_write_report(database, handle, output), soft_wrap=True)


@app.command()
def dashboard(
    storage: Storage = DEFAULT_STORAGE,
    output: Output = paths.DEFAULT_OUTPUT,
    host: Annotated[str, typer.Option(help="Address to listen on; only this machine by default.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8080,
) -> None:
    """Serve optuna-dashboard on the database, with the trials' notes and images."""
    from mathverify_sweep.study import dashboard as page

    console.print(f"http://{host}:{port}/ (Ctrl-C ends it)")
    page.serve(_database(storage), output.resolve(), host, port)


@data_app.command("build")
def data_build(
    source: Annotated[Path, typer.Argument(help="Correct solutions as GSM8K has them: question and answer.")],
    target: Annotated[Path, typer.Argument(help="File to write: .parquet, .csv or .jsonl.")],
    wrong_share: Annotated[float, typer.Option(help="Share of rows that get an error.", min=0, max=1)] = 0.6,
    seed: Annotated[int, typer.Option(help="Seed of what is changed.", min=0)] = 0,
) -> None:
    """Labelled rows from correct solutions: an error is injected into a step and carried through to the answer."""
    from mathverify_sweep import actions

    built = actions.build_rows(source, target, wrong_share, seed)
    console.print(f"{target}: {built} rows", soft_wrap=True)


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


def _log_to_stderr() -> None:
    """Our own lines from INFO on, other people's from WARNING on."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname).1s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("mathverify_sweep").setLevel(logging.INFO)


def _print(form: Format, table: RenderableType, found: object) -> None:
    if form is Format.json:
        typer.echo(to_json(found, indent=2))
    else:
        console.print(table)


def _write_report(database: Database, handle: StudyHandle, output: Path) -> Path:
    from mathverify_sweep.reports import html

    page = paths.report_file(output.resolve(), handle.config.study)
    html.write(database, handle.config.study, page, datetime.now(UTC))
    return page


def _database(url: str) -> Database:
    from mathverify_sweep.store import database

    engine = database.connect(url)
    database.upgrade(engine)
    return engine


def _open(database: Database, name: str | None) -> StudyHandle:
    from mathverify_sweep.study.study import open_study

    return open_study(database, _name(database, name))


def _name(database: Database, name: str | None) -> str:
    from mathverify_sweep.store import studies

    if name is not None:
        return name
    names = studies.names(database)
    if len(names) != 1:
        there = ", ".join(names) or "none. Make one: mvsweep create FILE"
        raise StudyError(f"name the study: this database has {there}.")
    return names[0]
