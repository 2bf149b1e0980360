"""Tables and SVG figures of what `benchmarks.published` has left in a database: a part for each study that is there.

Figures are on validation, except pass@1, which is on the test file. Intervals are 95 %: of one model, or of two on the
same rows, clustered by question; of an effect over many pairs of runs, by drawing questions and pairs at once.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from benchmarks import published_effects
from benchmarks.published_effects import all_finished, importance
from benchmarks.readings import labels_of, points, reading_of, table
from mathverify_sweep import paths
from mathverify_sweep.config import PromotionConfig
from mathverify_sweep.metrics import Interval, clustered_accuracy
from mathverify_sweep.resampling import mean_gain
from mathverify_sweep.states import RunState
from mathverify_sweep.store import promotions, runs, studies
from mathverify_sweep.store.runs import RunRecord
from mathverify_sweep.study import drawings
from mathverify_sweep.verifiers import verifier

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine as Database

SWEEP = "published_003"


class Solved(TypedDict):
    """What of the test file a run solves: row by row, with the number of the row's question."""

    solved: list[bool]
    questions: list[int]
    left_out_rows: int
    seconds: float


def solving_of(arm: str) -> str:
    """The study of an arm of report 004."""
    return f"published_004_{arm}"


def memory_of(arm: str) -> str:
    """The study that an arm's memory is read from."""
    return f"{solving_of(arm)}_memory"


def solved_file(output: Path, study_name: str) -> Path:
    """What the study's runs solve of the test file."""
    return paths.study_folder(output, study_name) / "solved.json"


def write(database: Database, output: Path, to: Path) -> None:
    """Write the parts for which there is a study, and print them."""
    to.mkdir(parents=True, exist_ok=True)
    there = studies.names(database)
    if SWEEP in there:
        _put(to / "003.md", _sweep(database, to))
    if any(name.startswith(published_effects.STUDIES) for name in there):
        _put(to / "conclusions.md", published_effects.conclusions(database, to))
    if any(name.startswith(solving_of("")) for name in there):
        _put(to / "004.md", _solving(database, output))


