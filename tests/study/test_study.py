"""Claims about studies: what is asked, reported, told and mended, on both databases."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import optuna
import pytest
from sqlalchemy import create_engine
from sqlalchemy.engine import Engine

from mathverify_sweep.config import SweepConfig
from mathverify_sweep.errors import ConfigError, DataDrift, StorageError, StorageUnavailable, StudyError
from mathverify_sweep.reports import rows
from mathverify_sweep.specs import Metrics, RunResult
from mathverify_sweep.states import EndReason, RunState, Verdict
from mathverify_sweep.store import glances, runs, studies
from mathverify_sweep.store.database import connect, upgrade
from mathverify_sweep.store.runs import Budget, Claim, WorkerIdentity
from mathverify_sweep.study import study, views
from mathverify_sweep.study.storage import open_storage
from mathverify_sweep.study.study import StudyHandle, create, open_study

sqlite_only = pytest.mark.parametrize("backend", ["sqlite"])
"""For claims about Optuna, which are the same on every database."""

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WORKER = WorkerIdentity("w", "host", 1, "cpu")
LEARNING_RATE = {"learning_rate": {"low": 1e-5, "high": 1e-1, "log": True}}


def config_of(**sections: Any) -> SweepConfig:
    defaults = {"study": "s", "search_space": LEARNING_RATE, "data": {"train_rows": 800}}
    return SweepConfig.model_validate(defaults | sections)


def opened(engine: Engine, **sections: Any) -> StudyHandle:
    create(engine, config_of(**sections), "f", NOW)
    return open_study(engine, "s")


def finished(value: float) -> RunResult:
    return RunResult(end_reason=EndReason.FINISHED, value=value)


def ended(reason: EndReason) -> RunResult:
    return RunResult(end_reason=reason)


def asked(handle: StudyHandle) -> study.Asked:
    found = handle.ask()
    assert found is not None
    return found


def at_once(work: Callable[[], None]) -> None:
    """Three times, as by three workers."""
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextmanager
def stock(engine: Engine) -> Iterator[optuna.storages.RDBStorage]:
    """The database as Optuna's own tools open it."""
    storage = optuna.storages.RDBStorage(engine.url.render_as_string(hide_password=False))
    yield storage
    storage.remove_session()
    storage.engine.dispose()


def states(engine: Engine) -> list[RunState]:
    return [trial.state for trial in views.trials(engine, "s")]


@pytest.fixture
def handle(engine: Engine) -> Iterator[StudyHandle]:
    with opened(engine) as handle:
        yield handle


def test_creating_twice_changes_nothing(engine: Engine) -> None:
    config = config_of(enqueue=[{"learning_rate": 2e-4}, {"learning_rate": 1e-4}])
    assert create(engine, config, "f", NOW)
    assert not create(engine, config, "f", NOW)
    assert states(engine) == [RunState.WAITING] * 2


def test_many_create_at_once_in_an_empty_database_and_enqueue_once(database_url: str) -> None:
    config = config_of(enqueue=[{"learning_rate": 2e-4}, {"learning_rate": 1e-4}])
    made: list[bool] = []
    seen: list[list[RunState]] = []

    def make() -> None:
        own = connect(database_url)
        upgrade(own)
        made.append(create(own, config, "f", NOW))
        seen.append(states(own))
        own.dispose()

    at_once(make)
    assert sorted(made) == [False, False, True]
    assert seen == [[RunState.WAITING] * 2] * 3


@sqlite_only
def test_a_live_study_does_not_change(engine: Engine) -> None:
    create(engine, config_of(), "f", NOW)
    with pytest.raises(StudyError, match=r"search_space\.learning_rate\.high"):
        create(engine, config_of(search_space={"learning_rate": {"low": 1e-5, "high": 1.0, "log": True}}), "f", NOW)
    with pytest.raises(DataDrift):
        create(engine, config_of(), "other rows", NOW)


@sqlite_only
def test_a_study_of_somebody_else_is_left_alone(engine: Engine) -> None:
    with stock(engine) as storage:
        optuna.create_study(storage=storage, study_name="s")
    with pytest.raises(StudyError, match="did not make"):
        create(engine, config_of(), "f", NOW)
    assert studies.names(engine) == []


def test_a_crash_in_the_middle_of_create_is_mended_by_creating_again(engine: Engine) -> None:
    config = config_of(enqueue=[{"learning_rate": 2e-4}])
    studies.create(engine, studies.StudyRecord("s", config.model_dump_json(), "f", None, None, NOW))
    with pytest.raises(StudyError, match="not created to its end"):
        open_study(engine, "s")
    create(engine, config, "f", NOW)
    assert states(engine) == [RunState.WAITING]


