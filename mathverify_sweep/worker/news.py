"""What the clerk tells the loop."""

from __future__ import annotations

from dataclasses import dataclass

from mathverify_sweep.specs import RunSpec
from mathverify_sweep.states import Verdict
from mathverify_sweep.store.runs import Claim
from mathverify_sweep.worker.ancestry import Ancestry


@dataclass(frozen=True)
class Claimed:
    """A run is this worker's now; `ancestry`: what it goes on from."""

    claim: Claim
    spec: RunSpec
    ancestry: Ancestry


@dataclass(frozen=True)
class Ruled:
    """The verdict on a report."""

    run_id: str
    rows_seen: int
    verdict: Verdict


@dataclass(frozen=True)
class Lost:
    """The run is no longer this worker's: it is to be ended, and nothing of it is written any more."""

    run_id: str


@dataclass(frozen=True)
class Over:
    """Nothing is left to wait for. `done`: because all is done, not because the study was stopped."""

    done: bool


@dataclass(frozen=True)
class Failed:
    """The clerk has ended on an error that trying again does not mend."""

    error: Exception


News = Claimed | Ruled | Lost | Over | Failed
