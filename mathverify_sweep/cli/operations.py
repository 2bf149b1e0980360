"""For the person on call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from mathverify_sweep import paths
from mathverify_sweep.cli.shared import (
    DEFAULT_STORAGE,
    As,
    Format,
    Output,
    Storage,
    Study,
    console,
    log_to_stderr,
    open_database,
    open_study,
    show_lines,
)

if TYPE_CHECKING:
    from mathverify_sweep.operations.doctor import Diagnosis
    from mathverify_sweep.operations.reap import Mended
    from mathverify_sweep.operations.suspects import Suspect, Worker

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


def reap(
    study: Study = None,
    storage: Storage = DEFAULT_STORAGE,
    output: Output = paths.DEFAULT_OUTPUT,
    watch: Annotated[
        bool, typer.Option("--watch", help="Watch the leases for two periods: tells of other hosts, too.")
    ] = False,
    mend: Annotated[
        bool, typer.Option("--mend", help="Expire the dead, and tell Optuna how their trials ended.")
    ] = False,
    accept: Annotated[
        str | None, typer.Option(metavar="RUN", help="Let a result count that came after its lease was lost.")
    ] = None,
    form: As = Format.table,
) -> None:
    """List runs that may be dead: where they are, and what is known of them. With `--mend`, end those that are."""
    from mathverify_sweep.operations import accept as late
    from mathverify_sweep.operations import reap as page
    from mathverify_sweep.operations.suspects import suspects
    from mathverify_sweep.store import runs

    database = open_database(storage)
    handle = open_study(database, study)
    if accept is not None:
        heir = late.accept(database, handle, runs.get(database, accept), output.resolve())
        show_lines(form, [Text(f"accepted: run {heir.run_id} of trial {heir.trial_number} has the result")], heir)
        return
    if watch:
        typer.echo("watching the leases: up to two periods, 2 minutes by default", err=True)
    found = page.watched(database, handle, page.Clock()) if watch else suspects(database, handle)
    if not mend:
        show_lines(form, _suspects(found), found)
        return
    mended = page.mend(database, handle, found, output.resolve())
    show_lines(form, _mended(mended), mended)
    raise typer.Exit(1 if mended.unknown else 0)


def proxy(
    storage: Storage = DEFAULT_STORAGE,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Whoever reaches it can change every study: keep it private.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 13000,
) -> None:
    """Serve Optuna's side of the database to workers (`mvsweep worker --optuna-proxy`), which then need it less."""
    from mathverify_sweep.study import proxy_server

    log_to_stderr()
    console.print(f"Optuna's proxy listens on {host}:{port} (Ctrl-C ends it); on the workers:")
    console.print(f"  mvsweep worker STUDY --optuna-proxy {host}:{port}", soft_wrap=True)
    proxy_server.serve(open_database(storage), host, port)


def _suspects(found: Sequence[Suspect]) -> Iterator[Text]:
    styles = {"dead": "red", "alive": "green", "unknown": "yellow", "late": "cyan"}
    for suspect in found:
        if suspect.kind == "late":
            how, what = "late", f"{_run(suspect)}: {suspect.why}; mvsweep reap --accept {suspect.run_id}"
        else:
            how, what = suspect.life, f"{suspect.kind:<8}{_run(suspect)}: {suspect.why}"
        yield Text(f"{how:<8} ", style=styles[how]).append(what.strip(), style="default")
        if suspect.worker is not None:
            yield Text(f"         {_where(suspect.worker)}")
    if not found:
        yield Text("nothing to reap: no run is RUNNING, none is blocked, and Optuna knows how each trial ended")


def _run(suspect: Suspect) -> str:
    trial = "a place for a trial" if suspect.trial_number is None else f"trial {suspect.trial_number}"
    stage = f" stage {suspect.stage}" if suspect.stage else ""
    run = f" run {suspect.run_id} attempt {suspect.attempt}" if suspect.run_id else ""
    return f"{run} {trial}{stage}"


def _where(worker: Worker) -> str:
    job = f", job {worker.job_id}" if worker.job_id else ""
    heard = worker.renewed_at.isoformat(timespec="seconds") if worker.renewed_at else "never"
    boot = worker.boot_id or "not known"
    return (
        f"worker {worker.worker_id} on {worker.host}, pid {worker.pid}{job}, {worker.gpu}, boot {boot}; "
        f"renewal {worker.renewals} at {heard}"
    )


def _mended(found: Mended) -> Iterator[Text]:
    yield from map(Text, found.done or ("nothing to mend",))
    for suspect in found.unknown:
        yield Text(f"left alone, not known to be dead:{_run(suspect)}: {suspect.why}; try --watch")
