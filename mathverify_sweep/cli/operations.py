"""For the person on call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer
from rich.text import Text

from mathverify_sweep import paths
from mathverify_sweep.cli.shared import DEFAULT_STORAGE, As, Format, Output, Storage, Study, show_lines

if TYPE_CHECKING:
    from mathverify_sweep.operations.doctor import Diagnosis

_STYLES = {"ok": "green", "warning": "yellow", "problem": "red"}


def doctor(
    study: Study = None,
    storage: Storage = DEFAULT_STORAGE,
    output: Output = paths.DEFAULT_OUTPUT,
    form: As = Format.table,
) -> None:
    """Check this machine and what it talks to: one line each, with a fix. Exit code 0 only without problems."""
    from mathverify_sweep.operations import doctor as page

    found = page.diagnose(page.Patient(storage, output.resolve(), study))
    show_lines(form, _diagnosis(found), found)
    raise typer.Exit(0 if found.healthy else 1)


def _diagnosis(found: Diagnosis) -> Iterator[Text]:
    for finding in found.findings:
        fix = f". {finding.fix}" if finding.fix else ""
        line = Text(f"{finding.level:<8}", style=_STYLES[finding.level])
        yield line.append(f" {finding.about}: {finding.found}{fix}", style="default")
    yield Text(f"looked at in {found.seconds:.1f} s")
