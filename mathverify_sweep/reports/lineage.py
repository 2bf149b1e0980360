"""How a run came to be: trial, stages, checkpoints, exports, with rows, seeds, code and versions; how to make it again.

For that there is a sweep file with the trial's settings fixed and its promotion's plan: the same data, seeds and code
train the same runs, on a CPU with as many threads to the same bits.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mathverify_sweep.config import SweepConfig
from mathverify_sweep.errors import StudyError
from mathverify_sweep.reports.models import Code, Lineage, LineageAttempt, LineageExport, LineageStep
from mathverify_sweep.store import promotions, provenance, runs, studies
from mathverify_sweep.store.runs import RunRecord

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine as Database

AGAIN = "again.yaml"
"""What the sweep file is called in the commands."""


def of(database: Database, run: RunRecord) -> Lineage:
    """The lineage of a run that has a spec. Raises StudyError."""
    if run.spec is None:
        raise StudyError(f"run {run.run_id} is a place in the study that got no trial: there is nothing to tell of it.")
    plans = {found.promotion_id: found.plan for found in promotions.promotions(database, run.study_name)}
    steps = tuple(_step(database, each, plans) for each in _chain(database, run))
    return Lineage(
        study=run.study_name,
        data_source=run.spec.data.source,
        data_fingerprint=run.spec.data_fingerprint,
        steps=steps,
        commands=_commands(run, steps[-1].code),
    )


def sweep_file(database: Database, run: RunRecord) -> str:
    """A sweep file (JSON, which is YAML) that makes the run again. Raises StudyError when its trial has no spec."""
    config = SweepConfig.model_validate_json(studies.get(database, run.study_name).config)
    trial = _trial(database, run)
    if trial is None or trial.spec is None:
        raise StudyError(f"the trial of run {run.run_id} is not in this database, so its settings are not known.")
    told: dict[str, Any] = config.model_dump(mode="json", exclude_defaults=True)
    told |= {
        "study": _again(run.study_name),
        "search_space": trial.spec.params.model_dump(mode="json", exclude_defaults=True),
        "budget": {"trials": 1},
        "pruner": {"type": "none"},
    }
    for key in ("enqueue", "sampler"):
        told.pop(key, None)
    plan = next(
        (p.plan for p in promotions.promotions(database, run.study_name) if p.promotion_id == run.promotion_id), None
    )
    if plan is not None:
        told["promotion"] = json.loads(plan)
    return json.dumps(told, indent=1, ensure_ascii=False) + "\n"


def write_sweep_file(database: Database, run: RunRecord, file: Path) -> None:
    """`sweep_file` into a file that is not there. Raises StudyError when it is."""
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(sweep_file(database, run))
    except FileExistsError:
        raise StudyError(f"{file} is there already. Remove it, or name another.") from None


def told(lineage: Lineage) -> str:
    """For people, as text."""
    lines = [
        f"study {lineage.study}, data {lineage.data_source}",
        f"data fingerprint {lineage.data_fingerprint}",
    ]
    for step in lineage.steps:
        lines += ["", *_told(step)]
    lines += ["", "to make it again:", *(f"  {command}" for command in lineage.commands)]
    return "\n".join(lines)


def _chain(database: Database, run: RunRecord) -> list[RunRecord]:
    """The trial, then the runs that this one builds on, then it."""
    found = [run]
    while (before := _before(found[0])) is not None:
        found.insert(0, runs.get(database, before))
    trial = _trial(database, run)
    return found if trial is None or trial.run_id == found[0].run_id else [trial, *found]


def _before(run: RunRecord) -> str | None:
    if run.result is not None and run.result.started_from:
        return run.result.started_from
    return run.spec.goes_on_from if run.spec else None


def _trial(database: Database, run: RunRecord) -> RunRecord | None:
    """The last attempt of the trial that the run is of."""
    if run.trial_number is None:
        return None
    of_trial = [
        each
        for each in runs.of_trial(database, run.study_name, run.trial_number)
        if each.stage is None and each.spec is not None
    ]
    return of_trial[-1] if of_trial else None


def _step(database: Database, run: RunRecord, plans: dict[str, str]) -> LineageStep:
    assert run.spec is not None
    described = provenance.environment(database, run.worker.environment_id if run.worker else None)
    made = provenance.exports_of(database, run.run_id)
    return LineageStep(
        run_id=run.run_id,
        spec=run.spec,
        begins=_begins(run),
        plan=plans.get(run.promotion_id or ""),
        rows_digest=run.result.rows_digest if run.result else None,
        optimizer_steps=run.result.optimizer_steps if run.result else 0,
        value=run.result.value if run.result else None,
        slices=run.result.slices if run.result else (),
        attempts=tuple(_attempts(database, run)),
        code=Code.model_validate_json(described) if described else None,
        exports=tuple(
            LineageExport(
                folder=each.folder,
                merged=each.merged,
                dtype=each.dtype,
                flipped=each.flipped,
                created_at=each.created_at,
            )
            for each in made
        ),
    )


def _begins(run: RunRecord) -> str:
    before = _before(run)
    if before is None:
        return "a fresh adapter"
    goes_on = run.spec is not None and run.spec.goes_on_from
    return f"the checkpoint of run {before}" if goes_on else f"the adapter of run {before}"


def _attempts(database: Database, run: RunRecord | None) -> list[LineageAttempt]:
    found: list[LineageAttempt] = []
    while run is not None:
        worker = f"{run.worker.worker_id}@{run.worker.host} {run.worker.gpu}" if run.worker else ""
        found.insert(
            0,
            LineageAttempt(
                run_id=run.run_id,
                attempt=run.attempt,
                end_reason=run.end_reason,
                worker=worker,
                resumed_from_rows=run.result.resumed_from_rows if run.result else 0,
            ),
        )
        run = runs.get(database, run.continues) if run.continues else None
    return found


def _told(step: LineageStep) -> list[str]:
    spec = step.spec
    what = f"trial {spec.trial_number}" + (f" stage {spec.stage}" if spec.stage else "")
    rows = f"the first {spec.train_rows:,} rows of the nested order"
    if spec.skip_rows:
        rows = f"rows {spec.skip_rows:,} to {spec.train_rows:,} of the nested order"
    rows += f" and {spec.replay_rows:,} of those before" if spec.replay_rows else ""
    settings = ", ".join(f"{k}={v}" for k, v in spec.params.model_dump(exclude_defaults=True).items()) or "defaults"
    lines = [
        f"{what}: run {step.run_id}, from {step.begins}" + ("" if step.value is None else f", value {step.value:.4f}"),
        *([f"  plan      {step.plan}"] if step.plan else []),
        f"  rows      {rows}, {spec.epochs:g} epoch(s), {step.optimizer_steps:,} steps, digest {step.rows_digest}",
        f"  seed      {spec.seed}, settings {settings}",
        f"  base      {spec.base_model.name} revision {spec.base_model.revision}, {spec.base_model.quantization}",
    ]
    if step.code:
        changed = ", files changed" if step.code.changed else ""
        lines.append(f"  code      {step.code.version}, commit {step.code.commit}{changed}, Python {step.code.python}")
        shown = (f"{name} {step.code.packages[name]}" for name in _SHOWN if name in step.code.packages)
        lines.append(f"  packages  {', '.join(shown)} (all: -f json)")
    for each in step.attempts:
        resumed = f" from its checkpoint at {each.resumed_from_rows:,} rows" if each.resumed_from_rows else ""
        lines.append(f"  attempt   {each.attempt} on {each.worker}{resumed}: {each.end_reason}")
    for export in step.exports:
        how = f"merged in {export.dtype}, {export.flipped} verdicts flipped" if export.merged else "adapter"
        lines.append(f"  exported  {export.folder} ({how})")
    return lines


_SHOWN = ("torch", "transformers", "peft", "trl", "bitsandbytes", "optuna", "numpy", "datasets")


def _commands(run: RunRecord, code: Code | None) -> tuple[str, ...]:
    name = _again(run.study_name)
    on_cpu = run.worker is not None and run.worker.gpu.startswith("cpu")
    threads, device = (f"OMP_NUM_THREADS={code.threads} ", " --device cpu") if on_cpu and code else ("", "")
    write = f"mvsweep lineage {run.run_id} --sweep-file {AGAIN}"
    if run.stage is not None:
        return (write, f"{threads}mvsweep run {AGAIN}{device}")
    return (write, f"mvsweep create {AGAIN}", f"{threads}mvsweep worker {name} --until-idle{device}")


def _again(study: str) -> str:
    return f"{study[:190]}-again"
