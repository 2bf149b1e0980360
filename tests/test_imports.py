"""Claims about what is brought in from elsewhere: tables of finished runs as trials, W&B's sweep files as ours."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy.engine import Engine

from mathverify_sweep import imports, sweep_file
from mathverify_sweep.config import SweepConfig
from mathverify_sweep.errors import ConfigError
from mathverify_sweep.reports import figures, html, rows, terminal
from mathverify_sweep.reports.models import StatusReport, TrialRow
from mathverify_sweep.specs import RunResult
from mathverify_sweep.states import EndReason, RunState
from mathverify_sweep.study import promotion
from mathverify_sweep.study.study import StudyHandle, create, open_study

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SPACE = {
    "learning_rate": {"low": 1e-6, "high": 1e-2, "log": True},
    "lora_r": {"choices": [8, 16, 32]},
    "effective_batch_size": {"choices": [8, 16, 32]},
    "lr_scheduler_type": {"choices": ["linear", "cosine_with_restarts"]},
    "lr_num_cycles": {"low": 1, "high": 3, "when": {"lr_scheduler_type": "cosine_with_restarts"}},
    "optim": "paged_adamw_32bit",
}
EXPORT = """\
Name,State,config.lr,lora_rank,lora_alpha,batch_size,grad_accum,lr_scheduler,num_cycles,optimizer,eval/accuracy,test_accuracy
calm-sky,finished,2e-4,16,32,4,4,linear,,paged_adamw,0.81,0.79
wild-sea,finished,1e-3,8,16,8,2,cosine_with_restarts,2,paged_adamw,0.74,0.75
"""
sqlite_only = pytest.mark.parametrize("backend", ["sqlite"])


@pytest.fixture
def study(engine: Engine) -> Iterator[StudyHandle]:
    raw = {"study": "s", "search_space": SPACE, "data": {"train_rows": 800}, "budget": {"trials": 4}}
    create(engine, SweepConfig.model_validate(raw), "f", NOW)
    with open_study(engine, "s") as handle:
        yield handle


def written(folder: Path, text: str) -> Path:
    file = folder / "export.csv"
    file.write_text(text, encoding="utf-8")
    return file


def trials(engine: Engine) -> tuple[TrialRow, ...]:
    found: StatusReport = rows.status(engine, "s")
    return found.trials


def test_a_table_of_finished_runs_is_enqueued_with_where_it_comes_from(
    engine: Engine, study: StudyHandle, tmp_path: Path
) -> None:
    found = imports.from_table(engine, study, written(tmp_path, EXPORT), completed=False)
    assert (found.added, found.left_out, found.kept) == (2, (), ("Name", "State", "test_accuracy"))
    first, second = study.ask(), study.ask()
    assert first is not None
    assert second is not None
    assert (first.params.learning_rate, first.params.lora_r, first.params.alpha) == (2e-4, 16, 32)
    assert (first.params.effective_batch_size, second.params.effective_batch_size) == (16, 16)
    assert second.params.lr_num_cycles == 2
    told = "imported from export.csv, row 1, 0.81 there: Name calm-sky, State finished, test_accuracy 0.79"
    assert trials(engine)[0].message == told


@sqlite_only
def test_said_twice_a_table_changes_nothing(engine: Engine, study: StudyHandle, tmp_path: Path) -> None:
    file = written(tmp_path, EXPORT)
    for completed in (False, True):
        added = [imports.from_table(engine, study, file, completed).added for _ in range(2)]
        assert added == ([2, 0] if not completed else [0, 0]), "what waits to be run is not taken over as well"
    assert len(trials(engine)) == 2


@sqlite_only
def test_settings_that_are_enqueued_already_are_not_enqueued_again(
    engine: Engine, study: StudyHandle, tmp_path: Path
) -> None:
    study.enqueue({"learning_rate": 1e-4, "lora_r": 8})
    text = "lr,r,arm\n1e-4,8,there\n1e-4,16,new\n1e-4,16,the same\n"
    assert imports.from_table(engine, study, written(tmp_path, text), completed=False).added == 1
    assert len(trials(engine)) == 2


@sqlite_only
def test_scores_that_count_are_for_the_sampler_and_choose_no_trial(
    engine: Engine, study: StudyHandle, tmp_path: Path
) -> None:
    imports.from_table(engine, study, written(tmp_path, EXPORT), completed=True)
    asked = study.ask()
    assert asked is not None
    assert asked.trial_number == 2
    study.tell(2, RunResult(end_reason=EndReason.FINISHED, value=0.6))

    assert promotion.select(study, 1) == [2], "the better ones were trained elsewhere"
    assert [(trial.state, trial.value, trial.run_id) for trial in trials(engine)][:2] == [
        (RunState.COMPLETE, 0.81, None),
        (RunState.COMPLETE, 0.74, None),
    ]
    report = rows.status(engine, "s")
    assert report.budget.trials_used == 0
    assert report.best_trial is None
    panel = figures.history(report)
    assert panel is not None
    drawn = {trace.name: list(trace.y) for trace in panel.figure.data if trace.x[0] is not None}
    assert drawn == {"imported": [0.81, 0.74]}, "no run here has a value, so none is the best so far"
    shown = terminal.status(report)
    html.write(engine, "s", tmp_path / "report.html", NOW)
    assert shown
    assert "imported" in str(terminal._state(report.trials[0]))


@sqlite_only
@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("x,finished,1.0,16,32,4,4,linear,,paged_adamw,0.8,", "row 3.learning_rate: the axis is log float"),
        ("x,finished,1e-4,16,16,4,4,linear,,paged_adamw,0.8,", "row 3.lora_alpha_ratio: not tuned here, it is 2.0"),
        ("x,finished,1e-4,16,32,4,4,linear,,lion,0.8,", "row 3.optim: not tuned here, it is 'paged_adamw_32bit'"),
        ("x,finished,1e-4,16,32,4,4,linear,2,paged_adamw,0.8,", "row 3.lr_num_cycles: only applies when"),
        ("x,finished,1e-4,16,32,,4,linear,,paged_adamw,0.8,", "row 3: a per-device batch and its accumulation"),
        ("x,finished,1e-4,16,32,4,4,linear,,paged_adamw,,0.8", "row 3: no column is a score for validation_accuracy"),
        ("x,finished,,16,32,4,4,linear,,paged_adamw,0.8,", "row 3.learning_rate: a complete trial has a value"),
        ("x,finished,1e-4,16,32,4,4,linear,,paged_adamw,good,", "row 3: eval/accuracy: a score is a number"),
        ("x,finished,1e-4,16,32,4,4,linear,,paged_adamw,81.0,", "row 3: eval/accuracy: a score is a share from 0 to 1"),
        ("x,finished,1e-4,16,32,4,4,linear,,paged_adamw,.inf,", "row 3: eval/accuracy: a score is a share"),
        ("x,finished,1e-4,16,32,4,4,linear,,paged_adamw,.nan,", "row 3: eval/accuracy: a score is a share"),
        (
            "x,finished,1e-4,0,32,4,4,linear,,paged_adamw,0.8,",
            "row 3.lora_r: input should be greater than",
        ),
        ("x,finished,1e-4,.inf,32,4,4,linear,,paged_adamw,0.8,", "row 3.lora_r: input should be a valid integer"),
        ("x,finished,1e-4,16,x,4,4,linear,,paged_adamw,0.8,", "row 3.lora_alpha: input should be a valid number"),
        ("x,finished,1e-4,16,32,4,4,[linear,,paged_adamw,0.8,", "row 3: lr_scheduler: not YAML"),
        ("x,finished,null,16,32,4,4,linear,,paged_adamw,0.8,", "row 3.learning_rate: a complete trial has a value"),
    ],
)
def test_a_row_that_the_study_cannot_have_is_left_out_and_it_says_why(
    engine: Engine, study: StudyHandle, tmp_path: Path, line: str, why: str
) -> None:
    found = imports.from_table(engine, study, written(tmp_path, EXPORT + line + "\n"), completed=True)
    assert found.added == 2
    assert len(found.left_out) == 1
    assert found.left_out[0].startswith(why)


@sqlite_only
@pytest.mark.parametrize(("loss", "added"), [("1.7", 1), ("-0.1", 0), (".inf", 0), ("9" * 400, 0)])
def test_a_log_loss_goes_above_1_but_not_below_0_and_is_finite(
    engine: Engine, tmp_path: Path, loss: str, added: int
) -> None:
    raw = {"study": "s", "objective": "validation_log_loss", "search_space": {"lora_r": {"choices": [8, 16]}}}
    create(engine, SweepConfig.model_validate(raw), "f", NOW)
    file = written(tmp_path, f"r,val_loss\n8,0.5\n16,{loss}\n")
    with open_study(engine, "s") as study:
        assert imports.from_table(engine, study, file, completed=True).added == 1 + added


def test_a_table_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    file = written(tmp_path, "r\n" + "8\n" * (sweep_file.MAX_TABLE_BYTES // 2))
    with pytest.raises(ConfigError, match="more than 16,777,216 bytes"):
        sweep_file.read_cells(file)


@sqlite_only
def test_a_table_of_which_nothing_fits_is_an_error(engine: Engine, study: StudyHandle, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not tuned here"):
        imports.from_table(engine, study, written(tmp_path, "lora_r,weight_decay\n8,0.1\n"), completed=False)
    assert trials(engine) == ()


def test_a_wandb_file_becomes_a_file_of_ours_that_means_the_same(tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs.yaml", tmp_path / "ours.yaml"
    theirs.write_text(
        "method: bayes\nmetric: {name: val_loss}\nparameters:\n  lr: {min: 1e-5, max: 1e-3}\n  r: {values: [8, 16]}\n"
    )
    ours.write_text(imports.from_wandb_sweep(theirs))
    assert sweep_file.load(ours) == sweep_file.load(theirs)
    assert "# parameters.lr: learning_rate, float 1e-05 to 0.001" in ours.read_text()
    with pytest.raises(ConfigError, match="must be a W&B sweep file"):
        imports.from_wandb_sweep(ours)


def test_a_wandb_file_that_is_written_elsewhere_means_the_same_rows_and_templates(tmp_path: Path) -> None:
    theirs, ours = tmp_path / "a" / "theirs.yaml", tmp_path / "b" / "c" / "ours.yaml"
    theirs.parent.mkdir()
    ours.parent.mkdir(parents=True)
    (theirs.parent / "short.txt").write_text("{question} {answer} {solution} True or False?")
    theirs.write_text(
        "method: bayes\nparameters:\n  r: {values: [8, 16]}\n"
        "data: {source: rows.csv}\nprompts: {short: short.txt, inline: '{question} {answer} {solution} Verdict:'}\n"
    )
    ours.write_text(imports.from_wandb_sweep(theirs, ours.parent))
    assert "../../a/rows.csv" in ours.read_text()
    read, meant = sweep_file.load(ours), sweep_file.load(theirs)
    assert (read.data, read.prompts) == (meant.data, meant.prompts)
    assert read.data.source == str(theirs.parent / "rows.csv")
    absolute = f"method: bayes\nparameters:\n  r: {{values: [8, 16]}}\ndata: {{source: {theirs.parent}/rows.csv}}\n"
    theirs.write_text(absolute)
    assert f"source: {theirs.parent}/rows.csv" in imports.from_wandb_sweep(theirs, ours.parent)
