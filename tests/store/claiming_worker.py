"""A worker process of test_processes.py: takes what it can of the study `s`, and says what it got."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime

from mathverify_sweep.specs import RunSpec
from mathverify_sweep.store import runs
from mathverify_sweep.store.database import connect
from mathverify_sweep.store.runs import Budget, WorkerIdentity

TRIALS = 20


def main(url: str, spec: RunSpec) -> None:
    """Reserve until the budget is spent, then claim until nothing waits."""
    engine = connect(url)
    me = WorkerIdentity(f"worker-{os.getpid()}", "localhost", os.getpid(), "cpu")
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()  # all start at once
    reserved: list[str] = []
    claimed: list[str] = []
    while claim := runs.reserve(engine, "s", me, Budget(TRIALS, None, None), datetime.now(UTC)):
        # No two processes have the same number, as no two have the same Optuna trial.
        trial = os.getpid() * 1000 + len(reserved)
        if runs.attach(engine, claim, trial, spec.model_copy(update={"trial_number": trial})):
            reserved.append(claim.run_id)
    while waiting := runs.claim_waiting(engine, "s", me, datetime.now(UTC)):
        claimed.append(waiting.run_id)
    json.dump({"reserved": reserved, "claimed": claimed}, sys.stdout)


main(sys.argv[1], RunSpec.model_validate_json(sys.argv[2]))
