"""What a sweep file amounts to: its search space, its splits, its rungs and stages. Reads the data, writes nothing."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mathverify_sweep.config import SweepConfig
from mathverify_sweep.data import dataset
from mathverify_sweep.data.dataset import VerificationData
from mathverify_sweep.data.read import is_local
from mathverify_sweep.errors import DataError, HubUnreachable
from mathverify_sweep.specs import Frozen, Split

SPLITS: tuple[Split, ...] = ("train", "validation", "test", "gate")


class SplitSize(Frozen):
    """Size of one split."""

    rows: int
    questions: int
    correct_share: float


class AxisRow(Frozen):
    """A tuned axis in words."""

    name: str
    values: str
    when: str = ""


class CheckReport(Frozen):
    """A valid sweep file. Without `splits` the data could not be reached from here, and `note` says why."""

    study: str
    base_model: str
    objective: str
    read_as: tuple[str, ...]
    axes: tuple[AxisRow, ...]
    fixed: dict[str, str]
    enqueued: int
    trials: int
    train_rows: int
    rungs: tuple[int, ...]
    stages: tuple[str, ...]
    splits: dict[str, SplitSize]
    dropped: dict[str, int]
    note: str = ""


def check(config: SweepConfig, read_as: tuple[str, ...] = ()) -> CheckReport:
    """Size the splits of a valid sweep file. Raises DataError for data that is there and bad."""
    data, note = _reachable(config)
    model = config.base_model
    return CheckReport(
        study=config.study,
        base_model=f"{model.name} ({model.quantization})",
        objective=config.objective,
        read_as=read_as,
        axes=tuple(_axis_row(axis.name, str(axis.distribution), dict(axis.when)) for axis in config.space.axes),
        fixed={name: str(value) for name, value in config.space.fixed.items()},
        enqueued=len(config.enqueue),
        trials=config.trials,
        train_rows=config.data.train_rows,
        rungs=config.rungs,
        stages=tuple(map(str, config.promotion.stages)),
        splits={name: _size(data, name) for name in SPLITS} if data else {},
        dropped=dict(data.dropped) if data else {},
        note=note,
    )


def load_data(config: SweepConfig) -> VerificationData:
    """The study's data. Raises DataError when it has fewer training rows than a trial is to see."""
    data = dataset.load(config.data_spec)
    if config.data.train_rows > len(data.train):
        raise DataError(
            f"data.train_rows: {config.data.source} has {len(data.train)} training rows after the split, "
            f"got {config.data.train_rows}. Lower it."
        )
    return data


def rendered(report: CheckReport) -> RenderableType:
    """The report for people."""
    head = Text(f"{report.study}: {report.base_model}, {report.trials} trials of {report.train_rows:,} rows\n")
    head.append(f"objective {report.objective}; rungs at {_numbers(report.rungs)} rows seen; ")
    head.append(f"promotion stages {', '.join(report.stages)}\n")
    for line in report.read_as:
        head.append(f"read as: {line}\n", style="cyan")
    space = Table("axis", "values", "only when", title=f"search space ({report.enqueued} settings enqueued first)")
    for axis in report.axes:
        space.add_row(axis.name, axis.values, axis.when)
    for name, value in report.fixed.items():
        space.add_row(name, f"{value} (fixed)", "")
    return Group(head, space, _split_table(report))


def _reachable(config: SweepConfig) -> tuple[VerificationData | None, str]:
    source = config.data.source
    if is_local(source) and not Path(source).exists():
        return None, f"data not read: there is no file {source} on this machine"
    try:
        return load_data(config), ""
    except HubUnreachable as error:
        return None, f"data not read: {error}"


def _axis_row(name: str, values: str, when: dict[str, tuple[object, ...]]) -> AxisRow:
    conditions = (f"{axis} is {' or '.join(map(str, chosen))}" for axis, chosen in when.items())
    return AxisRow(name=name, values=values, when=" and ".join(conditions))


def _size(data: VerificationData, name: Split) -> SplitSize:
    rows = data.split(name)
    correct = sum(row.is_correct for row in rows)
    questions = len(set(dataset.groups(rows)))
    return SplitSize(rows=len(rows), questions=questions, correct_share=correct / len(rows) if rows else 0.0)


def _split_table(report: CheckReport) -> RenderableType:
    if not report.splits:
        return Text(report.note, style="yellow")
    table = Table("split", "rows", "questions", "correct", title="data")
    for name, size in report.splits.items():
        table.add_row(name, f"{size.rows:,}", f"{size.questions:,}", f"{size.correct_share:.1%}")
    for reason, count in report.dropped.items():
        table.add_row(f"left out ({reason})", f"{count:,}", "", "")
    return table


def _numbers(values: tuple[int, ...]) -> str:
    return ", ".join(f"{value:,}" for value in values) or "none"