@sqlite_only
def test_an_unknown_study_names_the_nearest(engine: Engine) -> None:
    create(engine, config_of(), "f", NOW)
    with pytest.raises(StudyError, match="'s'"):
        open_study(engine, "ss")


@sqlite_only
def test_sampler_and_pruner_come_from_the_stored_file(engine: Engine) -> None:
    with opened(engine, sampler={"type": "random"}, pruner={"type": "none"}) as handle:
        for trial in range(6):
            asked(handle)
            assert handle.report(trial, 100, -float(trial)) is Verdict.CONTINUE


def test_an_enqueued_setting_comes_first_and_the_sampler_completes_it(engine: Engine) -> None:
    space = {**LEARNING_RATE, "lora_r": {"choices": [8, 16]}}
    with opened(engine, search_space=space, enqueue=[{"learning_rate": 2e-4}]) as handle:
        first = asked(handle)
        assert (first.trial_number, first.params.learning_rate) == (0, 2e-4)
        assert first.params.lora_r in (8, 16)
        assert asked(handle).params.learning_rate != 2e-4
        handle.enqueue({"lora_r": 8})
        assert asked(handle).params.lora_r == 8


@sqlite_only
def test_enqueueing_what_an_axis_does_not_take_says_so(handle: StudyHandle) -> None:
    with pytest.raises(ConfigError, match=r"enqueue\.lora_r"):
        handle.enqueue({"lora_r": 8})
    with pytest.raises(ConfigError, match=r"enqueue\.learning_rate"):
        handle.enqueue({"learning_rate": "fast"})
    with pytest.raises(ConfigError, match=r"enqueue\.learning_rate.*1e-05 to 0\.1"):
        handle.enqueue({"learning_rate": 0.5})


@sqlite_only
def test_what_other_tools_enqueue_wrongly_is_failed_and_passed_over(engine: Engine) -> None:
    with opened(engine, search_space={"lora_r": {"choices": [8, 16]}}) as handle:
        with stock(engine) as storage:
            optuna.load_study(study_name="s", storage=storage).enqueue_trial({"lora_r": 9})
        assert asked(handle).trial_number == 1
        assert states(engine) == [RunState.FAIL, RunState.RUNNING]


def test_workers_who_start_at_once_draw_different_points(engine: Engine) -> None:
    with opened(engine) as one, open_study(engine, "s") as other:
        drawn = {asked(handle).params.learning_rate for handle in (one, other, one, other)}
    assert len(drawn) == 4


@sqlite_only
def test_a_trial_number_always_draws_the_same_start_point(engine: Engine) -> None:
    with opened(engine) as handle:
        first = [asked(handle).params for _ in range(3)]
    with opened_again(engine, "t") as handle:
        assert [asked(handle).params for _ in range(3)] == first


def opened_again(engine: Engine, name: str) -> StudyHandle:
    create(engine, config_of(study=name), "f", NOW)
    return open_study(engine, name)


def test_a_grid_is_enqueued_whole_and_ends(engine: Engine) -> None:
    space = {
        "lr_scheduler_type": {"choices": ["cosine", "cosine_with_restarts"]},
        "lr_num_cycles": {"choices": [2, 3], "when": {"lr_scheduler_type": "cosine_with_restarts"}},
    }
    config = {"search_space": space, "sampler": {"type": "grid"}, "enqueue": [{"lr_scheduler_type": "cosine"}]}
    with opened(engine, **config) as handle:
        assert states(engine) == [RunState.WAITING] * 3 == [RunState.WAITING] * handle.config.trials
        seen = [asked(handle).params for _ in range(3)]
        assert handle.ask() is None
    assert [(p.lr_scheduler_type, p.lr_num_cycles) for p in seen] == [
        ("cosine", 2),
        ("cosine_with_restarts", 2),
        ("cosine_with_restarts", 3),
    ]
    assert [len(trial.params) for trial in views.trials(engine, "s")] == [1, 2, 2]


def test_each_waiting_trial_goes_to_one_worker(engine: Engine) -> None:
    space = {"lora_r": {"choices": [4, 8, 16, 32, 64, 128]}}
    create(engine, config_of(search_space=space, sampler={"type": "grid"}), "f", NOW)
    taken: list[int] = []

    def work() -> None:
        with open_study(engine, "s") as handle:
            while (found := handle.ask()) is not None:
                taken.append(found.trial_number)

    at_once(work)
    assert sorted(taken) == [0, 1, 2, 3, 4, 5]


