"""THE LOOP: keep the engine's slots filled with runs, and see each of them to its end. Imports no torch.

Three parties: the engine process trains, the clerk's thread talks to the database, and this loop stands between them
and waits for neither. Our row first, Optuna second, W&B never waited for.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

from mathverify_sweep import environment, paths
from mathverify_sweep.errors import MvsweepError
from mathverify_sweep.specs import RunResult
from mathverify_sweep.states import EndReason, Verdict
from mathverify_sweep.store import provenance
from mathverify_sweep.store.runs import WorkerIdentity
from mathverify_sweep.tracking import Tracker, TrackingSettings
from mathverify_sweep.worker import measuring
from mathverify_sweep.worker.attempt import Attempt
from mathverify_sweep.worker.carrier import Carrier
from mathverify_sweep.worker.clerk import Clerk, ClerkOptions
from mathverify_sweep.worker.engine import Engine, EngineDied
from mathverify_sweep.worker.messages import (
    Answer,
    Ended,
    FromEngine,
    Interrupt,
    Logged,
    Prepare,
    Ready,
    Refused,
    Reported,
    Room,
)
from mathverify_sweep.worker.news import Claimed, Failed, Lost, News, Over, Ruled
from mathverify_sweep.worker.options import WorkerOptions
from mathverify_sweep.worker.signals import hearing_signals

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine as Database

    from mathverify_sweep.study.study import StudyHandle

log = logging.getLogger(__name__)

LISTEN_SECONDS = 0.5
"""How long the loop waits for the engine or the clerk before it looks at signals and the time."""
VERDICT_SECONDS = 5.0
"""How long a run waits for its verdict; then it goes on, and the pruner has its say at the next rung."""
HAND_BACK_SECONDS = 20.0
"""How long the engine has for the checkpoints of preempted runs: schedulers kill 30 s after their notice."""
LOADS = 3
"""Engines in a row that may be killed while they load, before the worker gives up."""
LAST_WORDS_SECONDS = 8.0
"""How long a worker that was told to end tries to reach the database."""
NOTICE_SECONDS = 30.0
"""How long before its time limit a worker begins to hand back; of a short limit a quarter."""


class Worker:
    """One worker process on one device, working on one study."""

    def __init__(self, database: Database, study: StudyHandle, options: WorkerOptions) -> None:
        self._study = study
        self._options = options
        self._name = study.config.study
        code = provenance.environment_id(environment.described())
        self._identity = WorkerIdentity.of_this_process(options.device.label, options.lease_seconds, code)
        rates = measuring.known(study.config, study.data_fingerprint, options.device, options.engine)
        told = (options.output, options.lease_seconds, options.until_idle, options.trust_gpu, rates)
        self._clerk = Clerk(database, study, self._identity, ClerkOptions(*told))
        tracking = study.config.tracking
        self._carrier = Carrier(options.output, self._told_to_end)
        self._tracker = Tracker(TrackingSettings(tracking.wandb, tracking.project, tracking.entity))
        self._engine: Engine | None = None
        self._replace_engine = False
        self._heard_at = 0.0
        self._room = self._started = 0
        self._attempts: dict[str, Attempt] = {}
        self._held_back: Attempt | None = None  # until the engine is empty: it has another base model
        self._is_asking = False
        self._taken = 0
        self._over: Over | None = None
        self._signal: int | None = None
        limit = options.time_limit_seconds or float("inf")
        self._ends_at = time.monotonic() + limit - min(NOTICE_SECONDS, limit / 4)
        self._is_handing_back = False

    def work(self) -> bool:
        """Take runs until there is nothing left to take; whether the asked work is done, not cut short.

        Raises MvsweepError when this machine's data is not the study's or its base model cannot be loaded, when its GPU
        is quarantined, and for whatever the database refuses for good.
        """
        with hearing_signals(self._note_signal):
            try:
                log.info("worker %s on %s: study %s", self._identity.worker_id, self._identity.gpu, self._name)
                self._clerk.start()
                while not self._is_over():
                    self._keep_engine()
                    try:
                        self._ask_for_runs()
                        self._listen()
                        self._begin_held_back()
                        self._look_at_the_time()
                        self._carrier.settle()
                    except EngineDied as died:
                        self._bury_engine(died)
                return self._close()
            except BaseException:
                self._hand_back("the worker ended on an error")
                raise
            finally:
                self._end_engine()
                self._carrier.finish()
                self._tracker.close()

    def _is_over(self) -> bool:
        if self._told_to_end() is not None:
            return True
        idle = not (self._attempts or self._is_asking or self._carrier.is_delivering)
        return idle and (self._over is not None or self._taken == self._options.count)

    def _told_to_end(self) -> str | None:
        """Why the runs are to be handed back now; None while they are not."""
        if self._signal is not None:
            return f"signal {self._signal}"
        limit = self._options.time_limit_seconds
        return f"time limit of {limit:g} s" if limit and time.monotonic() >= self._ends_at else None

    def _keep_engine(self) -> None:
        """Have an engine; what crashed one run may have broken more, so it is replaced when it is empty."""
        if self._replace_engine and not self._attempts:
            self._end_engine()
        if self._engine is None and self._told_to_end() is None:
            self._load_engine()

    def _ask_for_runs(self) -> None:
        """One at a time: what the engine has room for is known when it has taken the one before."""
        is_wanted = self._taken != self._options.count and self._over is None and not self._replace_engine
        # A run that has failed before gets no company: it may have been the one that took the others along.
        is_risky = any(attempt.claim.failures > 0 for attempt in self._attempts.values())
        is_wanted &= self._held_back is None
        if is_wanted and self._room > 0 and not self._is_asking and not is_risky:
            self._is_asking = True
            self._clerk.ask_for_run()

    def _listen(self) -> None:
        """Wait for the engine or the clerk, whoever has something to say first."""
        sources: list[Connection | int] = [self._clerk.bell, *([self._engine.connection] if self._engine else [])]
        wait(sources, LISTEN_SECONDS)
        self._hear_news()
        while self._engine is not None and (message := self._engine.receive(0)) is not None:
            self._hear_engine(message)

    def _hear_news(self) -> None:
        while (news := self._clerk.next_news()) is not None:
            self._hear_clerk(news)

    def _hear_clerk(self, news: News) -> None:
        if isinstance(news, Claimed):
            self._held_back = self._take(news)
            self._begin_held_back()
        elif isinstance(news, Ruled):
            self._answer(news.run_id, news.rows_seen, news.verdict)
        elif isinstance(news, Lost):
            self._lose(news.run_id)
        elif isinstance(news, Over):
            self._is_asking = False
            self._over = news
        elif isinstance(news, Failed):
            raise news.error

    def _hear_engine(self, message: FromEngine) -> None:
        self._heard_at = time.monotonic()
        if isinstance(message, Ended):
            self._end(message.run_id, message.result)
        elif isinstance(message, Room):
            if message.begun == self._started:  # else it was said before the engine heard of the latest run
                self._room = message.free_slots
        elif isinstance(message, Logged | Reported) and message.run_id in self._attempts:
            attempt = self._attempts[message.run_id]
            if isinstance(message, Logged):
                self._clerk.say(attempt.logged(message))
            else:
                self._clerk.say(attempt.reported(message))
                self._await_verdict(attempt, message)

    def _take(self, claimed: Claimed) -> Attempt:
        self._is_asking = False
        self._taken += 1
        claim, spec, ancestry = claimed.claim, claimed.spec, claimed.ancestry
        folder = paths.run_folder(self._options.output, self._name, claim.run_id, claim.lease_token)
        tracked = self._tracker.start(ancestry.first_run_id, spec, folder, ancestry.drawn(spec.objective))
        attempt = Attempt(claim, spec, ancestry, folder, tracked)
        attempt.drop_earlier_pictures()
        attempt.brought = self._carrier.bring((*ancestry.folders, *ancestry.trunk), ancestry.start_adapter)
        self._attempts[claim.run_id] = attempt
        return attempt

    def _begin_held_back(self) -> None:
        """Runs that share an engine share its base model; one with another begins when the others have ended.

        None begins before what it goes on from is here; while the URL of the output folder is away, that may be long.
        """
        attempt = self._held_back
        base_models = {other.spec.base_model for other in self._attempts.values()}
        if attempt and attempt.brought.done() and base_models == {attempt.spec.base_model}:
            self._held_back = None
            self._begin(attempt)

    def _begin(self, attempt: Attempt) -> None:
        log.info("%s: %s", attempt.title, attempt.settings)
        if attempt.ancestry.problem is not None:
            self._end(attempt.claim.run_id, RunResult(end_reason=EndReason.CRASHED, message=attempt.ancestry.problem))
            return
        if attempt.ancestry.unneeded is not None:
            self._end(attempt.claim.run_id, RunResult(end_reason=EndReason.PRUNED, message=attempt.ancestry.unneeded))
            return
        self._room = 0  # until the engine says more
        self._started += 1
        self._heard_at = time.monotonic()
        assert self._engine is not None
        self._engine.send(attempt.order(self._options.checkpoint_seconds))
        self._carrier.follow(attempt.folder)

    def _await_verdict(self, attempt: Attempt, message: Reported) -> None:
        attempt.asked = (message.rows_seen, time.monotonic())
        if attempt.spec.stage is not None or self._clerk.is_away or attempt.is_lost or self._is_handing_back:
            self._answer(attempt.claim.run_id, message.rows_seen, Verdict.CONTINUE)

    def _answer(self, run_id: str, rows_seen: int, verdict: Verdict) -> None:
        """Nothing, when the run has had its answer, or has ended."""
        attempt = self._attempts.get(run_id)
        if attempt is not None and attempt.asked is not None and attempt.asked[0] == rows_seen:
            attempt.asked = None
            assert self._engine is not None
            self._engine.send(Answer(run_id=run_id, verdict=verdict))

    def _lose(self, run_id: str) -> None:
        attempt = self._attempts.get(run_id)
        if attempt is not None:
            attempt.is_lost = True
            if attempt is self._held_back:  # the engine has not heard of it
                self._held_back = None
                self._end(run_id, RunResult(end_reason=EndReason.LEASE_EXPIRED))
            else:
                self._interrupt(attempt, EndReason.LEASE_EXPIRED)

    def _end(self, run_id: str, result: RunResult) -> None:
        """A run has ended: in its row, in Optuna and in W&B. One whose lease was lost leaves a late result at most."""
        attempt = self._attempts.pop(run_id)
        attempt.brought.cancel()

        def say_so() -> None:
            self._clerk.say(attempt.finished(result, self._options.output))

        # Then, not before: who hears that it has ended looks for what it has left.
        self._carrier.deliver(attempt.folder, say_so, checkpoints=attempt.is_gone_on_from(result))
        score = "" if result.value is None else f" with {result.value:.4f} after {result.rows_seen} rows"
        log.info("%s ended %s%s", attempt.title, result.end_reason, score)
        if result.end_reason is EndReason.CRASHED:
            log.error("%s crashed:\n%s", attempt.title, result.message)
            self._replace_engine |= attempt.ancestry.problem is None

    def _look_at_the_time(self) -> None:
        now = time.monotonic()
        for attempt in list(self._attempts.values()):
            if attempt.asked is not None and now - attempt.asked[1] > VERDICT_SECONDS:
                self._answer(attempt.claim.run_id, attempt.asked[0], Verdict.CONTINUE)
        trains = any(attempt is not self._held_back for attempt in self._attempts.values())
        if trains and now - self._heard_at > self._options.hang_seconds:
            message = f"no progress for {self._options.hang_seconds:g} s"
            self._end_engine()
            self._end_together(EndReason.HUNG, message)

    def _bury_engine(self, died: EngineDied) -> None:
        """What it said before it died still counts; the runs that it held end with it."""
        log.error("%s", died)
        with suppress(EngineDied):
            while self._engine is not None and (message := self._engine.receive(0)) is not None:
                with suppress(EngineDied):  # an answer that cannot be sent
                    self._hear_engine(message)
        self._end_engine()
        self._end_together(EndReason.KILLED if died.was_killed else EndReason.CRASHED, str(died))

    def _end_together(self, reason: EndReason, message: str) -> None:
        """Of several runs, nobody knows which one it was: all are tried again, and then alone."""
        begun = len(self._attempts) - (self._held_back is not None)
        self._end_all(RunResult(end_reason=EndReason.KILLED if begun > 1 else reason, message=message))

    def _end_all(self, result: RunResult) -> None:
        """But for one that is held back: no engine has heard of it."""
        for run_id, attempt in list(self._attempts.items()):
            if attempt is not self._held_back:
                self._end(run_id, result)

    def _interrupt(self, attempt: Attempt, reason: EndReason) -> None:
        """An engine that waits for a verdict would not hear of it."""
        run_id = attempt.claim.run_id
        if attempt.asked is not None:
            self._answer(run_id, attempt.asked[0], Verdict.CONTINUE)
        if self._engine is not None:
            self._engine.send(Interrupt(run_id=run_id, reason=reason))

    def _close(self) -> bool:
        """Say the last words; whether all that was asked for is done."""
        if (why := self._told_to_end()) is not None:
            self._hand_back(why)
            return False
        while not self._clerk.close(LISTEN_SECONDS):
            self._hear_news()  # whatever has ended the clerk
            if (why := self._told_to_end()) is not None:
                self._hand_back(why)
                return False
        return self._over is None or self._over.done

    def _hand_back(self, why: str) -> None:
        """Hand back what is held, with a checkpoint where the engine writes one in time, and tell the database."""
        log.info("handing back what is held: %s", why)
        self._is_handing_back = True
        deadline = self._carrier.hurry(HAND_BACK_SECONDS)
        self._clerk.ask_for_nothing()
        while (news := self._clerk.next_news()) is not None:
            if isinstance(news, Claimed):
                self._held_back = self._take(news)
        if self._held_back is not None:  # the engine has not heard of it
            self._end(self._held_back.claim.run_id, RunResult(end_reason=EndReason.PREEMPTED, message=why))
            self._held_back = None
        try:
            self._have_checkpoints_written(deadline)
        except EngineDied as died:
            log.error("%s", died)
        self._end_engine()
        self._end_all(RunResult(end_reason=EndReason.PREEMPTED, message=why))
        self._carrier.settle_all()
        if not self._clerk.close(LAST_WORDS_SECONDS):
            log.warning("what the database could not be told is kept in %s; the next worker says it", self._clerk.file)

    def _have_checkpoints_written(self, deadline: float) -> None:
        for attempt in self._attempts.values():
            self._interrupt(attempt, EndReason.PREEMPTED)
        while self._attempts and self._engine is not None and time.monotonic() < deadline:
            if (message := self._engine.receive(LISTEN_SECONDS)) is not None:
                self._hear_engine(message)

    def _load_engine(self) -> None:
        """Again when it is killed before it is ready: mostly for want of host memory, which others may free."""
        for left in reversed(range(LOADS)):
            try:
                self._ready_engine()
            except EngineDied as died:
                if not died.was_killed or left == 0:
                    raise
                log.error("%s", died)
                log.warning("starting another engine: one was killed while it loaded")
                self._end_engine()
            else:
                return

    def _ready_engine(self) -> None:
        log_file = paths.engine_log(self._options.output, self._name, self._identity.worker_id)
        self._engine = Engine(self._options.device, self._options.engine, log_file)
        self._replace_engine = False
        config = self._study.config
        self._engine.send(
            Prepare(
                base_model=config.base_model,
                data=config.data_spec,
                data_fingerprint=self._study.data_fingerprint,
            )
        )
        deadline = time.monotonic() + self._options.hang_seconds
        while self._told_to_end() is None:
            if time.monotonic() > deadline:
                raise MvsweepError(
                    f"the engine must be ready after {self._options.hang_seconds:g} s, and is not. Look at the GPU and "
                    f"its driver (mvsweep doctor), and at {log_file}"
                )
            message = self._engine.receive(LISTEN_SECONDS)
            if isinstance(message, Refused):
                raise MvsweepError(message.message)
            if isinstance(message, Ready):
                log.info("the %s engine is ready%s", message.engine, f": {message.note}" if message.note else "")
                self._heard_at = time.monotonic()
                return

    def _note_signal(self, number: int) -> None:
        self._signal = number

    def _end_engine(self) -> None:
        self._room = self._started = 0
        if self._engine is not None:
            self._engine.kill()
            self._engine = None
