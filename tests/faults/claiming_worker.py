"""A worker process of test_exactly_once.py: claims runs as a worker does until there is none, and says which it got."""

from __future__ import annotations

import json
import sys

from mathverify_sweep.store.database import connect
from mathverify_sweep.store.runs import WorkerIdentity
from mathverify_sweep.study.study import open_study
from mathverify_sweep.worker.claims import claim


def main(url: str, study: str) -> None:
    """Claim, once told to go."""
    database = connect(url)
    identity = WorkerIdentity.of_this_process("cpu", 60.0)
    got = []
    with open_study(database, study) as handle:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()  # all start at once
        while (claimed := claim(database, handle, identity)) is not None:
            assert claimed.spec is not None
            got.append((claimed.run_id, claimed.trial_number, claimed.spec.params.learning_rate))
    json.dump(got, sys.stdout)


main(*sys.argv[1:])
