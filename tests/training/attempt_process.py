"""One attempt of a run in a process of its own, which says on standard output how far it is.

`python attempt_process.py ORDER`, where ORDER is JSON: spec, folder, resume_from, checkpoint_seconds. A line per
optimizer step, then the RunResult and what the run logged and reported, as one line of JSON each.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from mathverify_sweep.specs import RunSpec
from mathverify_sweep.states import EndReason
from mathverify_sweep.training.reference import ReferenceEngine
from tests.training.tiny_fixture import Recorder, trained


def say(line: str) -> None:
    """At once: whoever listens may kill this process for it."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class Teller(Recorder):
    """Says every step."""

    def interrupted(self) -> EndReason | None:
        say("step")
        return super().interrupted()


def main(order: str) -> None:
    """Train it."""
    torch.set_num_threads(1)
    told = json.loads(order)
    spec, folder = RunSpec.model_validate(told["spec"]), Path(told["folder"])
    recorder = Teller()
    result = trained(
        ReferenceEngine("cpu"),
        spec,
        folder,
        recorder,
        resume_from=tuple(map(Path, told["resume_from"])),
        checkpoint_seconds=told["checkpoint_seconds"],
    )
    say(result.model_dump_json())
    say(json.dumps([recorder.logs, recorder.reports]))


if __name__ == "__main__":
    main(sys.argv[1])
