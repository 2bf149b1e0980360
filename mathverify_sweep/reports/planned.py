"""What `mvsweep plan` says, as values that go to JSON, and as lines for people."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from mathverify_sweep.rates import Rates
from mathverify_sweep.reports.terminal import table_of, time_of
from mathverify_sweep.specs import Frozen


class Part(Frozen):
    """Some of a sweep's work. `seconds` from its beginning to its end, `device_seconds` of all workers together."""

    name: str
    runs: int
    rows_trained: int
    rows_judged: int
    device_seconds: float
    seconds: float


class PlanReport(Frozen):
    """What a sweep will take. `note`: why the engine is not the packed one; `how`: how it uses its device."""

    study: str
    device: str
    workers: int
    engine: str
    note: str
    how: str
    rates: Rates
    load_seconds: float
    peak_bytes: int
    device_bytes: int
    parts: tuple[Part, ...]
    assumed: tuple[str, ...]


def rendered(report: PlanReport) -> RenderableType:
    """The report for people."""
    rates = report.rates
    head = [f"{report.study}: {report.workers} worker(s) on {report.device}, {report.engine} engine"]
    if report.note:
        head.append(f"one run at a time: {report.note}")
    together = f"{rates.together:,.0f} training rows a second"
    if rates.slots > 1:
        together += f" with {rates.slots} runs side by side, {rates.alone:,.0f} with one"
    head += [
        report.how,
        f"memory {_gigabytes(report.peak_bytes)} of {_gigabytes(report.device_bytes)} GB",
        f"{together}; {rates.judged:,.0f} validation rows a second",
        f"{rates.run_seconds:.1f} s to start and end a run, {report.load_seconds:.0f} s to load, "
        f"{rates.first_seconds:.1f} s more for a worker's first runs",
    ]
    table = table_of("work", "runs", "rows trained", "rows judged", "device-hours", "time")
    for part in report.parts:
        numbers = (f"{part.runs:,}", f"{part.rows_trained:,}", f"{part.rows_judged:,}")
        table.add_row(part.name, *numbers, f"{part.device_seconds / 3600:.2f}", time_of(part.seconds))
    return Group(Text("\n".join(head)), table, Text("\n".join(report.assumed), style="dim"))


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f}"