def test_a_weak_trial_is_pruned_and_the_answer_stays(engine: Engine, handle: StudyHandle) -> None:
    assert handle.config.rungs == (100, 200, 400)
    good, bad = asked(handle).trial_number, asked(handle).trial_number
    assert handle.report(good, 100, 0.8) is Verdict.CONTINUE
    assert handle.report(good, 100, 0.8) is Verdict.CONTINUE
    assert handle.report(bad, 100, 0.6) is Verdict.PRUNE
    with open_study(engine, "s") as other:
        assert other.report(bad, 100, 0.6) is Verdict.PRUNE
    handle.tell(bad, ended(EndReason.PRUNED))
    assert handle.report(bad, 200, 0.9) is Verdict.PRUNE
    view = views.trials(engine, "s")[bad]
    assert (view.state, view.value, view.intermediate) == (RunState.PRUNED, 0.6, {100: 0.6})


@sqlite_only
def test_a_batch_that_passes_a_rung_is_compared_at_the_rung(engine: Engine, handle: StudyHandle) -> None:
    handle.report(asked(handle).trial_number, 128, 0.8)
    assert views.trials(engine, "s")[0].intermediate == {100: 0.8}


@sqlite_only
def test_hyperband_prunes_within_brackets_of_a_stored_study(engine: Engine) -> None:
    pruner = {"type": "hyperband", "reduction_factor": 2}
    config = {"pruner": pruner, "data": {"train_rows": 400}, "sampler": {"type": "random"}}
    with opened(engine, **config) as handle:
        numbers = [asked(handle).trial_number for _ in range(12)]
    pruned_at: dict[int, int] = {}
    with open_study(engine, "s") as one, open_study(engine, "s") as other:
        for rung in handle.config.rungs:
            for number in [n for n in numbers if n not in pruned_at]:
                worker = (one, other)[number % 2]
                if worker.report(number, rung, -number) is Verdict.PRUNE:
                    pruned_at[number] = rung
    assert len(set(pruned_at.values())) > 1, "brackets start to prune at different rungs"
    assert len(pruned_at) < 11, "not all brackets prune"
    assert 0 not in pruned_at


@sqlite_only
def test_the_median_pruner_compares_with_complete_trials_at_the_same_rung(engine: Engine) -> None:
    with opened(engine, pruner={"type": "median", "n_startup_trials": 2}) as handle:
        for value in (0.7, 0.8):
            number = asked(handle).trial_number
            assert handle.report(number, 100, value) is Verdict.CONTINUE
            handle.tell(number, finished(value))
        assert handle.report(asked(handle).trial_number, 100, 0.6) is Verdict.PRUNE
        assert handle.report(asked(handle).trial_number, 100, 0.9) is Verdict.CONTINUE


def test_telling_twice_keeps_what_was_told_first(engine: Engine, handle: StudyHandle) -> None:
    number = asked(handle).trial_number
    handle.tell(number, finished(0.8), "run1")
    handle.tell(number, finished(0.1), "run2")
    handle.tell(number, ended(EndReason.CRASHED), "run3")
    view = views.trials(engine, "s")[0]
    assert (view.state, view.value, view.user_attrs["run_id"]) == (RunState.COMPLETE, 0.8, "run1")


@sqlite_only
def test_a_trial_carries_its_metrics_and_why_it_ended(engine: Engine, handle: StudyHandle) -> None:
    figures = dict.fromkeys(Metrics.model_fields, 1) | {"task": "verification", "accuracy": 0.9, "auc": 0.95}
    result = finished(0.9).model_copy(update={"metrics": Metrics.model_validate(figures), "rows_seen": 800})
    handle.tell(asked(handle).trial_number, result, "abc")
    attrs = views.trials(engine, "s")[0].user_attrs
    assert attrs["accuracy"] == 0.9
    assert (attrs["end_reason"], attrs["run_id"], attrs["rows_seen"]) == ("finished", "abc", 800)


@sqlite_only
@pytest.mark.parametrize(
    ("reason", "state"),
    [
        (EndReason.PRUNED, RunState.PRUNED),
        (EndReason.DIVERGED, RunState.PRUNED),
        (EndReason.OUT_OF_MEMORY, RunState.PRUNED),
        (EndReason.LEASE_EXPIRED, RunState.FAIL),
        (EndReason.CRASHED, RunState.FAIL),
        (EndReason.STOPPED_BY_USER, RunState.FAIL),
    ],
)
def test_an_ending_is_told_in_optunas_words(
    engine: Engine, handle: StudyHandle, reason: EndReason, state: RunState
) -> None:
    handle.tell(asked(handle).trial_number, ended(reason))
    assert states(engine) == [state]


