"""What a careful user writes with Optuna alone: the worker that the soak compares ours with.

Heartbeat, grace period, retry callback, `pool_pre_ping`, a busy timeout, a budget over all workers: all that Optuna's
manual has for the purpose. The training is the same pretence as in `mathverify_sweep.worker.rehearsal`. What happens is
also written to a local file, so that what the database forgot can be counted.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage, RetryFailedTrialCallback
from optuna.study import MaxTrialsCallback
from optuna.trial import TrialState

TICK_SECONDS = 0.1
ROWS = 400
RUNGS = (50, 100, 200)
LOG_POINTS = 10


class Ledger:
    """One line for each thing that happens, in a file of this process."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / f"stock-{os.getpid()}.jsonl").open("a", encoding="utf-8")

    def write(self, what: str, trial: optuna.Trial, value: float | None = None) -> None:
        """`what` happened to the trial, now."""
        line = {"what": what, "trial": trial.number, "pid": os.getpid(), "at": time.time(), "value": value}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def train(trial: optuna.Trial, seconds: float) -> float:
    """Take the time, report at the rungs, keep the curve; the value."""
    rate = trial.suggest_float("learning_rate", 1e-5, 1e-1, log=True)
    rank = trial.suggest_categorical("lora_r", [4, 8, 16])
    quality = math.exp(-((math.log10(rate) + 3) ** 2)) * (0.8 + 0.2 * rank / 16)
    ticks, rungs, value = math.ceil(seconds / TICK_SECONDS), list(RUNGS), 0.5
    for tick in range(1, ticks + 1):
        time.sleep(TICK_SECONDS)
        rows = ROWS * tick // ticks
        value = 0.5 + 0.45 * quality * (1 - math.exp(-rows / 200))
        if tick * LOG_POINTS // ticks > (tick - 1) * LOG_POINTS // ticks:
            trial.set_user_attr(f"loss_{rows}", 0.7 - 0.6 * tick / ticks)
        while rungs and rungs[0] <= rows:
            trial.report(value, rungs.pop(0))
            if trial.should_prune():
                raise optuna.TrialPruned
    return value


def main() -> None:
    """Work until the study has as many trials as it may."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("study")
    parser.add_argument("ledger", type=Path)
    parser.add_argument("--trials", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--heartbeat", type=int, required=True)
    options = parser.parse_args()
    engine: dict[str, Any] = {"pool_pre_ping": True}
    if options.url.startswith("sqlite"):
        engine["connect_args"] = {"timeout": 60}
    storage = RDBStorage(
        options.url,
        engine_kwargs=engine,
        heartbeat_interval=options.heartbeat,
        grace_period=2 * options.heartbeat,
        heartbeat_stale_trial_callback=RetryFailedTrialCallback(max_retry=3),
    )
    study = optuna.create_study(
        study_name=options.study,
        storage=storage,
        load_if_exists=True,
        direction="maximize",
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=50, reduction_factor=2),
    )
    ledger = Ledger(options.ledger)

    def objective(trial: optuna.Trial) -> float:
        ledger.write("began", trial)
        try:
            value = train(trial, options.seconds)
        except optuna.TrialPruned:
            ledger.write("pruned", trial)
            raise
        ledger.write("returned", trial, value)
        return value

    done = (TrialState.COMPLETE, TrialState.PRUNED)
    if len(study.get_trials(deepcopy=False, states=done)) < options.trials:
        study.optimize(objective, callbacks=[MaxTrialsCallback(options.trials, states=done)])


if __name__ == "__main__":
    main()
