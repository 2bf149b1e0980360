"""What is said of verifiers, as tables for a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mathverify_sweep.metrics import Interval
from mathverify_sweep.reports.models import (
    ComparedPair,
    ComparedRuns,
    Ensemble,
    Evaluation,
    Exported,
    GateReport,
    Sampled,
)
from mathverify_sweep.reports.terminal import table_of
from mathverify_sweep.resampling import Comparison


def evaluation(found: Evaluation) -> RenderableType:
    """All figures of a verifier on a split or a file, and where it errs."""
    table = table_of("figure", "value", "95 %")
    table.add_row("rows", f"{found.rows:,}", "")
    if found.left_out_rows:
        table.add_row("left out, no final number", f"{found.left_out_rows:,}", "")
    if found.has_classes:
        _judged(table, found)
    else:
        table.add_row("pass@1", f"{found.accuracy:.4f}", _ends(found.intervals["accuracy"]))
    parts: list[RenderableType] = [Text(f"{', '.join(found.run_ids)} on {found.where}"), table]
    for column, kinds in found.parts.items():
        by = table_of(column, "rows", "accuracy", "95 %")
        for kind in kinds:
            by.add_row(kind.name, f"{kind.rows:,}", f"{kind.accuracy.estimate:.4f}", _ends(kind.accuracy))
        parts += [Text(f"accuracy at the threshold, by {column}" if found.has_classes else f"pass@1 by {column}"), by]
    return Group(*parts)


def sampled(found: Sampled) -> RenderableType:
    """What several solutions of each row come to."""
    table = table_of("figure", "value", "95 %")
    if found.left_out_rows:
        table.add_row("rows left out, no final number", f"{found.left_out_rows:,}", "")
    for name, figure in found.figures.items():
        table.add_row(name, f"{figure.estimate:.4f}", _ends(figure))
    drawn = f"{found.samples} solutions of each of {found.rows:,} rows, temperature {found.temperature:g}"
    return Group(Text(f"{', '.join(found.run_ids)} on {found.where}: {drawn}"), table)


def _judged(table: Table, found: Evaluation) -> None:
    for name, figure in found.intervals.items():
        title = f"accuracy at threshold {found.threshold:.3f}" if name == "accuracy_at_threshold" else name
        table.add_row(title.replace("_", "-"), f"{figure.estimate:.4f}", _ends(figure))
    table.add_row("judged True, is True / False", f"{found.true_positives:,} / {found.false_positives:,}", "")
    table.add_row("judged False, is True / False", f"{found.false_negatives:,} / {found.true_negatives:,}", "")


def compared(found: ComparedRuns) -> RenderableType:
    """A line and a table for each pair."""
    parts: list[RenderableType] = [Text(f"{found.split}: {found.rows:,} rows, {found.questions:,} questions")]
    for pair in found.pairs:
        parts += [_verdict(pair), _agreement(pair.comparison)]
    return Group(*parts)


def ensemble(found: Ensemble) -> RenderableType:
    """Its members in the order in which they were chosen, and what to do with them."""
    table = table_of("member", "run", "log-loss", "accuracy", "AUC")
    for member in found.members:
        stage = f" stage {member.stage}" if member.stage else ""
        figures = member.metrics
        what = f"trial {member.trial_number}{stage}"
        table.add_row(what, member.run_id, f"{figures.log_loss:.4f}", f"{figures.accuracy:.4f}", f"{figures.auc:.4f}")
    runs = " ".join(member.run_id for member in found.members)
    gain = found.against_the_first
    return Group(
        Text(f"{found.study}: {len(found.members)} of {found.candidates} runs, each line with those above it"),
        table,
        Text(f"against the first alone, on validation, where they were chosen: {_points(gain)}"),
        Text(f"together on rows that had no say: mvsweep evaluate {runs} --split gate"),
        Text(f"verdicts: mvsweep predict {runs} --data test.csv -o submission.csv"),
    )


def gate(found: GateReport) -> RenderableType:
    """Every finalist with what became of it and why, and what is to be done now."""
    table = table_of("trial", "verdict", "validation", "gate", "runs")
    for one in found.finalists:
        accuracy = "" if one.accuracy is None else f"{one.accuracy:.4f}"
        table.add_row(f"{one.trial_number}", one.verdict, f"{one.value:.4f}", accuracy, f"{len(one.run_ids)}")
    looks = [
        Text(
            f"look {look.number}: {look.rows:,} rows, {look.questions:,} questions, dropped up to p = {look.level:.2g}"
        )
        for look in found.looks
    ]
    whys = [Text(f"trial {one.trial_number} {one.verdict}: {one.why}") for one in found.finalists if one.why]
    if found.waiting:
        now = f"{found.waiting} run(s) wait for a worker: mvsweep worker {found.study} --until-idle, then this again"
    else:
        chosen = [one.trial_number for one in found.finalists if one.verdict == "chosen"]
        now = "\n".join(f"mvsweep promote {found.study} --trial {number}" for number in chosen)
    return Group(table, *looks, *whys, Text(now))


def exported(found: Exported) -> RenderableType:
    """Where it is, and what merging has changed."""
    what = f"merged model in {found.dtype}" if found.merged else "adapter"
    lines = [f"{found.folder}: {what} of run {found.run_id}, with tokenizer, prompt, threshold and model card"]
    if found.merged:
        lines.append(
            f"merging flipped {found.flipped} of {found.rows:,} validation verdicts; log-odds moved by "
            f"{found.largest_shift:.4f} at most, accuracy by {100 * found.accuracy_change:+.2f} points"
        )
    return Text("\n".join(lines))


def _verdict(pair: ComparedPair) -> Text:
    gap = pair.comparison.difference
    sure = "the interval excludes 0" if gap.low > 0 or gap.high < 0 else "the interval includes 0: no clear winner"
    return Text(f"accuracy of {pair.first} minus {pair.second}: {_points(pair.comparison)}, {sure}")


def _agreement(found: Comparison) -> RenderableType:
    table = table_of("agree", "both right", "only the first", "only the second", "both wrong")
    counts = (found.both_right, found.only_first_right, found.only_second_right, found.both_wrong)
    table.add_row(f"{100 * found.agreement:.1f} %", *(f"{count:,}" for count in counts))
    return table


def _points(found: Comparison) -> str:
    gap = found.difference
    return f"{100 * gap.estimate:+.2f} points [{100 * gap.low:+.2f}, {100 * gap.high:+.2f}], p = {found.p_value:.2g}"


def _ends(found: Interval) -> str:
    return f"{found.low:.4f} – {found.high:.4f}"
