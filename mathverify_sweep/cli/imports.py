"""What brings in earlier results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mathverify_sweep.cli.shared import (
    DEFAULT_STORAGE,
    As,
    Format,
    Storage,
    Study,
    console,
    open_database,
    open_study,
    show_lines,
)


def wandb_sweep(
    file: Annotated[Path, typer.Argument(help="A W&B sweep file (.yaml).")],
    target: Annotated[
        Path | None, typer.Option("-o", metavar="FILE", help="Sweep file to write; printed when absent.")
    ] = None,
) -> None:
    """A W&B sweep file as one of ours, to go on from: every key has a comment that says what it was read as."""
    from mathverify_sweep import imports

    text = imports.from_wandb_sweep(file, None if target is None else target.parent)
    if target is None:
        typer.echo(text, nl=False)
        return
    try:
        with target.open("x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError:
        raise typer.BadParameter(f"{target} is there already. Remove it, or name another.", param_hint="-o") from None
    console.print(f"{target} written: mvsweep check {target}", soft_wrap=True)


def table(
    file: Annotated[Path, typer.Argument(help="CSV: a finished run a row, as W&B exports them or by hand.")],
    study: Study = None,
    storage: Storage = DEFAULT_STORAGE,
    completed: Annotated[
        bool,
        typer.Option(
            "--completed",
            help="Their scores count: the same rows were judged by the same figure. The trials are complete, not run.",
        ),
    ] = False,
    form: As = Format.table,
) -> None:
    """Finished runs of elsewhere as trials of a study: their settings tried first, or their scores taken over.

    Columns are named as in W&B's files, the score by its figure (`accuracy`, `val_loss`). What is neither is kept
    beside the trial. Said twice, it changes nothing.
    """
    from rich.text import Text

    from mathverify_sweep import imports

    database = open_database(storage)
    found = imports.from_table(database, open_study(database, study), file, completed)
    how = "taken over as complete" if completed else "enqueued; they count in its budget of trials"
    lines = [Text(f"{found.study}: {found.added} trial(s) from {file} {how}")]
    lines += [Text(f"left out: {reason}", style="yellow") for reason in found.left_out]
    lines += [Text(f"kept beside them: {', '.join(found.kept)}")] if found.kept else []
    show_lines(form, lines, found)
