"""What a run goes on from: earlier attempts of its own, and the stages before it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mathverify_sweep import paths
from mathverify_sweep.specs import RunSpec
from mathverify_sweep.states import RunState
from mathverify_sweep.store import runs
from mathverify_sweep.store.runs import Claim, Point, RunRecord
from mathverify_sweep.worker import gain

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine as Database


@dataclass(frozen=True)
class Ancestry:
    """`first_run_id`: the run's first attempt. `folders` and `points`: of its earlier attempts, the newest first.

    `trunk`: folders of the run that it goes on from. `started_from`: that run, or the best stage before it, whose
    `start_adapter` it takes. `unneeded`: why the run need not be trained.
    """

    first_run_id: str
    folders: tuple[Path, ...] = ()
    trunk: tuple[Path, ...] = ()
    points: tuple[Point, ...] = ()
    started_from: str | None = None
    start_adapter: Path | None = None
    unneeded: str | None = None

    @property
    def problem(self) -> str | None:
        """Why the run cannot start on this machine at all."""
        if self.start_adapter is None or self.start_adapter.is_dir():
            return None
        return (
            f"it starts from the adapter of run {self.started_from}, which is not at {self.start_adapter}. Give all "
            "workers of a study the same --output: a folder on a shared file system, or a URL."
        )

    def drawn(self, objective: str) -> list[tuple[int, dict[str, float]]]:
        """The points of earlier attempts as they are drawn."""
        figures = [
            (point.rows_seen, {objective: point.value, "loss": point.loss, "learning_rate": point.learning_rate})
            for point in self.points
        ]
        return [(rows, {k: v for k, v in values.items() if v is not None}) for rows, values in figures]


def ancestry(database: Database, claim: Claim, spec: RunSpec, output: Path) -> Ancestry:
    """What the database knows of a run's past. Raises StorageError."""
    earlier = _earlier_attempts(database, claim.continues)
    found = Ancestry(
        first_run_id=earlier[-1].run_id if earlier else claim.run_id,
        folders=_folders(earlier, output),
        trunk=_folders(_earlier_attempts(database, spec.goes_on_from), output),
        points=tuple(runs.points(database, earlier[0].run_id)) if earlier else (),
        started_from=spec.goes_on_from,
        unneeded=gain.unneeded(database, claim, spec),
    )
    best = best_adapter(database, spec, output)
    if best is None:
        return found
    return replace(found, started_from=best[0], start_adapter=best[1])


def best_adapter(database: Database, spec: RunSpec, output: Path) -> tuple[str, Path] | None:
    """The run id and adapter folder of the finished run among `spec.start_from` that the spec starts from: the best, or
    the last that stands. None when there is none yet.
    """
    finished = [run for run in (runs.get(database, run_id) for run_id in spec.start_from) if _is_start(run)]
    if not finished:
        return None
    best = gain.last_that_stands(database, spec, finished) if spec.goes_back else gain.best_of(spec, finished)
    assert best.result is not None
    assert best.result.adapter is not None
    return best.run_id, output / best.result.adapter


def _earlier_attempts(database: Database, run_id: str | None) -> list[RunRecord]:
    """This attempt and those before it, the newest first."""
    found = []
    while run_id is not None:
        found.append(runs.get(database, run_id))
        run_id = found[-1].continues
    return found


def _folders(attempts: list[RunRecord], output: Path) -> tuple[Path, ...]:
    """Of those that had started."""
    return tuple(
        paths.run_folder(output, run.study_name, run.run_id, run.lease_token) for run in attempts if run.lease_token
    )


def _is_start(run: RunRecord) -> bool:
    return run.state is RunState.COMPLETE and run.result is not None and run.result.adapter is not None
