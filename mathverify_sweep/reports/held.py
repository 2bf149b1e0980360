"""What a study has taken, held against what was predicted for it: by rates that were measured before its workers began.

The prediction is for the work that was done, so it is one of speed, not of what a pruner would do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from mathverify_sweep.rates import Rates, Work
from mathverify_sweep.reports.models import Prediction
from mathverify_sweep.states import EndReason
from mathverify_sweep.store.device_time import Use, device_seconds
from mathverify_sweep.store.runs import Point, RunRecord


def predictions(
    uses: Iterable[tuple[RunRecord, Use]], points: Mapping[str, Sequence[Point]], rates: Mapping[str, Rates]
) -> tuple[Prediction, ...]:
    """One for each device of the workers whose rates are known, by worker id; runs of others are left out."""
    by_device: dict[str, list[tuple[RunRecord, Use]]] = defaultdict(list)
    for run, use in uses:
        if run.worker is not None and use.worker_id in rates:
            by_device[run.worker.gpu].append((run, use))
    made = (_prediction(device, found, points, rates) for device, found in sorted(by_device.items()))
    return tuple(prediction for prediction in made if prediction.runs)


def _prediction(
    device: str,
    found: Sequence[tuple[RunRecord, Use]],
    points: Mapping[str, Sequence[Point]],
    rates: Mapping[str, Rates],
) -> Prediction:
    by_worker: dict[str, list[tuple[RunRecord, Use]]] = defaultdict(list)
    for run, use in found:
        by_worker[use.worker_id].append((run, use))
    done: list[Work] = []
    predicted = took = 0.0
    for worker_id, its in by_worker.items():
        known = rates[worker_id]
        held = device_seconds(use for _, use in its)
        work = _added(_work(run, points.get(run.run_id, ()), known) for run, _ in its)
        side_by_side = sum(use.seconds for _, use in its) / held if held else 1.0
        predicted += known.first_seconds + known.seconds(work, side_by_side)
        took += held
        done.append(work)
    total = _added(done)
    return Prediction(
        device=device,
        workers=len(by_worker),
        runs=round(total.runs),
        rows_trained=round(total.rows_trained),
        rows_judged=round(total.rows_judged),
        predicted_seconds=predicted,
        took_seconds=took,
        ratio=took / predicted if predicted else 0.0,
    )


def _work(run: RunRecord, said: Sequence[Point], rates: Rates) -> Work:
    """What one attempt did itself, so far; one that ended before its first step did nothing."""
    resumed = run.result.resumed_from_rows if run.result else 0
    seen = max(run.result.rows_seen if run.result else 0, said[-1].rows_seen if said else 0)
    if run.spec is None or seen <= resumed:
        return Work(0, 0, 0)
    looks = sum(point.value is not None and point.rows_seen > resumed for point in said)
    at_a_rung = min(run.spec.rung_rows or rates.validation_rows, rates.validation_rows)
    at_the_end = rates.validation_rows if run.end_reason is EndReason.FINISHED else 0
    return Work(1, seen - resumed, looks * at_a_rung + at_the_end)


def _added(works: Iterable[Work]) -> Work:
    works = list(works)
    return Work(
        runs=sum(work.runs for work in works),
        rows_trained=sum(work.rows_trained for work in works),
        rows_judged=sum(work.rows_judged for work in works),
    )
