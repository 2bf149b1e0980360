"""The two that the same faults are done to: our workers, and a stock Optuna worker loop."""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from benchmarks.faults.places import Place
from mathverify_sweep.chaos.audit import audit
from mathverify_sweep.chaos.fleet import Duty, Fleet
from mathverify_sweep.chaos.stage import create, sweep
from mathverify_sweep.states import EndReason, RunState
from mathverify_sweep.store import runs
from mathverify_sweep.store.database import connect

STUDY = "soak"
STOCK_WORKER = Path(__file__).with_name("stock_worker.py")


@dataclass(frozen=True)
class Job:
    """What is to be done: this many trials of so many seconds each, with this lease (or heartbeat) period."""

    trials: int
    run_seconds: float
    lease_seconds: float


@dataclass(frozen=True)
class Score:
    """How it ended. `counts` and `rules` go into the table; a rule maps to what breaks it."""

    counts: dict[str, int]
    rules: dict[str, tuple[str, ...]]


class Contestant(Protocol):
    """Somebody whose workers are hurt."""

    name: str
    fleet: Fleet

    def ended(self) -> int:
        """Trials that have ended with something to show, COMPLETE or PRUNED. Raises when the database is away."""

    def score(self) -> Score:
        """What the database says once all workers have ended."""


class Ours:
    """`mvsweep worker`, with the rehearsal engine."""

    name = "mvsweep"

    def __init__(self, place: Place, job: Job) -> None:
        self._job, self._place = job, place
        self._database = connect(place.url)
        create(self._database, sweep(STUDY, job.trials, pruner={"type": "asha"}))
        duty = Duty(STUDY, place.url, place.output, place.logs, job.lease_seconds, job.run_seconds)
        self.fleet = Fleet(duty)

    def ended(self) -> int:
        """See Contestant."""
        done = (RunState.COMPLETE, RunState.PRUNED)
        return sum(run.state in done for run in runs.runs(self._database, STUDY))

    def score(self) -> Score:
        """The audit, and how its runs ended."""
        records = runs.runs(self._database, STUDY)
        last = {run.trial_number: run for run in records if run.trial_number is not None}
        states = Counter(run.state for run in last.values())
        findings = audit(self._database, STUDY, self._place.output, self.fleet.logs)
        counts = {
            "trials COMPLETE or PRUNED": states[RunState.COMPLETE] + states[RunState.PRUNED],
            "trials FAIL": states[RunState.FAIL],
            "trials left RUNNING or WAITING": states[RunState.RUNNING] + states[RunState.WAITING],
            "attempts": len(records),
            "leases expired": sum(run.end_reason is EndReason.LEASE_EXPIRED for run in records),
            "late results kept": sum(run.late_result is not None for run in records),
        }
        return Score(counts, {finding.rule: finding.broken for finding in findings})


class Stock:
    """`study.optimize` with heartbeat, retry callback and `pool_pre_ping`."""

    name = "stock Optuna"

    def __init__(self, place: Place, job: Job) -> None:
        self._job, self._place = job, place
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        optuna.create_study(study_name=STUDY, storage=self._storage(), direction="maximize")
        place.output.mkdir(parents=True)
        self._ledger = place.logs
        self.fleet = Fleet(
            _StockDuty(
                STUDY, place.url, place.output, place.logs, job.lease_seconds, job.run_seconds, trials=job.trials
            )
        )

    def ended(self) -> int:
        """See Contestant."""
        return sum(map(_is_done, self._trials()))

    def score(self) -> Score:
        """The same rules, as far as they can be asked of it."""
        trials = self._trials()
        states = Counter(trial.state for trial in trials)
        said = [json.loads(line) for file in self._ledger.glob("stock-*.jsonl") for line in _lines(file)]
        done = sum(map(_is_done, trials))
        settings = defaultdict(list)
        for trial in trials:
            settings[_first_of(trial)].append(trial)
        counts = {
            "trials COMPLETE or PRUNED": done,
            "trials FAIL": states[TrialState.FAIL],
            "trials left RUNNING or WAITING": states[TrialState.RUNNING] + states[TrialState.WAITING],
            "attempts": len(trials),
            "settings that never got a result": sum(not any(map(_is_done, group)) for group in settings.values()),
        }
        return Score(counts, _stock_rules(trials, list(settings.values()), said, self._job.trials))

    def _storage(self) -> RDBStorage:
        return RDBStorage(self._place.url)

    def _trials(self) -> list[FrozenTrial]:
        return optuna.load_study(study_name=STUDY, storage=self._storage()).get_trials(deepcopy=False)


@dataclass(frozen=True)
class _StockDuty(Duty):
    trials: int = 0

    def command(self, gpu: int, more: Sequence[str]) -> list[str]:
        """The stock worker's command line."""
        del gpu
        command = [sys.executable, str(STOCK_WORKER), self.url, self.study, str(self.logs)]
        command += ["--trials", str(self.trials), "--seconds", str(self.run_seconds)]
        return [*command, "--heartbeat", str(round(self.lease_seconds)), *more]


def _lines(file: Path) -> list[str]:
    """Those that are whole."""
    return [line for line in file.read_text().split("\n") if line.endswith("}")]


def _first_of(trial: FrozenTrial) -> int:
    """The trial that this one is a retry of, or itself."""
    return int(trial.system_attrs.get("failed_trial", trial.number))


def _is_done(trial: FrozenTrial) -> bool:
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED)


def _stock_rules(
    trials: Sequence[FrozenTrial],
    settings: Sequence[Sequence[FrozenTrial]],
    said: Sequence[dict[str, Any]],
    budget: int,
) -> dict[str, tuple[str, ...]]:
    unfinished = [t for t in trials if t.state in (TrialState.RUNNING, TrialState.WAITING)]
    done = sum(map(_is_done, trials))
    by_number = {trial.number: trial for trial in trials}
    returned = [line["trial"] for line in said if line["what"] in ("returned", "pruned")]
    lost = [number for number in returned if number not in by_number or not _is_done(by_number[number])]
    began = Counter(line["trial"] for line in said if line["what"] == "began")
    twice = [[t.number for t in group] for group in settings if sum(map(_is_done, group)) > 1]
    return {
        "no run is left running or waiting": tuple(f"trial {t.number} is {t.state.name}" for t in unfinished),
        "every trial ended exactly once": tuple(f"trials {numbers} are one setting" for numbers in twice),
        "no trial was lost": () if done == budget else (f"{done} have ended of {budget}",),
        "no trial was run by two at once": tuple(f"trial {n} was begun {c} times" for n, c in began.items() if c > 1),
        "no result was lost": tuple(f"trial {number} returned, and the database does not know" for number in lost),
    }
