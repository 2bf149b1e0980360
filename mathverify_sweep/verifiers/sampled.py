"""How good a run that solves is when it may try several times: pass@k, and what most of its solutions arrive at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mathverify_sweep import metrics
from mathverify_sweep.data.rows import groups
from mathverify_sweep.data.solving import is_same, majority
from mathverify_sweep.errors import StudyError
from mathverify_sweep.reports.models import Sampled
from mathverify_sweep.verifiers.evaluate import Labelled
from mathverify_sweep.verifiers.verifier import Verifier

if TYPE_CHECKING:
    from mathverify_sweep.training.judge import Judge


def sampled(
    verifier: Verifier, labelled: Labelled, output: Path, judge: Judge, samples: int, temperature: float
) -> Sampled:
    """Figures of `samples` solutions of each row, drawn at a temperature. Nothing is kept. Raises StudyError."""
    if len(verifier.models) > 1:
        raise StudyError(f"solutions are drawn from one run at a time, got {len(verifier.models)}. Name one.")
    (model,) = verifier.models
    if model.spec.data.task != "solving":
        raise StudyError(f"run {model.run.run_id} judges solutions and writes none, so there is nothing to draw.")
    drawn = judge.sample(model.spec, model.adapter(output), labelled.rows, samples, temperature)
    solved = [[is_same(one, row.answer) for one in own] for own, row in zip(drawn, labelled.rows, strict=True)]
    voted = [is_same(majority(own), row.answer) for own, row in zip(drawn, labelled.rows, strict=True)]
    shares: dict[str, Sequence[float]] = {
        "pass@1": [sum(own) / samples for own in solved],
        f"pass@{samples}": [any(own) for own in solved],
        f"majority of {samples}": voted,
    }
    questions = groups(labelled.rows)
    return Sampled(
        run_ids=verifier.run_ids,
        where=labelled.where,
        rows=len(labelled.rows),
        left_out_rows=labelled.left_out_rows,
        samples=samples,
        temperature=temperature,
        figures={name: metrics.clustered_accuracy(share, questions) for name, share in shares.items()},
    )
