"""The faults, one play each: what is done to workers, and what must come of it. Played on a study of their own.

After each, `stage.audit()` says whether the study is whole. A play raises Broken, or NeverHappened.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mathverify_sweep.chaos.doors import Door
from mathverify_sweep.chaos.stage import Stage
from mathverify_sweep.states import EndReason, RunState
from mathverify_sweep.store.runs import RunRecord


class Broken(Exception):
    """Something that must hold does not."""


@dataclass(frozen=True)
class Scenario:
    """A play on a study of `trials` trials. `duty`: see `fleet.Duty`. `ends`: whether the study comes to its end."""

    name: str
    promise: str
    play: Callable[[Stage, Door], None]
    trials: int
    duty: Mapping[str, Any] = field(default_factory=dict)
    ends: bool = True


def killed(stage: Stage, _door: Door) -> None:
    """SIGKILL, which nobody can prepare for."""
    victim = stage.fleet.start(0)
    lost = stage.wait_until_trained(victim, rows=200)
    stage.fleet.start(1)
    victim.signal(signal.SIGKILL)
    stage.wait_until_done()
    ended, again = _attempts(stage, lost)
    _require(ended.end_reason is EndReason.LEASE_EXPIRED, f"run {ended.run_id} ended {ended.end_reason}")
    _require(again.state is RunState.COMPLETE, f"the next attempt ended {again.end_reason}")
    _require_resumed(stage, again)


def terminated(stage: Stage, _door: Door) -> None:
    """SIGTERM, as schedulers and clouds send it some seconds before they kill."""
    victim = stage.fleet.start(0)
    lost = stage.wait_until_trained(victim, rows=200)
    victim.signal(signal.SIGTERM)
    stage.wait_until("the worker that was sent away has ended", lambda: not victim.lives)
    (handed_back,) = [run for run in stage.runs() if run.run_id == lost.run_id]
    _require(handed_back.end_reason is EndReason.PREEMPTED, f"its run ended {handed_back.end_reason}")
    stage.fleet.start(1)
    stage.wait_until_done()
    _ended, again = _attempts(stage, lost)
    _require(again.failures == 0, "a preemption was counted as a failure")
    _require_resumed(stage, again)


def frozen(stage: Stage, _door: Door) -> None:
    """SIGSTOP beyond the lease, then SIGCONT: a machine that was suspended, and does not know it."""
    sleeper = stage.fleet.start(0)
    lost = stage.wait_until_trained(sleeper, rows=100)
    sleeper.signal(signal.SIGSTOP)
    stage.fleet.start(1)
    stage.wait_until("the frozen worker's lease expires", lambda: _end(stage, lost) is not None)
    before = stage.rows_seen(lost.run_id)
    sleeper.signal(signal.SIGCONT)
    stage.wait_until_done()
    ended, _again = _attempts(stage, lost)[:2]
    _require(ended.end_reason is EndReason.LEASE_EXPIRED, f"an ended row was written again: {ended.end_reason}")
    _require(stage.rows_seen(lost.run_id) == before, "a worker wrote to a run that it had lost")


def hangs(stage: Stage, _door: Door) -> None:
    """An engine that takes no step any more, while its worker renews the lease."""
    stage.fleet.start(0, faults={"0": "hang"})
    stage.wait_until_done()
    hung, again = [run for run in stage.runs() if run.trial_number == 0]
    _require(hung.end_reason is EndReason.HUNG, f"it ended {hung.end_reason}")
    _require(again.state is RunState.COMPLETE, f"the next attempt ended {again.end_reason}")


def blocks(stage: Stage, _door: Door) -> None:
    """An engine that holds its interpreter's lock for three lease periods, as a long native call does."""
    stage.fleet.start(0, faults={"0": "gil:6"})
    stage.fleet.start(1)
    stage.wait_until_done()
    _require_untouched(stage)


def away(stage: Stage, door: Door) -> None:
    """The database goes away under four workers, for longer than any lease, and comes back."""
    for gpu in range(4):
        stage.fleet.start(gpu)
    stage.wait_until("four runs are trained", lambda: sum(stage.rows_seen(r.run_id) > 0 for r in stage.running()) == 4)
    during = {run.run_id for run in stage.running()}
    door.shut()
    outage_seconds = 8 * stage.lease_seconds
    time.sleep(outage_seconds)
    door.open()
    stage.wait_until_done()
    _require_untouched(stage)
    _require_all_reports(stage)
    # A report waits up to 5 s for its verdict before and after; whoever waited for the database took all of the outage.
    longest = stage.run_seconds + 0.8 * outage_seconds
    slow = [run for run in stage.runs() if run.run_id in during and _train_seconds(run) > longest]
    _require(not slow, f"training waited for the database: {[round(_train_seconds(run)) for run in slow]} s")


def cut(stage: Stage, door: Door) -> None:
    """Connections break again and again."""
    for gpu in range(2):
        stage.fleet.start(gpu)
    for _ in range(6):
        door.cut()
        time.sleep(1)
    stage.wait_until_done()
    _require_untouched(stage)


def full(stage: Stage, _door: Door) -> None:
    """No file of the workers can grow: the outbox, checkpoints, adapters, a SQLite database."""
    members = [stage.fleet.start(gpu) for gpu in range(2)]
    for member in members:
        stage.wait_until_trained(member)
        member.limit_files(0)
    time.sleep(2 * stage.lease_seconds)
    for member in members:
        member.limit_files(None)
    stage.wait_until_done()


