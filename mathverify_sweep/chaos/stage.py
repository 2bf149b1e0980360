"""Where faults happen: a study of its own, the workers on it, and patience until something holds."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mathverify_sweep import actions
from mathverify_sweep.chaos.audit import Finding, audit
from mathverify_sweep.chaos.fleet import Duty, Fleet, Member
from mathverify_sweep.config import SweepConfig
from mathverify_sweep.errors import StorageUnavailable
from mathverify_sweep.states import RunState
from mathverify_sweep.store import runs, studies
from mathverify_sweep.store.database import connect, upgrade
from mathverify_sweep.store.runs import RunRecord
from mathverify_sweep.study import study as study_page
from mathverify_sweep.study.views import TrialView, trials

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine as Database

LOOK_SECONDS = 0.25
PATIENCE_SECONDS = 240.0
"""How long something may take that no promise gives a time: whoever plays this may have two busy cores."""


class NeverHappened(Exception):
    """What was waited for did not come."""


def sweep(study: str, budget: int, **sections: dict[str, Any]) -> SweepConfig:
    """A small study whose trials report seven times and are never pruned; `sections` replace the sweep file's."""
    plain: dict[str, Any] = {
        "study": study,
        "data": {"source": "generated", "generated_rows": 600, "train_rows": 400},
        "search_space": {
            "learning_rate": {"low": 1e-5, "high": 1e-1, "log": True},
            "lora_r": {"choices": [4, 8, 16]},
        },
        "training": {"max_length": 64},
        "pruner": {"type": "median", "n_startup_trials": 1_000_000},
        "budget": {"trials": budget},
        "tracking": {"wandb": "disabled"},
    }
    return SweepConfig.model_validate(plain | sections)


def create(database: Database, config: SweepConfig) -> None:
    """Make the study, in a database that may be empty."""
    upgrade(database)
    actions.create(database, config)


class Stage:
    """A study in the database at `url`, created when it is entered. Its workers end with it.

    `duty_url`: how the workers reach the same database, when that is not how the stage does.
    """

    def __init__(self, folder: Path, url: str, config: SweepConfig, duty_url: str | None = None, **duty: Any) -> None:
        self.name = config.study
        self.output = folder / "runs"
        self.config = config
        self._duty = Duty(config.study, duty_url or url, self.output, folder / "logs", **duty)
        self.lease_seconds, self.run_seconds = self._duty.lease_seconds, self._duty.run_seconds
        self._url = url
        self._stack = ExitStack()

    def __enter__(self) -> Stage:
        with ExitStack() as stack:
            self.database = connect(self._url)
            stack.callback(self.database.dispose)
            create(self.database, self.config)
            self.fleet = Fleet(self._duty)
            stack.callback(self.fleet.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def runs(self) -> list[RunRecord]:
        """All attempts so far."""
        return runs.runs(self.database, self.name)

    def running(self) -> list[RunRecord]:
        """Those that somebody is at."""
        return [run for run in self.runs() if run.state is RunState.RUNNING and run.trial_number is not None]

    def rows_seen(self, run_id: str) -> int:
        """How far an attempt is, as far as it has said."""
        return max((point.rows_seen for point in runs.points(self.database, run_id)), default=0)

    def trials(self) -> list[TrialView]:
        """As Optuna sees them."""
        return trials(self.database, self.name)

    def stopped(self) -> str | None:
        """Why the study hands out no more runs, if it does not."""
        return studies.get(self.database, self.name).stopped

    def enqueue(self, count: int) -> None:
        """Have `count` settings tried before the sampler's own."""
        with study_page.open_study(self.database, self.name) as handle:
            for number in range(count):
                handle.enqueue({"learning_rate": 10 ** (-4 + 2 * number / max(1, count - 1)), "lora_r": 8})

    def wait_until(self, what: str, holds: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
        """Look until something holds, also while the database is away. Raises NeverHappened."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                if holds():
                    return
            except StorageUnavailable:
                pass
            time.sleep(LOOK_SECONDS)
        last_words = "".join(f"\n{member.log.name} ends:\n{member.printed()[-600:]}" for member in self.fleet.members)
        raise NeverHappened(f"within {seconds:g} s it never came to this: {what}{last_words}")

    def wait_until_trained(self, member: Member, rows: int = 1) -> RunRecord:
        """A run of this worker that has seen some rows."""
        self.wait_until(f"worker {member.process.pid} trains", lambda: bool(self._trained(member, rows)))
        return self._trained(member, rows)[0]

    def wait_until_done(self, seconds: float = PATIENCE_SECONDS) -> None:
        """Until all workers have ended by themselves. Raises NeverHappened, also when one of them gave up."""
        self.wait_until("all workers have done their work", lambda: not self.fleet.alive, seconds)
        if self.fleet.deserted:
            member = self.fleet.deserted[0]
            tail = member.printed()[-2000:]
            raise NeverHappened(f"no worker gives up, but one ended with {member.process.returncode}:\n{tail}")

    def audit(self) -> list[Finding]:
        """What must be true now that all workers have ended."""
        return audit(self.database, self.name, self.output, self.fleet.logs)

    def broken(self) -> list[str]:
        """The findings that do not hold, as sentences."""
        return [str(finding) for finding in self.audit() if not finding.holds]

    def _trained(self, member: Member, rows: int) -> list[RunRecord]:
        pid = member.process.pid
        mine = [run for run in self.running() if run.worker is not None and run.worker.pid == pid]
        return [run for run in mine if self.rows_seen(run.run_id) >= rows]