@sqlite_only
@pytest.mark.parametrize("reason", [EndReason.DIVERGED, EndReason.OUT_OF_MEMORY])
def test_tpe_moves_away_from_where_trials_diverge_or_do_not_fit(engine: Engine, reason: EndReason) -> None:
    with opened(engine, sampler={"n_startup_trials": 8}, pruner={"type": "none"}) as handle:
        rates = []
        for _ in range(24):
            trial = asked(handle)
            rates.append(trial.params.learning_rate)
            good = finished(0.9 - 0.1 * abs(math.log10(rates[-1] / 2e-4)))
            handle.tell(trial.trial_number, ended(reason) if rates[-1] > 1e-3 else good)
    too_high = [rate > 1e-3 for rate in rates]
    assert sum(too_high[:8]) >= 2
    assert sum(too_high[14:]) <= 2


def test_a_trial_that_does_not_fit_violates_a_constraint_and_is_never_the_best(
    engine: Engine, handle: StudyHandle
) -> None:
    number = asked(handle).trial_number
    handle.report(number, 100, 0.99)
    for _ in range(2):
        handle.tell(number, ended(EndReason.OUT_OF_MEMORY))
    good = asked(handle).trial_number
    handle.tell(good, finished(0.7))
    with stock(engine) as storage:
        theirs = optuna.load_study(study_name="s", storage=storage)
        assert theirs.trials[number].constraints == {study.FITS_IN_MEMORY: 1.0}
        assert theirs.best_trial.number == good


def attached(engine: Engine, handle: StudyHandle) -> Claim:
    """A trial that a worker runs."""
    claim = runs.reserve(engine, "s", WORKER, Budget(None, None, None), NOW)
    assert claim is not None
    trial = asked(handle)
    spec = handle.config.trial_spec(trial.trial_number, trial.params, "f")
    assert runs.attach(engine, claim, trial.trial_number, spec)
    return claim


def test_reconcile_tells_what_a_crash_left_untold(engine: Engine, handle: StudyHandle) -> None:
    claim, running = attached(engine, handle), attached(engine, handle)
    runs.finish(engine, claim, finished(0.8), NOW)
    assert handle.reconcile(0.0, 100.0) == []  # its worker may be about to tell
    assert handle.reconcile(50.0, 100.0) == []
    assert handle.reconcile(100.0, 100.0) == [0]
    assert handle.reconcile(150.0, 100.0) == []
    view = views.trials(engine, "s")[0]
    assert (view.state, view.value, view.user_attrs["run_id"]) == (RunState.COMPLETE, 0.8, claim.run_id)
    assert states(engine)[1] is RunState.RUNNING, running


def test_a_study_is_running_until_optuna_was_told_of_its_last_trial(engine: Engine, handle: StudyHandle) -> None:
    claim = attached(engine, handle)
    runs.finish(engine, claim, finished(0.8), NOW)
    assert rows.status(engine, "s").state == "running"
    handle.tell(0, finished(0.8), claim.run_id)
    assert rows.status(engine, "s").state == "idle"


def test_reconcile_leaves_a_trial_whose_next_attempt_waits(engine: Engine, handle: StudyHandle) -> None:
    claim = attached(engine, handle)
    spec = handle.config.trial_spec(0, handle.config.space.params({}), "f")
    runs.finish(engine, claim, ended(EndReason.HUNG), NOW, retry=spec)
    assert handle.reconcile(0.0, 0.0) == []


def test_a_trial_that_no_run_took_is_failed_after_it_was_seen_unchanged_for_long(
    engine: Engine, handle: StudyHandle
) -> None:
    asked(handle)
    assert handle.reconcile(50.0, 100.0) == []
    assert handle.reconcile(100.0, 100.0) == []
    assert handle.reconcile(149.0, 100.0) == []
    assert handle.reconcile(150.0, 100.0) == [0]
    assert states(engine) == [RunState.FAIL]


