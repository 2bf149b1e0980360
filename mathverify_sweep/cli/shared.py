"""What the commands have in common: their options, how they open a study, how they print."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic_core import to_json
from rich.console import Console, RenderableType
from rich.text import Text

from mathverify_sweep import depot, paths, redaction
from mathverify_sweep.errors import StudyError

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine as Database

    from mathverify_sweep.config import SweepConfig
    from mathverify_sweep.study.study import StudyHandle

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
Smoke = Annotated[
    bool,
    typer.Option("--smoke", help="Small: the built-in model, 48 generated rows, two trials; under a name of its own."),
]
_DATABASE = "Database: `sqlite:///FILE` or `postgresql://USER:PASSWORD@HOST/NAME`."
Storage = Annotated[str, typer.Option("--storage", envvar="OPTUNA_STORAGE", metavar="URL", help=_DATABASE)]
_OUTPUT = "Adapters, checkpoints, W&B files, reports; of a URL (`s3://BUCKET/DIR`) this machine keeps a copy."
Output = Annotated[
    Path,
    typer.Option("--output", envvar="MVSWEEP_OUTPUT", metavar="DIR|URL", parser=depot.opened, help=_OUTPUT),
]
As = Annotated[Format, typer.Option("-f", "--format", help="A table for people, or JSON for programs.")]
DEFAULT_STORAGE = f"sqlite:///{paths.DEFAULT_DATABASE}"


def read_config(file: str, overrides: list[str] | None, small: bool) -> SweepConfig:
    """The sweep file, overridden, and made small if that is wanted."""
    from mathverify_sweep import sweep_file
    from mathverify_sweep.smoke import smoke

    config = sweep_file.require(file, overrides or ())
    return smoke(config) if small else config


def open_database(url: str) -> Database:
    """The database, brought to our version."""
    from mathverify_sweep.store import database

    engine = database.connect(url)
    database.upgrade(engine)
    return engine


def open_study(database: Database, name: str | None, optuna_proxy: str | None = None) -> StudyHandle:
    """The study of that name, or the only one; Optuna behind a proxy if there is one."""
    from mathverify_sweep.study import study

    return study.open_study(database, the_study(database, name), optuna_proxy)


def the_study(database: Database, name: str | None) -> str:
    """`name`, or that of the only study. Raises StudyError when there are more, or none."""
    from mathverify_sweep.store import studies

    if name is not None:
        return name
    names = studies.names(database)
    if len(names) != 1:
        there = ", ".join(names) or "none. Make one: mvsweep create FILE"
        raise StudyError(f"name the study: this database has {there}.")
    return names[0]


def show(form: Format, table: RenderableType, found: object) -> None:
    """Print a table for people, or what it was made from as JSON."""
    if form is Format.json:
        typer.echo(to_json(found, indent=2))
    else:
        console.print(table)


def show_lines(form: Format, lines: Iterable[Text], found: object) -> None:
    """Print lines that stay lines, however long, or what they were made from as JSON."""
    if form is Format.json:
        typer.echo(to_json(found, indent=2))
        return
    for line in lines:
        console.print(line, soft_wrap=True)


def write_report(database: Database, handle: StudyHandle, output: Path) -> Path:
    """Write the study's page; where it is."""
    from mathverify_sweep.reports import html
    from mathverify_sweep.verifiers import gate

    name = handle.config.study
    page = paths.report_file(output.resolve(), name)
    html.write(database, name, page, datetime.now(UTC), gate.kept(paths.gate_file(output.resolve(), name)))
    return page


def log_to_stderr() -> None:
    """Our own lines from INFO on, other people's from WARNING on."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname).1s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("mathverify_sweep").setLevel(logging.INFO)
    redaction.mask_logs()