def _put(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
    print(text)


# Report 003


def _sweep(database: Database, to: Path) -> str:
    last = {run.trial_number: run for run in runs.runs(database, SWEEP) if run.stage is None and run.spec is not None}
    ordered = sorted(last.values(), key=lambda run: (run.state is not RunState.COMPLETE, _value(run)))
    header = ["trial", "learning rate", "batch", "optimizer", "schedule", "clip", "warm-up", "decay", "ended", "rows"]
    trials = table([*header, "log-loss", "accuracy [95 %]"], [_trial_line(run) for run in ordered])
    parts = [f"{_ended(ordered)}\n", trials, importance(database, [SWEEP]), _plans(database, to)]
    return "\n".join(parts)


def _value(run: RunRecord) -> float:
    return run.result.value if run.result and run.result.value is not None else math.inf


def _ended(ordered: Sequence[RunRecord]) -> str:
    count: dict[str, int] = defaultdict(int)
    for run in ordered:
        count[str(run.end_reason or run.state).lower()] += 1
    rows = sum(run.result.rows_seen for run in ordered if run.result)
    ends = ", ".join(f"{number} {reason}" for reason, number in sorted(count.items()))
    began = [run.started_at for run in ordered if run.started_at]
    over = [run.ended_at for run in ordered if run.ended_at]
    wall = (max(over) - min(began)).total_seconds() if began and over else 0.0
    return f"{len(ordered)} trials: {ends}. {rows:,} rows trained in {wall:.0f} s, first start to last end."


def _trial_line(run: RunRecord) -> list[str]:
    assert run.spec is not None
    params, result = run.spec.params, run.result
    judged = result.metrics if result and run.state is RunState.COMPLETE else None
    return [
        str(run.trial_number),
        f"{params.learning_rate:.1e}",
        str(params.effective_batch_size),
        params.optim,
        params.lr_scheduler_type,
        f"{params.max_grad_norm:g}",
        f"{params.warmup_steps:.3f}",
        f"{params.weight_decay:.3f}",
        str(run.end_reason or run.state).lower(),
        f"{result.rows_seen:,}" if result else "",
        f"{judged.log_loss:.4f}" if judged else "",
        f"{judged.accuracy:.4f} [{judged.accuracy_low:.3f}, {judged.accuracy_high:.3f}]" if judged else "",
    ]


def _plans(database: Database, to: Path) -> str:
    """A line per plan: its stages, and its last one against that of the first plan on the same rows."""
    arms: dict[str, list[RunRecord]] = {}
    for record in promotions.promotions(database, SWEEP):
        settings = PromotionConfig.model_validate_json(record.plan)
        stages = [runs.get(database, run_id) for run_id in record.run_ids]
        if all(stage.state is RunState.COMPLETE for stage in stages):
            arms[settings.plan + (f", {settings.passes} passes" if settings.passes else "")] = stages
    if not arms:
        return "No promotion has got to its end.\n"
    first = next(iter(arms))
    labels, questions = labels_of(arms[first][-1])
    read = {name: reading_of(database, stages[-1], labels) for name, stages in arms.items()}
    lines = []
    for name, stages in arms.items():
        gain = mean_gain(read[name].right - read[first].right, questions)
        results = [stage.result for stage in stages if stage.result]
        lines.append(
            [
                f"{name} (trial {stages[0].trial_number})",
                f"{sum(result.rows_seen for result in results):,}",
                f"{sum(result.optimizer_steps for result in results):,}",
                f"{sum(stage.busy_seconds or 0.0 for stage in stages) / 60:.1f}",
                ", ".join(f"{_accuracy(stage):.4f}" for stage in stages),
                f"{verifier.model(stages[-1]).metrics.log_loss:.4f}",
                "" if name == first else points(gain),
            ]
        )
    curves = {name: _over_rows(stages) for name, stages in arms.items()}
    drawn = drawings.curves("Plans of report 003", "rows met", "validation accuracy after each stage", curves)
    (to / "003_plans.svg").write_text(drawn, encoding="utf-8")
    header = ["plan", "rows met", "steps", "slot min", "accuracy, stage by stage", "log-loss of the last"]
    return table([*header, f"last stage minus {first}, points [95 %]"], lines)


def _over_rows(stages: Sequence[RunRecord]) -> list[tuple[float, float]]:
    met = np.cumsum([stage.result.rows_seen for stage in stages if stage.result])
    return [(float(rows), _accuracy(stage)) for rows, stage in zip(met, stages, strict=True)]


def _accuracy(run: RunRecord) -> float:
    return verifier.model(run).metrics.accuracy


# Report 004


def _solving(database: Database, output: Path) -> str:
    """A line for each run of both arms: before and after on the same rows, and what it took."""
    arms = [arm for arm in ("lora", "qlora") if solving_of(arm) in studies.names(database)]
    lines, after = [], {}
    for arm in arms:
        file = solved_file(output, solving_of(arm))
        known: dict[str, Solved] = json.loads(file.read_text()) if file.exists() else {}
        by_trial = {
            run.trial_number or 0: run for run in all_finished(database, solving_of(arm)) if run.run_id in known
        }
        for number, run in sorted(by_trial.items()):
            before = known[by_trial[0].run_id] if 0 in by_trial else None
            lines.append(_solving_line(arm, run, known[run.run_id], before))
            after[arm, number] = known[run.run_id]
    header = ["arm", "rank, rate", "steps", "samples/s", "GSM8K test pass@1 [95 %]", "minus untrained, points [95 %]"]
    parts = [table([*header, "validation pass@1", "s to write"], lines), _memory(database, arms)]
    parts += _between(after)
    return "\n".join(parts)


def _solving_line(arm: str, run: RunRecord, solved: Solved, before: Solved | None) -> list[str]:
    model = verifier.model(run)
    params, result = model.spec.params, model.result
    untrained = result.optimizer_steps == 1
    share = clustered_accuracy(solved["solved"], list(map(str, solved["questions"])))
    return [
        arm,
        "untrained" if untrained else f"{params.lora_r}, {params.learning_rate:g}",
        f"{result.optimizer_steps:,}",
        "" if untrained else f"{result.rows_seen / result.train_seconds:.1f}",
        f"{share.estimate:.4f} [{share.low:.4f}, {share.high:.4f}]",
        "" if untrained or before is None else points(_gain(solved, before)),
        f"{model.metrics.accuracy:.3f}",
        f"{solved['seconds']:.0f}",
    ]


def _gain(a: Solved, b: Solved) -> Interval:
    gains = np.array(a["solved"], dtype=np.float64) - np.array(b["solved"], dtype=np.float64)
    return mean_gain(gains, list(map(str, a["questions"])))


def _memory(database: Database, arms: Sequence[str]) -> str:
    lines = []
    for arm in arms:
        for run in all_finished(database, memory_of(arm)) if memory_of(arm) in studies.names(database) else []:
            result = verifier.model(run).result
            seconds = result.train_seconds / result.optimizer_steps
            lines.append([arm, f"{result.optimizer_steps}", f"{result.peak_memory_bytes / 1e9:.3f}", f"{seconds:.3f}"])
    return table(["arm", "steps of 1 x 4 rows", "peak GB", "s a step"], lines)


def _between(after: dict[tuple[str, int], Solved]) -> list[str]:
    """The arms against each other, trial by trial, on the same rows."""
    both = sorted({number for _, number in after if ("lora", number) in after and ("qlora", number) in after})
    lines = [[str(number), points(_gain(after["qlora", number], after["lora", number]))] for number in both]
    return [table(["trial", "QLoRA minus LoRA, points [95 %]"], lines)] if lines else []
