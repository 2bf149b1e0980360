"""What a study is told: check and create it, queue trials and promotions, stop it and let it go on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from mathverify_sweep.cli.shared import (
    DEFAULT_STORAGE,
    As,
    Format,
    Overrides,
    Smoke,
    Storage,
    Study,
    SweepFile,
    console,
    open_database,
    open_study,
    read_config,
    show,
)


def check(file: SweepFile, overrides: Overrides = None, smoke: Smoke = False, form: As = Format.table) -> None:
    """Validate a sweep file; show its search space, splits and rows. Writes nothing."""
    from mathverify_sweep import sweep_file
    from mathverify_sweep.reports import checked

    found = checked.check(read_config(file, overrides, smoke), sweep_file.read_as(file))
    show(form, checked.rendered(found), found)


def create(file: SweepFile, storage: Storage = DEFAULT_STORAGE, overrides: Overrides = None) -> None:
    """Create the study of a sweep file. Repeatable; a study is never changed by it."""
    from mathverify_sweep import actions, sweep_file

    config = sweep_file.require(file, overrides or ())
    created = actions.create(open_database(storage), config)
    console.print(f"study {config.study} {'created' if created else 'is there already, unchanged'}")
    console.print("start workers, one for each GPU, on any machine that reaches the database:")
    option = "" if storage == DEFAULT_STORAGE or "OPTUNA_STORAGE" in os.environ else " --storage URL"
    console.print(f"  mvsweep worker {config.study}{option}", soft_wrap=True)


def stop(
    study: Study = None,
    storage: Storage = DEFAULT_STORAGE,
    now: Annotated[bool, typer.Option("--now", help="End the running trials too, as stopped_by_user.")] = False,
) -> None:
    """Hand out no more runs; those that run are finished, unless `--now`. `mvsweep resume` takes it back."""
    from mathverify_sweep import actions

    database = open_database(storage)
    handle = open_study(database, study)
    ended = actions.stop(database, handle, now)
    console.print(f"study {handle.config.study} stopped" + (f"; {ended} running run(s) ended" if now else ""))


def resume(study: Study = None, storage: Storage = DEFAULT_STORAGE) -> None:
    """Hand out runs of a stopped study again."""
    from mathverify_sweep.store import studies

    database = open_database(storage)
    handle = open_study(database, study)
    studies.resume(database, handle.config.study)
    console.print(f"study {handle.config.study} goes on")


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

    database = open_database(storage)
    handle = open_study(database, study)
    added = actions.enqueue(handle, settings or (), table)
    console.print(f"{added} trial(s) enqueued in {handle.config.study}; they count in its budget of trials")


def promote(
    study: Study = None,
    storage: Storage = DEFAULT_STORAGE,
    top: Annotated[int, typer.Option(help="How many of the best trials.", min=1)] = 1,
    trial: Annotated[int | None, typer.Option(help="This trial instead of the best.", min=0)] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a promotion key: `--set promotion.plan=trunk`."),
    ] = None,
) -> None:
    """Queue long runs of the best trials by a plan; the study's workers train them. Said twice, it changes nothing.

    The plan is that of the sweep file, or `--set promotion.plan=` cumulative, sequential, replay, scratch, trunk or
    rounds. Stages: `--set promotion.stages=[20000,0.5,all]`.
    """
    from mathverify_sweep import actions

    database = open_database(storage)
    handle = open_study(database, study)
    for done in actions.promote(database, handle, top, trial, overrides or ()):
        stages = ", ".join(f"{spec.train_rows:,} rows" for spec in done.stages)
        how = "promoted" if done.created else "is promoted already"
        console.print(
            f"trial {done.trial_number} {how}: {done.plan}, stages {stages} (promotion {done.promotion_id})",
            soft_wrap=True,
        )
