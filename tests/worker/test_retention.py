"""What the retention rule keeps: all that a resume may need, and nothing else."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy.engine import Engine

from mathverify_sweep import paths
from mathverify_sweep.config import PromotionConfig
from mathverify_sweep.specs import RunResult, RunSpec
from mathverify_sweep.states import EndReason
from mathverify_sweep.store import leases, promotions, runs, studies
from mathverify_sweep.store.runs import Claim, WorkerIdentity
from mathverify_sweep.study import plans
from mathverify_sweep.worker.retention import tidy, tidy_what_is_here

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ME = WorkerIdentity("w", "host", 1, "cpu")
pytestmark = pytest.mark.parametrize("backend", ["sqlite"])


class Shop:
    """A study whose runs leave checkpoints, and a worker that tidies after each of them as all workers do."""

    def __init__(self, engine: Engine, output: Path, spec: RunSpec) -> None:
        self.engine, self.output, self.spec = engine, output, spec
        studies.create(engine, studies.StudyRecord("s", "{}", "f", None, None, NOW))

    def promote(self, plan: str, *stages: int) -> str:
        settings = PromotionConfig.model_validate({"plan": plan, "stages": list(stages)})
        planned = plans.plan(self.spec, stages[-1], settings)
        return promotions.record(self.engine, "s", 0, settings.key, planned, NOW)[0]

    def claim(self) -> Claim | None:
        return runs.claim_waiting(self.engine, "s", ME, NOW)

    def started(self, *checkpoints: int) -> Claim:
        """The next run, with checkpoints at so many rows."""
        claim = self.claim()
        assert claim is not None
        for rows in checkpoints:
            (self.folder(claim) / str(rows)).mkdir(parents=True)
        return claim

    def folder(self, claim: Claim) -> Path:
        return paths.checkpoints_folder(paths.run_folder(self.output, "s", claim.run_id, claim.lease_token))

    def left(self, claim: Claim) -> list[int]:
        return [int(path.name) for path in paths.checkpoints(self.folder(claim).parent)]

    def end(self, claim: Claim, reason: EndReason, *, again: bool = False) -> None:
        result = RunResult(end_reason=reason, value=0.5, adapter="a")
        assert runs.finish(self.engine, claim, result, NOW, claim.spec if again else None)
        tidy(self.engine, "s", 0, self.output)

    def expire(self, claim: Claim) -> None:
        (lease,) = leases.running(self.engine, "s")
        assert lease.run_id == claim.run_id
        assert leases.expire(self.engine, lease, NOW) is not None
        tidy(self.engine, "s", 0, self.output)


@pytest.fixture
def shop(engine: Engine, spec: RunSpec, tmp_path: Path) -> Shop:
    return Shop(engine, tmp_path, spec.model_copy(update={"train_rows": 1_000}))


def test_a_run_keeps_its_newest_two_over_all_attempts_and_none_when_it_has_finished(shop: Shop) -> None:
    shop.promote("scratch", 1_000)
    first = shop.started(100, 200)
    shop.end(first, EndReason.PREEMPTED, again=True)
    assert shop.left(first) == [100, 200]
    second = shop.started(300)
    shop.end(second, EndReason.KILLED, again=True)
    assert (shop.left(first), shop.left(second)) == ([200], [300])
    third = shop.started(400, 500)
    shop.end(third, EndReason.PREEMPTED, again=True)
    assert (shop.left(first), shop.left(second), shop.left(third)) == ([], [], [400, 500])
    fourth = shop.started()
    shop.end(fourth, EndReason.FINISHED)
    assert shop.left(third) == []


def test_a_run_that_expired_and_was_taken_over_leaves_nothing_when_its_successor_has_finished(shop: Shop) -> None:
    shop.promote("scratch", 1_000)
    lost = shop.started(100, 200)
    shop.expire(lost)
    assert shop.left(lost) == [100, 200], "its successor goes on from them"
    successor = shop.started(300)
    tidy(shop.engine, "s", 0, shop.output)
    assert shop.left(successor) == [300], "a running engine sees to its own"
    shop.end(successor, EndReason.FINISHED)
    assert not list(shop.output.rglob("checkpoints"))


def test_a_trunk_piece_keeps_its_state_exactly_until_the_last_run_that_goes_on_from_it_has_ended(shop: Shop) -> None:
    """Piece 1; cooldown 1 and piece 2 go on from it; cooldown 2 goes on from piece 2."""
    shop.promote("trunk", 400, 1_000)
    piece = shop.started(300)
    shop.end(piece, EndReason.FINISHED)
    assert shop.left(piece) == [300]
    cooldown, second = shop.started(350), shop.started(800)
    shop.end(cooldown, EndReason.PREEMPTED, again=True)
    shop.end(second, EndReason.FINISHED)
    assert (shop.left(piece), shop.left(second), shop.left(cooldown)) == ([300], [800], [350])
    last, again = shop.started(), shop.started()
    assert (last.continues, again.continues) == (None, cooldown.run_id)
    shop.end(again, EndReason.FINISHED)
    assert (shop.left(piece), shop.left(second), shop.left(cooldown)) == ([], [800], [])
    shop.end(last, EndReason.FINISHED)
    assert not list(shop.output.rglob("checkpoints"))


def test_what_a_person_may_resume_is_kept_until_it_is_resumed_and_ended(shop: Shop) -> None:
    promotion = shop.promote("trunk", 1_000)
    piece = shop.started(700)
    shop.end(piece, EndReason.FINISHED)
    cooldown = shop.started(900)
    shop.end(cooldown, EndReason.STOPPED_BY_USER)
    assert (shop.left(piece), shop.left(cooldown)) == ([700], [900])
    (again,) = promotions.resume(shop.engine, promotion, NOW)
    resumed = shop.started()
    assert (resumed.run_id, resumed.continues) == (again, cooldown.run_id)
    shop.end(resumed, EndReason.FINISHED)
    assert (shop.left(piece), shop.left(cooldown)) == ([], [])


def test_a_worker_that_begins_deletes_what_is_left_here_of_runs_that_another_host_has_ended(shop: Shop) -> None:
    shop.promote("scratch", 1_000)
    first = shop.started(100, 200)
    shop.end(first, EndReason.PREEMPTED, again=True)
    tidy_what_is_here(shop.engine, "s", shop.output)
    assert shop.left(first) == [100, 200], "its next attempt goes on from them"
    here, shop.output = shop.output, shop.output / "other-host"
    shop.end(shop.started(300), EndReason.FINISHED)
    shop.output = here
    assert shop.left(first) == [100, 200]
    tidy_what_is_here(shop.engine, "s", shop.output)
    assert not shop.left(first)


def test_a_trial_that_failed_for_good_keeps_nothing(shop: Shop) -> None:
    runs.enqueue(shop.engine, shop.spec, NOW)
    trial = shop.started(100)
    shop.end(trial, EndReason.CRASHED)
    assert shop.left(trial) == []


def test_whatever_happens_the_newest_checkpoint_of_a_run_that_goes_on_is_there(shop: Shop) -> None:
    """Random plans, ends and attempts: before each attempt, the newest checkpoint of its run and of its trunk."""
    dice = random.Random(5)
    for size in range(5):
        shop.promote("trunk", 300 + size, 600 + size, 1_000 + size)
    newest: dict[str, tuple[Claim, int]] = {}
    for _ in range(400):
        claim = shop.claim()
        if claim is None:
            break
        assert claim.spec is not None
        for before in (claim.continues, claim.spec.goes_on_from):
            if before in newest:
                owner, rows = newest[before]
                assert rows in shop.left(owner)
        if claim.continues in newest:
            newest[claim.run_id] = newest[claim.continues]
        for rows in sorted(dice.sample(range(1, 1_000), dice.randint(0, 2))):
            (shop.folder(claim) / str(rows)).mkdir(parents=True)
            newest[claim.run_id] = (claim, rows)
        reason = dice.choice([EndReason.FINISHED, EndReason.FINISHED, EndReason.PREEMPTED, EndReason.KILLED])
        shop.end(claim, reason, again=reason is not EndReason.FINISHED)
    else:
        raise AssertionError("it never came to its end")
    assert not list(shop.output.rglob("checkpoints"))
