"""Claims about the published systems: each file says what its report says, passes the check, and runs."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from mathverify_sweep import imports, safe_yaml, sweep_file
from mathverify_sweep.config import SweepConfig
from mathverify_sweep.reports import checked
from mathverify_sweep.smoke import smoke
from mathverify_sweep.specs import PlannedStage, RunSpec
from mathverify_sweep.study import plans
from mathverify_sweep.wandb_sweep.finished import finished
from tests.flows.commands import Shell

PUBLISHED = Path(__file__).resolve().parent.parent / "sweeps" / "published"
FILES = sorted(PUBLISHED.rglob("*.yaml"))
POOL_ROWS = 23_078
"""Training rows of the balanced part of `verification_pool.parquet`."""
SMOKE_SECONDS = 60.0

NAMES = [str(path.relative_to(PUBLISHED.parent).with_suffix("")) for path in FILES]
"""As `mvsweep` knows the files that ship."""


def loaded(name: str) -> SweepConfig:
    return sweep_file.require(f"published/{name}")


def trial_specs(config: SweepConfig) -> list[RunSpec]:
    """The enqueued trials, in order."""
    return [config.trial_spec(n, config.space.params(dict(each)), "f") for n, each in enumerate(config.enqueue)]


def promoted(config: SweepConfig, number: int, available: int, *overrides: str) -> tuple[PlannedStage, ...]:
    return plans.plan(trial_specs(config)[number], available, sweep_file.promotion(config, overrides))


@pytest.mark.parametrize("name", NAMES)
def test_check_passes_with_and_without_smoke(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # a million rows are not for a test to load
    shell = Shell.at(tmp_path, "sqlite://")
    config = sweep_file.require(name)
    assert f'"study": "{config.study}"' in shell.json("check", name)
    assert checked.check(smoke(config)).splits["train"].rows > 300


@pytest.mark.parametrize("name", NAMES)
def test_validation_has_enough_rows_to_tell_something(name: str) -> None:
    assert (sweep_file.require(name).data.validation_rows or 0) >= 200


def test_enqueued_trials_are_the_rows_of_the_reports_tables() -> None:
    for name, first in (("000/sweep", 1), ("001/further", 0), ("002/sweep", 0)):
        config = loaded(name)
        table = sweep_file.read_cells(PUBLISHED / name.split("/")[0] / "results.csv")
        rows = [finished(cells, config.objective, safe_yaml.load) for cells in table]
        rows = [row for row in rows if row.settings]
        specs = trial_specs(config)[first:]
        assert len(rows) == len(specs)
        for row, spec in zip(rows, specs, strict=True):
            params = spec.params.model_dump()
            assert not row.problems
            assert {axis: params[axis] for axis in row.settings} == row.settings


def test_a_trial_is_as_long_as_its_report_says() -> None:
    assert [spec.train_rows for spec in trial_specs(loaded("000/sweep"))] == [
        8, 800, 3_200, 6_400, 6_400, 9_600, 4_000, 12_800, 6_400,
    ]  # fmt: skip
    further = loaded("001/further")
    steps = [spec.train_rows // spec.params.effective_batch_size for spec in trial_specs(further)]
    assert steps == [800, 800, 1200, 1200, 1200, 1500, 1500, 3500, 1500, 2000, 2000, 800]
    assert all(spec.rungs for spec in trial_specs(further)), "validation during training"
    assert {spec.train_rows for spec in trial_specs(loaded("002/sweep"))} == {4_000}


def test_the_finalists_of_001_are_points_of_its_grid_and_promoted_for_their_own_steps() -> None:
    grid = loaded("001/grid")
    assert grid.trials == 60
    assert all(dict(settings) in grid.space.grid() for settings in grid.enqueue)
    for number, steps, batch in ((0, 1200, 32), (1, 3500, 32), (2, 2000, 16)):
        (stage,) = promoted(grid, number, 700_000, f"promotion.rounds=[{{steps: {steps}}}]")
        assert stage.spec.train_rows == steps * batch
        assert stage.spec.params.max_steps == 0


def test_the_rounds_of_002_go_on_over_new_rows_and_lose_their_quantisation() -> None:
    stages = promoted(loaded("002/sweep"), 7, 700_000)
    specs = [stage.spec for stage in stages]
    assert [spec.train_rows - spec.skip_rows for spec in specs] == [9_600, 6_400, 6_400, 4_800]
    assert [spec.params.effective_batch_size for spec in specs] == [24, 16, 16, 16]
    assert [spec.base_model.quantization for spec in specs] == ["nf4", "none", "none", "none"]
    assert [stage.start_from for stage in stages] == [(), (0,), (1,), (2,)]


def test_the_wandb_file_of_003_is_the_same_sweep() -> None:
    ours, theirs = loaded("003/sweep"), loaded("003/wandb_sweep")
    assert theirs == ours.model_copy(update={"study": theirs.study, "search_space": theirs.search_space})
    assert {axis.name: axis for axis in theirs.space.axes} == {axis.name: axis for axis in ours.space.axes}
    assert theirs.space.fixed == ours.space.fixed
    assert "search_space:" in imports.from_wandb_sweep(PUBLISHED / "003" / "wandb_sweep.yaml")


def test_the_arms_of_003_run_on_the_pool_by_shares_and_meet_as_many_rows_by_passes() -> None:
    config = loaded("003/sweep").model_copy(update={"enqueue": ({},)})
    shares = "promotion.stages=[0.2857,0.5714,0.8571,all]"
    large = [stage.spec.train_rows for stage in promoted(config, 0, 776_000)]
    small = [stage.spec.train_rows for stage in promoted(config, 0, POOL_ROWS, shares)]
    assert large == [20_000, 40_000, 60_000, 70_000]
    assert [round(rows / POOL_ROWS * 70_000, -2) for rows in small] == large
    met = {
        plan: sum(
            stage.spec.rows_to_meet
            for stage in promoted(config, 0, 776_000, f"promotion.plan={plan}", "promotion.passes=2.714")
        )
        for plan in ("sequential", "scratch")
    }
    cumulative = sum(stage.spec.rows_to_meet for stage in promoted(config, 0, 776_000))
    assert cumulative == 190_000
    assert all(rows == pytest.approx(cumulative, rel=1e-3) for rows in met.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_file_runs_to_its_end_on_a_cpu_when_made_small(name: str, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    shell = Shell.at(tmp_path, f"sqlite:///{tmp_path / 'mvsweep.sqlite3'}")
    shell.run("run", name, "--smoke", "--device", "cpu")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < SMOKE_SECONDS, "of processor time, which does not depend on what else this machine does"
    study = sweep_file.require(name).study
    assert (tmp_path / "runs" / f"{study}-smoke" / "report.html").is_file()
