"""Faults on purpose."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from mathverify_sweep.cli.shared import DEFAULT_STORAGE, As, Format, Storage, console, show
from mathverify_sweep.errors import ConfigError

if TYPE_CHECKING:
    from mathverify_sweep.chaos.scenarios import Scenario
    from mathverify_sweep.chaos.sheet import Line


def chaos(
    storage: Storage = DEFAULT_STORAGE,
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="This fault alone; may be said more than once.")
    ] = None,
    form: As = Format.table,
) -> None:
    """Hurt workers of a throw-away study beside your database, and see that nothing is lost. Minutes, no GPU.

    They train nothing. PostgreSQL: the account must be allowed to create a schema. Exit code 0 only when all passed.
    """
    from mathverify_sweep.chaos import sheet
    from mathverify_sweep.chaos.scenarios import SCENARIOS

    chosen = _chosen(SCENARIOS, only or ())
    lines = []
    for line in sheet.play_all(storage, chosen):
        lines.append(line)
        if form is Format.table:
            for text in _shown(line):
                console.print(text, soft_wrap=True)
    failed = sum(not line.passed for line in lines)
    show(form, Text(f"{len(lines) - failed} of {len(lines)} passed"), lines)
    raise typer.Exit(1 if failed else 0)


def _chosen(scenarios: tuple[Scenario, ...], only: list[str] | tuple[()]) -> list[Scenario]:
    known = {scenario.name: scenario for scenario in scenarios}
    unknown = [name for name in only if name not in known]
    if unknown:
        raise ConfigError("--only", [f"must be one of {', '.join(known)}, got {unknown[0]!r}."])
    return [known[name] for name in only] or list(scenarios)


def _shown(line: Line) -> Iterator[Text]:
    verdict = Text("pass", style="green") if line.passed else Text("FAIL", style="red")
    yield verdict.append(f"  {line.name:<10} {line.promise} ({line.seconds:.0f} s)", style="default")
    for broken in line.broken:
        yield Text(f"      {broken}")
