"""A worker process of test_processes.py: asks an Optuna study for its enqueued trials, and says which it got."""

from __future__ import annotations

import json
import sys

import optuna

from mathverify_sweep.store.database import prepare_sqlite

ENQUEUED = 100


def main(url: str) -> None:
    """Ask until the queue is empty, which shows in a value that was not enqueued."""
    storage = optuna.storages.RDBStorage(url)
    prepare_sqlite(storage.engine)
    study = optuna.load_study(study_name="s", storage=storage, sampler=optuna.samplers.RandomSampler())
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()  # all start at once
    got = []
    while (x := study.ask().suggest_int("x", 0, 10**9)) < ENQUEUED:
        got.append(x)
    json.dump(got, sys.stdout)


optuna.logging.set_verbosity(optuna.logging.ERROR)
main(sys.argv[1])