def endings(stage: Stage, _door: Door) -> None:
    """A loss that is not a number, memory that does not suffice, an engine that dies."""
    stage.fleet.start(0, faults={"0": "nan", "1": "oom", "2": "exit"})
    stage.wait_until_done()
    reasons = {n: [run.end_reason for run in stage.runs() if run.trial_number == n] for n in range(3)}
    _require(reasons[0] == [EndReason.DIVERGED], f"a NaN ended {reasons[0]}")
    _require(reasons[1] == [EndReason.OUT_OF_MEMORY, EndReason.FINISHED], f"out of memory ended {reasons[1]}")
    _require(reasons[2][0] in (EndReason.CRASHED, EndReason.KILLED), f"an engine's exit ended {reasons[2]}")
    first, second = [run.spec for run in stage.runs() if run.trial_number == 1]
    assert first is not None
    assert second is not None
    smaller = (second.micro_batch_tokens or 0) < first.params.effective_batch_size * first.max_length
    _require(smaller, "out of memory was tried again with as many tokens at once")


def crashes(stage: Stage, _door: Door) -> None:
    """The same error on every trial, on two GPUs: it is the code."""
    for gpu in range(2):
        stage.fleet.start(gpu, faults={"*": "crash"})
    stage.wait_until("the study is stopped", lambda: stage.stopped() is not None)
    stage.wait_until("the workers have ended", lambda: not stage.fleet.alive)
    crashed = [run for run in stage.runs() if run.end_reason is EndReason.CRASHED]
    _require(len(crashed) <= 6, f"{len(crashed)} trials were burnt before the study was stopped")
    _require("rehearsed" in (stage.stopped() or ""), f"the reason says nothing: {stage.stopped()}")


def bad_gpu(stage: Stage, _door: Door) -> None:
    """One GPU on which every trial fails, beside one that works, which leaves it the trials that it is to burn."""
    good = stage.fleet.start(0, "--count", "1")
    stage.wait_until("the good GPU has a result", lambda: not good.lives)
    bad = stage.fleet.start(7, faults={"*": "crash"})
    stage.wait_until("the worker of the bad GPU gives up", lambda: not bad.lives)
    bad.hurt = True
    stage.fleet.start(0)
    stage.wait_until_done()
    burnt = [run for run in stage.runs() if run.end_reason is EndReason.CRASHED]
    _require("quarantine" in bad.printed(), f"it does not say why:\n{bad.printed()[-500:]}")
    _require(len(burnt) == 3, f"{len(burnt)} trials were burnt on it")
    _require(stage.stopped() is None, f"the study was stopped: {stage.stopped()}")


_SHORT: Mapping[str, Any] = {"lease_seconds": 2.0, "run_seconds": 3.0}

SCENARIOS = (
    Scenario("killed", "a killed worker's trial goes on from its checkpoint, elsewhere", killed, 2, _SHORT),
    Scenario("terminated", "a worker that is sent away hands its trial back, unharmed", terminated, 1, _SHORT),
    Scenario("frozen", "a worker that wakes up too late writes nothing", frozen, 1, _SHORT),
    Scenario("hang", "an engine that hangs is replaced", hangs, 1, {**_SHORT, "hang_seconds": 8.0}),
    Scenario("lock", "an engine that blocks keeps its lease", blocks, 2, _SHORT),
    Scenario("outage", "the database may go away: training goes on", away, 4, {**_SHORT, "run_seconds": 18.0}),
    Scenario("cuts", "broken connections are mended", cut, 4, _SHORT),
    Scenario("disk", "a full disk costs no trial", full, 4, _SHORT),
    Scenario("endings", "NaN, out of memory and a dead engine each have their policy", endings, 3, _SHORT),
    Scenario("crashes", "an error of the code stops the study early", crashes, 40, _SHORT, ends=False),
    Scenario("bad-gpu", "a bad GPU is taken out, and the study goes on", bad_gpu, 9, {**_SHORT, "run_seconds": 1.0}),
)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Broken(otherwise)


def _attempts(stage: Stage, of: RunRecord) -> list[RunRecord]:
    found = [run for run in stage.runs() if run.trial_number == of.trial_number]
    _require(len(found) > 1, f"trial {of.trial_number} was not run again")
    return found


def _end(stage: Stage, of: RunRecord) -> EndReason | None:
    return next(run.end_reason for run in stage.runs() if run.run_id == of.run_id)


def _train_seconds(run: RunRecord) -> float:
    return run.result.train_seconds if run.result else 0.0


def _require_resumed(stage: Stage, again: RunRecord) -> None:
    """The second attempt took less time than a whole run takes."""
    took = _train_seconds(again)
    _require(took < 0.9 * stage.run_seconds, f"it began from the start: {took:.1f} s of {stage.run_seconds:g} s")


def _require_all_reports(stage: Stage) -> None:
    """What was said while nobody listened was said again."""
    expected = stage.config.rungs
    silent = [t.number for t in stage.trials() if tuple(t.intermediate) != expected]
    _require(not silent, f"Optuna has not all reports of the trials {silent}")


def _require_untouched(stage: Stage) -> None:
    retried = [run for run in stage.runs() if run.attempt > 1]
    _require(not retried, f"{len(retried)} trial(s) had to be run again")