def test_a_trial_whose_worker_is_slow_to_take_it_is_left_to_it(engine: Engine, handle: StudyHandle) -> None:
    """It has a place for it: a soak's outage between the two steps lost it the trial that it then trained."""
    claim = runs.reserve(engine, "s", WORKER, Budget(None, None, None), NOW)
    assert claim is not None
    trial = asked(handle)
    assert [handle.reconcile(50.0 * look, 100.0) for look in range(9)] == [[]] * 9
    spec = handle.config.trial_spec(trial.trial_number, trial.params, "f")
    assert runs.attach(engine, claim, trial.trial_number, spec)
    lost = asked(handle)
    later = runs.reserve(engine, "s", WORKER, Budget(None, None, None), NOW)
    assert [handle.reconcile(50.0 * look, 100.0) for look in range(9, 11)] == [[]] * 2
    assert later is not None
    assert runs.release(engine, later)
    assert handle.reconcile(550.0, 100.0) == [lost.trial_number]
    assert states(engine) == [RunState.RUNNING, RunState.FAIL]


@sqlite_only
def test_a_look_that_failed_starts_the_clock_again(handle: StudyHandle, monkeypatch: pytest.MonkeyPatch) -> None:
    asked(handle)
    handle.reconcile(0.0, 100.0)

    def outage(*_: object) -> None:
        raise StorageError("the database is away")

    with monkeypatch.context() as patched:
        patched.setattr(glances, "last_attempts", outage)
        with pytest.raises(StorageError):
            handle.reconcile(50.0, 100.0)
    assert handle.reconcile(100.0, 100.0) == []
    assert handle.reconcile(150.0, 100.0) == []
    assert handle.reconcile(200.0, 100.0) == [0]


@sqlite_only
def test_looks_that_are_far_apart_may_have_missed_an_outage(handle: StudyHandle) -> None:
    asked(handle)
    assert [handle.reconcile(100.0 * look, 100.0) for look in range(5)] == [[]] * 5


@sqlite_only
def test_a_person_may_say_that_nobody_runs_it(handle: StudyHandle) -> None:
    asked(handle)
    assert handle.reconcile(0.0, 0.0) == [0]


def test_an_enqueued_setting_that_no_run_took_is_enqueued_again(engine: Engine) -> None:
    config = config_of(enqueue=[{"learning_rate": 2e-4}])
    create(engine, config, "f", NOW)
    with open_study(engine, "s") as handle, open_study(engine, "s") as other:
        asked(handle)
        assert handle.reconcile(0.0, 0.0) == [0]
        assert other.reconcile(0.0, 0.0) == []
        assert states(engine) == [RunState.FAIL, RunState.WAITING]
        create(engine, config, "f", NOW)
        assert states(engine) == [RunState.FAIL, RunState.WAITING]
        assert asked(handle).params.learning_rate == 2e-4


def test_optunas_own_command_and_ours_share_the_database(engine: Engine, handle: StudyHandle) -> None:
    handle.tell(asked(handle).trial_number, finished(0.8))
    with stock(engine) as storage:
        assert optuna.get_all_study_names(storage) == ["s"]
        theirs = optuna.load_study(study_name="s", storage=storage)
        assert (theirs.metric_names, theirs.best_value) == (["validation_accuracy"], 0.8)


@pytest.mark.parametrize(
    ("objective", "direction"), [("validation_accuracy", "MAXIMIZE"), ("validation_log_loss", "MINIMIZE")]
)
@sqlite_only
def test_the_direction_follows_the_objective(engine: Engine, objective: str, direction: str) -> None:
    create(engine, config_of(objective=objective), "f", NOW)
    with stock(engine) as storage:
        assert optuna.load_study(study_name="s", storage=storage).direction.name == direction


def test_an_outage_is_a_storage_error_without_the_password(engine: Engine) -> None:
    broken = engine.url.set(database="/nowhere/there.sqlite3" if engine.dialect.name == "sqlite" else "nowhere")
    with pytest.raises(StorageError) as caught:
        open_storage(create_engine(broken.set(password="secret") if engine.dialect.name != "sqlite" else broken))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("backend", ["postgresql"])
def test_a_handle_outlives_an_outage_that_it_calls_by_its_name(
    engine: Engine, handle: StudyHandle, postgres: Any
) -> None:
    number = asked(handle).trial_number
    name = engine.url.database
    postgres.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
    postgres.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
    for call in (lambda: handle.report(number, 100, 0.5), lambda: handle.tell(number, finished(0.5)), handle.trials):
        with pytest.raises(StorageUnavailable, match="cannot be used"):
            call()
    postgres.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
    assert handle.report(number, 100, 0.5) is Verdict.CONTINUE
    handle.tell(number, finished(0.5))
    assert states(engine) == [RunState.COMPLETE]
