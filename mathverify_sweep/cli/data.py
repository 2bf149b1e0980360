"""What makes labelled rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mathverify_sweep.cli.shared import console


def build(
    source: Annotated[Path, typer.Argument(help="Correct solutions as GSM8K has them: question and answer.")],
    target: Annotated[Path, typer.Argument(help="File to write: .parquet, .csv or .jsonl.")],
    wrong_share: Annotated[float, typer.Option(help="Share of rows that get an error.", min=0, max=1)] = 0.6,
    seed: Annotated[int, typer.Option(help="Seed of what is changed.", min=0)] = 0,
) -> None:
    """Labelled rows from correct solutions: an error is injected into a step and carried through to the answer."""
    from mathverify_sweep import actions

    built = actions.build_rows(source, target, wrong_share, seed)
    console.print(f"{target}: {built} rows", soft_wrap=True)
