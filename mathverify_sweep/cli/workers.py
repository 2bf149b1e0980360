"""What trains: one worker, or the whole job on this machine."""

from __future__ import annotations

import random
import re
import time
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from mathverify_sweep import paths
from mathverify_sweep.cli.shared import (
    DEFAULT_STORAGE,
    As,
    Format,
    Output,
    Overrides,
    Smoke,
    Storage,
    SweepFile,
    console,
    log_to_stderr,
    open_database,
    open_study,
    read_config,
    show,
    write_report,
)
from mathverify_sweep.errors import StudyError
from mathverify_sweep.states import EndReason

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine as Database

    from mathverify_sweep.reports.models import StatusReport
    from mathverify_sweep.study.study import StudyHandle

ENDED_WELL = (EndReason.FINISHED, EndReason.PRUNED)
"""How a stage may end: trained, or not needed."""
START_SECONDS = 900.0
"""How long a worker that starts waits for a database that is away, or has no connection left."""


class EngineChoice(StrEnum):
    """What trains the runs."""

    auto = "auto"
    packed = "packed"
    reference = "reference"
    rehearsal = "rehearsal"


def auto_or_count(value: str) -> str:
    """`auto`, or a whole number above 0."""
    if value != "auto" and not (value.isdecimal() and int(value) > 0):
        raise typer.BadParameter(f"must be auto or a whole number above 0, got {value!r}")
    return value


