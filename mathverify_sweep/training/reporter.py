"""Whom a run talks to while it trains. Imports no torch."""

from __future__ import annotations

from typing import Protocol

from mathverify_sweep.states import EndReason, Verdict


class Reporter(Protocol):
    """One run's way to say how far it is, and to hear whether to go on."""

    def report(self, rows_seen: int, value: float) -> Verdict:
        """The objective at a rung; `rows_seen` is the rung's own number, so that trials of all batch sizes share it.

        Waits for the verdict.
        """

    def log(self, rows_seen: int, loss: float, learning_rate: float) -> None:
        """The mean training loss since the last log, and the learning rate of the last step."""

    def interrupted(self) -> EndReason | None:
        """Why the run is to end now, if it is; asked after every optimizer step.

        PREEMPTED: write a checkpoint, then end so. Anything else: end so.
        """
