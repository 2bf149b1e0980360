"""A trial's note and drawings, for optuna-dashboard. Optuna takes them only until the trial is told."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta, upload_artifact
from optuna.trial import Trial

from mathverify_sweep.specs import Metrics
from mathverify_sweep.store.runs import Point, RunRecord
from mathverify_sweep.study import drawings

WANDB = "wandb"
"""The user attribute that holds the run's W&B link, or the folder of its offline files."""
_NOTE_PART = 2_045
"""Characters of a note in one attribute, the dashboard's own limit."""


@dataclass(frozen=True)
class Page:
    """What there is to show of an ended run. `baselines`: accuracy of each on validation."""

    run: RunRecord
    points: tuple[Point, ...]
    link: str | None
    baselines: Mapping[str, float]


def show(trial: Trial, page: Page, folder: Path) -> None:
    """Write the note, and upload the drawings that are not there yet."""
    if page.link is not None:
        trial.set_user_attr(WANDB, page.link)
    _save_note(trial, note(page))
    folder.mkdir(parents=True, exist_ok=True)
    store = FileSystemArtifactStore(folder)
    there = {meta.filename for meta in get_all_artifact_meta(trial)}
    with tempfile.TemporaryDirectory() as scratch:
        for name, drawing in _drawings(page):
            if name not in there:
                file = Path(scratch) / name
                file.write_text(drawing, encoding="utf-8")
                upload_artifact(
                    artifact_store=store, file_path=str(file), study_or_trial=trial, mimetype="image/svg+xml"
                )


def note(page: Page) -> str:
    """The run in Markdown: how it ended, its figures beside the baselines, where its files are."""
    run, result = page.run, page.run.result
    parts = [f"### Run `{run.run_id}`: {run.end_reason or run.state}"]
    if result is not None and result.message:
        parts.append("```\n" + result.message.strip().replace("```", "'''") + "\n```")
    if result is not None and result.metrics is not None:
        parts.append(_figures(result.metrics, page.baselines))
    if result is not None:
        spent = result.train_seconds + result.eval_seconds
        memory = f", {result.peak_memory_bytes / 2**30:.1f} GiB at most" if result.peak_memory_bytes else ""
        parts.append(f"{result.rows_seen:,} rows in {result.optimizer_steps:,} steps, {spent:,.0f} s{memory}.")
    if run.worker is not None:
        attempt = f", attempt {run.attempt}" if run.attempt > 1 else ""
        parts.append(f"Trained on {_plain(run.worker.gpu)} of {_plain(run.worker.host)}{attempt}.")
    if page.link is not None:
        parts.append(f"W&B: {page.link if '://' in page.link else f'`{page.link}`'}")
    return "\n\n".join(parts) + "\n"


def _plain(text: str) -> str:
    """A name of a machine's choosing, in Markdown whose HTML the dashboard would show as such."""
    return " ".join(escape(text).split())


def _save_note(trial: Trial, text: str) -> None:
    """What `optuna_dashboard.save_note` does, in its keys (0.21).

    To import it takes a worker 2 s and 140 MB, and it first reads the notes of all other trials of the study.
    """
    storage, study_id, trial_id = trial.storage, trial.study._study_id, trial._trial_id
    for part, start in enumerate(range(0, len(text), _NOTE_PART)):
        key = f"dashboard:{trial_id}:note_str:{part}"
        storage.set_study_system_attr(study_id, key, text[start : start + _NOTE_PART])
    storage.set_study_system_attr(study_id, f"dashboard:{trial_id}:note_ver", 1)


def _figures(metrics: Metrics, baselines: Mapping[str, float]) -> str:
    interval = f"{metrics.accuracy_low:.4f} to {metrics.accuracy_high:.4f}"
    name = "accuracy" if metrics.has_classes else "pass@1"
    rows = [
        (name, f"**{metrics.accuracy:.4f}** (95 %: {interval}; {metrics.rows:,} rows)"),
        *((f"accuracy of {name.replace('_', ' ')}", f"{accuracy:.4f}") for name, accuracy in baselines.items()),
    ]
    if metrics.has_classes:
        rows += [
            ("precision, recall, F1", f"{metrics.precision:.4f}, {metrics.recall:.4f}, {metrics.f1:.4f}"),
            ("log-loss, AUC", f"{metrics.log_loss:.4f}, {metrics.auc:.4f}"),
            (f"accuracy at threshold {metrics.threshold:.2f}", f"{metrics.accuracy_at_threshold:.4f}"),
        ]
    return "| validation | |\n|---|---|\n" + "\n".join(f"| {name} | {figure} |" for name, figure in rows)


def _drawings(page: Page) -> Iterator[tuple[str, str]]:
    losses = [(float(point.rows_seen), point.loss) for point in page.points if point.loss is not None]
    values = [(float(point.rows_seen), point.value) for point in page.points if point.value is not None]
    result = page.run.result
    if result is not None and result.value is not None:
        values.append((float(result.rows_seen), result.value))
    if losses or values:
        objective = page.run.spec.objective if page.run.spec else "value"
        yield "learning_curve.svg", drawings.learning_curve(losses, values, objective)
    if result is not None and result.metrics is not None and result.metrics.has_classes:
        yield "confusion_matrix.svg", drawings.confusion_matrix(result.metrics)
