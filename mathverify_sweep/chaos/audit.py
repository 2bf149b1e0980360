"""What must be true of a study once its workers have ended, whatever was done to them. Reads only.

Times of one study are compared with each other, so its workers must have run on one machine.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from mathverify_sweep import paths
from mathverify_sweep.states import ENDINGS, MAX_FAILURES, EndReason, RunState
from mathverify_sweep.store import runs
from mathverify_sweep.study import study as study_page

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine as Database

    from mathverify_sweep.store.runs import RunRecord
    from mathverify_sweep.study.views import TrialView

Attempts = Mapping[int, Sequence["RunRecord"]]
"""The attempts of each trial, in order."""

_SAID = re.compile(r"run (\w+) trial \d+.* ended (\w+)")
_SHOWN = 5


@dataclass(frozen=True)
class Finding:
    """One thing that must be true: `broken` says where it is not, one sentence each."""

    rule: str
    broken: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether it is true."""
        return not self.broken

    def __str__(self) -> str:
        more = f" (and {len(self.broken) - _SHOWN} more)" if len(self.broken) > _SHOWN else ""
        return self.rule if self.holds else f"NOT {self.rule}: {'; '.join(self.broken[:_SHOWN])}{more}"


def audit(database: Database, study: str, output: Path, logs: Iterable[Path]) -> list[Finding]:
    """All findings about the trials of a study whose budget is spent. `logs`: what its workers printed."""
    records = runs.runs(database, study)
    with study_page.open_study(database, study) as handle:
        budget = handle.config.trials
        trials = {t.number: t for t in handle.trials() if "abandoned" not in t.user_attrs}
    attempts: dict[int, list[RunRecord]] = defaultdict(list)
    for run in records:
        if run.stage is None and run.trial_number is not None:
            attempts[run.trial_number].append(run)
    return [
        Finding("no run is left running or waiting", tuple(_zombies(records, trials))),
        Finding("every trial ended exactly once", tuple(_ended_twice_or_never(attempts))),
        Finding("no trial was lost", tuple(_lost(attempts, trials, budget))),
        Finding("no trial was run by two at once", tuple(_overlaps(attempts))),
        Finding("Optuna and our rows agree", tuple(_disagreements(attempts, trials))),
        Finding("only what may fail failed", tuple(_undeserved(attempts))),
        Finding("no result was lost", tuple(_lost_results(records, study, output, logs))),
    ]


def _zombies(records: Sequence[RunRecord], trials: Mapping[int, TrialView]) -> Iterator[str]:
    unfinished = (RunState.RUNNING, RunState.WAITING)
    yield from (f"run {run.run_id} is {run.state}" for run in records if run.state in unfinished)
    yield from (f"trial {trial.number} is {trial.state}" for trial in trials.values() if trial.state in unfinished)


def _ended_twice_or_never(attempts: Attempts) -> Iterator[str]:
    for number, runs_of_trial in attempts.items():
        if [run.attempt for run in runs_of_trial] != list(range(1, len(runs_of_trial) + 1)):
            yield f"trial {number} has attempts {[run.attempt for run in runs_of_trial]}"
        for run in runs_of_trial[:-1]:
            if run.end_reason is None or not ENDINGS[run.end_reason].retried:
                yield f"trial {number} ended {run.end_reason} and was run again"
        if runs_of_trial[-1].end_reason is None:
            yield f"trial {number} has not ended"


def _lost(attempts: Attempts, trials: Mapping[int, TrialView], budget: int) -> Iterator[str]:
    if len(attempts) != budget:
        yield f"{len(attempts)} trials were run of {budget}"
    for number in sorted(trials.keys() ^ attempts.keys()):
        yield f"trial {number} is known to {'Optuna' if number in trials else 'our rows'} alone"


def _overlaps(attempts: Attempts) -> Iterator[str]:
    """An ended row is never written again, so one attempt wrote after another began if it ended after that."""
    for number, runs_of_trial in attempts.items():
        for one, next_one in pairwise(runs_of_trial):
            if one.ended_at and next_one.started_at and next_one.started_at < one.ended_at:
                yield f"trial {number}: attempt {next_one.attempt} began before attempt {one.attempt} ended"


def _disagreements(attempts: Attempts, trials: Mapping[int, TrialView]) -> Iterator[str]:
    for number, runs_of_trial in attempts.items():
        last, trial = runs_of_trial[-1], trials.get(number)
        if trial is None or last.end_reason is None:
            continue
        expected = ENDINGS[last.end_reason].last_state
        if trial.state is not expected:
            yield f"trial {number} ended {last.end_reason}, Optuna says {trial.state}"
        elif expected is RunState.COMPLETE and (last.result is None or trial.value != last.result.value):
            yield f"trial {number}: Optuna has the value {trial.value}, its run another"


def _undeserved(attempts: Attempts) -> Iterator[str]:
    for number, runs_of_trial in attempts.items():
        last = runs_of_trial[-1]
        failures = last.failures + (last.end_reason is not None and ENDINGS[last.end_reason].is_failure)
        by_itself = last.end_reason in (EndReason.CRASHED, EndReason.STOPPED_BY_USER)
        if last.state is RunState.FAIL and not by_itself and failures < MAX_FAILURES:
            yield f"trial {number} ended {last.end_reason} after {failures} failure(s)"


def _lost_results(records: Sequence[RunRecord], study: str, output: Path, logs: Iterable[Path]) -> Iterator[str]:
    """A result is safe from the moment on that its worker said so: in its row, or beside it as a late one."""
    known = {run.run_id: run for run in records}
    for file in paths.outbox_files(output, study):
        if len(file.read_bytes().splitlines()) > 1:  # the first line says whose it is
            yield f"{file.name} was not said to its end"
    for run in records:
        if run.state is RunState.COMPLETE and (run.result is None or run.result.metrics is None):
            yield f"run {run.run_id} is COMPLETE without figures"
    for log in logs:
        for run_id, reason in _SAID.findall(log.read_text(encoding="utf-8", errors="replace")):
            if not _is_kept(known.get(run_id), reason):
                yield f"run {run_id} ended {reason}, and that is nowhere"


def _is_kept(run: RunRecord | None, reason: str) -> bool:
    if reason == EndReason.LEASE_EXPIRED:  # not a result: the worker was told so
        return True
    if run is None:
        return False
    return run.end_reason == reason or (run.late_result is not None and run.late_result.end_reason == reason)
