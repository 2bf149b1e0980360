"""A finished run as a folder that plain transformers loads: adapter or merged model, and all that a verdict needs.

    adapter_model.safetensors, adapter_config.json   or model.safetensors and config.json when merged
    tokenizer.json, tokenizer_config.json            the base model's
    verifier.json                                    prompt template, threshold, verdict tokens, precision
    README.md                                        the model card

The folder appears whole or not at all. Refuses a folder that is there.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mathverify_sweep import metrics
from mathverify_sweep.data.rows import groups
from mathverify_sweep.errors import DataError
from mathverify_sweep.reports import lineage
from mathverify_sweep.reports.models import Exported
from mathverify_sweep.specs import Metrics, Split
from mathverify_sweep.store import provenance, runs
from mathverify_sweep.store.provenance import ExportRecord
from mathverify_sweep.verifiers import card
from mathverify_sweep.verifiers import verifier as verifiers
from mathverify_sweep.verifiers.verifier import Model

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine as Database

READ_SPLITS: tuple[Split, ...] = ("validation", "gate", "test")


@dataclass(frozen=True)
class Wanted:
    """`dtype` is that of a merged model's weights; the device is where it is merged and read once."""

    merge: bool
    dtype: Literal["float32", "bfloat16"]
    device: str
    now: datetime


def export(database: Database, model: Model, output: Path, folder: Path, wanted: Wanted) -> Exported:
    """Write the folder. Raises DataError when it is there, or cannot be written."""
    verifiers.require_judging(model, "exported so far")
    if folder.exists():
        raise DataError(f"{folder} is there already, and an export writes a new folder. Remove it, or name another")
    partial = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        exported = _filled(database, model, output, partial, wanted)
        partial.rename(folder)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    rows, flipped = (exported.rows, exported.flipped) if exported.merged else (None, None)
    where = str(folder.resolve())
    record = ExportRecord(exported.run_id, where, exported.merged, exported.dtype, rows, flipped, created_at=wanted.now)
    provenance.record_export(database, record)
    return exported.model_copy(update={"folder": str(folder)})


def _filled(database: Database, model: Model, output: Path, folder: Path, wanted: Wanted) -> Exported:
    from mathverify_sweep.training import export as training  # imports torch: only when it is needed

    source = model.adapter(output)
    if wanted.merge:
        facts = training.merged(model.spec, source, folder, wanted.dtype, wanted.device)
        exported = _held_against(database, model, folder, wanted)
    else:
        facts = training.adapter(model.spec, source, folder)
        exported = Exported(run_id=model.run.run_id, folder=str(folder), merged=False, dtype=_trained_in(model))
    _write(folder, facts, model, exported)
    told = lineage.told(lineage.of(database, model.run))
    (folder / "README.md").write_text(card.text(model, exported, _figures(database, model), told), encoding="utf-8")
    return exported


def _held_against(database: Database, model: Model, folder: Path, wanted: Wanted) -> Exported:
    """What merging has changed: the verdicts of the merged model, read from its folder, against the adapter's."""
    from mathverify_sweep.training import export as training

    rows = verifiers.rows_of(model, "validation")
    before = verifiers.kept_log_odds(database, model, "validation")
    after = np.asarray(training.merged_log_odds(model.spec, folder, wanted.dtype, rows, wanted.device))
    threshold, labels = model.metrics.threshold, np.array([row.is_correct for row in rows])
    was, now = before >= threshold, after >= threshold
    return Exported(
        run_id=model.run.run_id,
        folder=str(folder),
        merged=True,
        dtype=wanted.dtype,
        rows=len(rows),
        flipped=int(np.sum(was != now)),
        largest_shift=float(np.max(np.abs(after - before))),
        accuracy_change=float(np.mean(now == labels) - np.mean(was == labels)),
    )


def _write(folder: Path, facts: dict[str, Any], model: Model, exported: Exported) -> None:
    told = facts | {"dtype": exported.dtype, "threshold": model.metrics.threshold, "run_id": model.run.run_id}
    (folder / "verifier.json").write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _trained_in(model: Model) -> Literal["float32", "bfloat16"]:
    """The dtype of the base's matmuls in training; `auto` is decided by where that was."""
    chosen = model.spec.base_model.compute_dtype
    if chosen != "auto":
        return chosen
    on_cpu = model.run.worker is None or model.run.worker.gpu.startswith("cpu")
    return "float32" if on_cpu else "bfloat16"


def _figures(database: Database, model: Model) -> dict[Split, Metrics]:
    """Of every split that the run has read."""
    found: dict[Split, Metrics] = {}
    for split in READ_SPLITS:
        odds = runs.log_odds(database, model.run.run_id, split)
        if odds is not None:
            rows = verifiers.rows_of(model, split)
            labels = [row.is_correct for row in rows]
            found[split] = metrics.judge(odds, labels, groups(rows), threshold=model.metrics.threshold)
    return found