def seconds(value: str | None) -> float | None:
    """`90s`, `30m`, `12h` or `2d` in seconds."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", value.strip())
    if found is None or float(found[1]) == 0:
        raise typer.BadParameter(f"must be a time such as 12h, 90m or 600s, got {value!r}")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


def number_or_auto(value: str) -> int | None:
    """None for `auto`."""
    return None if value == "auto" else int(value)


Slots = Annotated[
    str, typer.Option(metavar="auto|N", help="Runs that share the device at once, at most.", callback=auto_or_count)
]
TokenBudget = Annotated[
    str, typer.Option(metavar="auto|N", help="Tokens of all slots in one pass.", callback=auto_or_count)
]


def worker(
    study: Annotated[
        str, typer.Argument(metavar="FILE_OR_STUDY", help="A study's name, or a sweep file to create it from.")
    ],
    storage: Storage = DEFAULT_STORAGE,
    output: Output = paths.DEFAULT_OUTPUT,
    gpu: Annotated[int | None, typer.Option(help="GPU number; without it the first one that no worker holds.")] = None,
    device: Annotated[str | None, typer.Option(help="`cpu` or `cuda`.")] = None,
    engine: Annotated[
        EngineChoice,
        typer.Option(help="`rehearsal` trains nothing: it takes time and makes up values, to try a set-up."),
    ] = EngineChoice.auto,
    slots: Slots = "auto",
    token_budget: TokenBudget = "auto",
    optuna_proxy: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Reach Optuna through `mvsweep proxy`: fewer connections.")
    ] = None,
    count: Annotated[int | None, typer.Option(help="Take at most this many runs.", min=1)] = None,
    until_idle: Annotated[
        bool, typer.Option("--until-idle", help="End when the study has nothing left to do.")
    ] = False,
    trust_gpu: Annotated[bool, typer.Option("--trust-gpu", help="Work on a GPU that is quarantined.")] = False,
    checkpoint_seconds: Annotated[
        float, typer.Option(help="Training time between two checkpoints of a run.", min=1)
    ] = 300.0,
    hang_seconds: Annotated[
        float, typer.Option(help="An engine that takes no step for this long is ended.", min=1)
    ] = 1800.0,
    lease: Annotated[
        float, typer.Option(help="Lease period in seconds: a dead worker is noticed after two.", min=1)
    ] = 60.0,
    time_limit: Annotated[
        str | None, typer.Option(metavar="12h", help="Hand the runs back and end before this long has passed.")
    ] = None,
) -> None:
    """Work on a study: take trials and promotion stages until it is stopped.

    Ctrl-C, SIGTERM and the time limit have checkpoints written and hand the runs back within 30 s; the next worker goes
    on from there.
    """
    from mathverify_sweep import actions, sweep_file
    from mathverify_sweep.store import outages, studies
    from mathverify_sweep.worker import devices
    from mathverify_sweep.worker.engine import EngineOptions
    from mathverify_sweep.worker.loop import Worker
    from mathverify_sweep.worker.options import WorkerOptions

    def opened() -> tuple[Database, StudyHandle]:
        database = open_database(storage)
        name = study
        if study not in studies.names(database) and (config := sweep_file.find(study)) is not None:
            actions.create(database, config)
            name = config.study
        return database, open_study(database, name, optuna_proxy)

    limit = seconds(time_limit)
    log_to_stderr()
    database, handle = outages.patiently(opened, START_SECONDS, random.Random(), time.monotonic, time.sleep)
    pretended = engine is EngineChoice.rehearsal
    options = WorkerOptions(
        output=output.resolve(),
        device=devices.pretended(gpu) if pretended else devices.choose(gpu, device),
        engine=EngineOptions(engine.value, number_or_auto(slots), number_or_auto(token_budget)),
        count=count,
        until_idle=until_idle,
        trust_gpu=trust_gpu,
        lease_seconds=lease,
        hang_seconds=hang_seconds,
        checkpoint_seconds=checkpoint_seconds,
        time_limit_seconds=limit,
    )
    raise typer.Exit(0 if Worker(database, handle, options).work() else 1)


def plan(
    file: SweepFile,
    gpu: Annotated[int | None, typer.Option(help="GPU number; without it the first one that no worker holds.")] = None,
    device: Annotated[str | None, typer.Option(help="`cpu` or `cuda`.")] = None,
    workers: Annotated[
        int, typer.Option(help="Workers that you will start: with a GPU each, or sharing this CPU.", min=1)
    ] = 1,
    slots: Slots = "auto",
    token_budget: TokenBudget = "auto",
    overrides: Overrides = None,
    form: As = Format.table,
) -> None:
    """Predict memory, speed, time and device-hours of a sweep, by measuring on this device. Creates nothing.

    Takes from half a minute to some minutes. What it measures is kept in your cache: workers of this study on such a
    device then have `mvsweep status` and the report hold what they take against it.
    """
    from mathverify_sweep import sweep_file
    from mathverify_sweep.operations import plan as page
    from mathverify_sweep.reports import planned
    from mathverify_sweep.worker import devices
    from mathverify_sweep.worker.engine import EngineOptions

    config = sweep_file.require(file, overrides or ())
    options = EngineOptions(slots=number_or_auto(slots), token_budget=number_or_auto(token_budget))
    wanted = page.Wanted(devices.choose(gpu, device), options, workers)
    with Console(stderr=True).status("reading the data") as shown:
        found = page.make(config, wanted, shown.update)
    show(form, planned.rendered(found), found)


def run(
    file: SweepFile,
    storage: Storage = DEFAULT_STORAGE,
    output: Output = paths.DEFAULT_OUTPUT,
    workers: Annotated[int, typer.Option(help="Worker processes on this machine, GPUs dealt in turn.", min=1)] = 1,
    device: Annotated[str | None, typer.Option(help="`cpu` or `cuda`; without it GPUs if there are any.")] = None,
    overrides: Overrides = None,
    smoke: Smoke = False,
) -> None:
    """The whole job on this machine: create, work with N workers, promote the best, write the report. Resumable.

    `--smoke` runs all of a file's parts on a CPU in less than a minute; its figures mean nothing.
    """
    from mathverify_sweep import actions
    from mathverify_sweep.reports import rows, terminal
    from mathverify_sweep.store import database as storage_page
    from mathverify_sweep.worker import local

    config = read_config(file, overrides, smoke)
    database = open_database(storage)
    actions.create(database, config)
    job = local.Job(config.study, storage, output.resolve(), workers, device)
    handle = open_study(database, config.study)
    with local.workers(job) as running:

        def is_over(report: StatusReport) -> bool:
            if report.state in ("done", "stopped"):
                return True
            running.require_alive()
            return False

        terminal.watch(database, config.study, is_over, console)
        actions.promote(database, handle, config.promotion.top, None)
        ended = terminal.watch(database, config.study, is_over, console)
    console.print(terminal.leaderboard(rows.leaderboard(ended, top=10)))
    console.print(f"report     {write_report(database, handle, output)}", soft_wrap=True)
    where = f"--storage {storage_page.safe_url(storage)} --output {output}"
    console.print(f"dashboard  mvsweep dashboard {where}", soft_wrap=True)
    console.print(
        f"W&B        wandb sync {paths.study_folder(output, config.study)}/*/wandb/offline-run-*", soft_wrap=True
    )
    stages = [stage for row in ended.promotions for stage in row.stages]
    if ended.state == "stopped" or any(stage.end_reason not in ENDED_WELL for stage in stages):
        raise StudyError(f"study {config.study} did not get to its end: mvsweep status {config.study} says why.")
