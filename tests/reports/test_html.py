"""The page is one file, complete, safe, and sensible when there is little to show. Browsers see it in flows/."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy.engine import Engine

from mathverify_sweep import paths
from mathverify_sweep.reports import figures, html, rows
from mathverify_sweep.reports.models import Finalist, GateLook, GateReport
from mathverify_sweep.specs import SliceFigures
from mathverify_sweep.store import studies
from mathverify_sweep.store.database import connect, upgrade
from mathverify_sweep.verifiers import gate
from tests.example_study import NAME, Player, empty, example_database

NOW = datetime(2026, 3, 2, 12, 30, tzinfo=UTC)
ALL = ["leaderboard", "promotion", "history", "importance", "slices", "rungs", "losses", "device_time"]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with example_database(tmp_path_factory.mktemp("html")) as engine:
        yield engine


def written(database: Engine, path: Path) -> str:
    html.write(database, NAME, path, NOW)
    return path.read_text(encoding="utf-8")


def drawn(text: str) -> dict[str, object]:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    loaded: dict[str, object] = json.loads(found[1])
    return loaded


def test_the_page_has_every_plot_the_numbers_and_where_it_comes_from(database: Engine, tmp_path: Path) -> None:
    text = written(database, tmp_path / "new" / "report.html")
    assert list(drawn(text)) == ALL
    assert all(f'id="figure-{key}"' in text for key in ALL)
    report = rows.status(database, NAME)
    assert f"<b>{report.best_value:.4f}</b>" in text
    assert "2026-03-02 12:30 UTC" in text
    assert "f00dfeed" in text
    assert "optuna 5" in text
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["report.html"], "nothing half-written stays"


def test_the_page_fetches_nothing(database: Engine, tmp_path: Path) -> None:
    text = written(database, tmp_path / "report.html")
    outside_scripts = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"""(?:src|href)\s*=|@import|url\(""", outside_scripts)
    assert "default-src 'none'" in outside_scripts


def test_what_people_named_cannot_become_markup(database: Engine) -> None:
    report = rows.status(database, NAME)
    evil = "</script><img src=x onerror=alert(1)>"
    trials = tuple(
        trial.model_copy(update={"params": trial.params | {"prompt_template": evil}, "wandb": "javascript:alert(1)"})
        for trial in report.trials
    )
    report = report.model_copy(update={"study": evil, "stopped": evil, "trials": trials})
    text = html.page(report, figures.panels(report, {evil: 1.0}), NOW)
    assert "<img" not in text.replace("&lt;img", "")
    assert text.count("</script>") == 3
    assert 'href="javascript' not in text
    assert "\\u003cimg" not in text, "Plotly reads text as HTML too"


def test_a_link_to_wandb_is_a_link_and_an_offline_folder_is_text(database: Engine) -> None:
    report = rows.status(database, NAME)
    online = report.trials[0].model_copy(update={"wandb": "https://wandb.example/run?a=1&b=2"})
    report = report.model_copy(update={"trials": (online, *report.trials[1:])})
    text = html.page(report, [], NOW)
    assert '<a href="https://wandb.example/run?a=1&amp;b=2"' in text
    assert "offline-run-" in text


def test_a_study_without_trials_and_one_with_nothing_complete_still_have_a_page(tmp_path: Path) -> None:
    engine = connect(f"sqlite:///{tmp_path / 'new.sqlite3'}")
    upgrade(engine)
    with empty(engine) as handle:
        text = written(engine, tmp_path / "report.html")
        assert drawn(text) == {}
        assert "Nothing to draw yet" in text
        assert "majority (baseline)" in text
        Player(engine, handle, tmp_path / "artifacts").trial(diverges=True)
        assert list(drawn(written(engine, tmp_path / "report.html"))) == ["device_time"]
        Player(engine, handle, tmp_path / "artifacts").start_a_trial()
    studies.stop(engine, NAME, "crashed alike")
    text = written(engine, tmp_path / "report.html")
    assert list(drawn(text)) == ["history", "slices", "rungs", "losses", "device_time"]
    assert "running, then stopped: crashed alike: 1 pruned, 1 running" in text
    engine.dispose()


def test_baselines_are_drawn_in_the_terms_of_each_figure(database: Engine) -> None:
    """Trials ranked by log-loss, promotions shown by accuracy."""
    report = rows.status(database, NAME).model_copy(update={"objective": "validation_log_loss"})
    majority = report.baselines["majority"]
    expected = {"promotion": majority.accuracy, "history": majority.log_loss}
    for panel in figures.panels(report, {}):
        if panel.key in expected:
            names = [trace.name for trace in panel.figure.data]
            assert f"majority {expected.pop(panel.key):.3f}" in names
    assert not expected


def test_slices_offer_every_parameter_and_scale_each_axis(database: Engine) -> None:
    panel = figures.slices(rows.status(database, NAME))
    assert panel is not None
    buttons = panel.figure.layout.updatemenus[0].buttons
    assert [button.label for button in buttons] == ["learning rate", "lora r", "lr scheduler type", "lr decay share"]
    assert [button.args[1]["xaxis.type"] for button in buttons] == ["log", "linear", "category", "linear"]
    assert all(sum(button.args[0]["visible"]) == len(figures.KINDS) for button in buttons)


def test_what_is_kept_of_a_slice_is_drawn_from_the_second_look_on(database: Engine) -> None:
    report = rows.status(database, NAME)
    assert figures.forgetting(report) is None
    (row,) = report.promotions
    ends = (0, 1_000, 2_000, 4_000)
    stages = []
    for number, stage in enumerate(row.stages, 1):
        looks = [
            SliceFigures(
                first_row=ends[n],
                end_row=ends[n + 1],
                met_rows=200,
                met_accuracy=0.9 - 0.1 * (number - n),
                held_back_rows=50,
                held_back_accuracy=0.7,
            )
            for n in range(number)
        ]
        stages.append(stage.model_copy(update={"slices": tuple(looks)}))
    changed = report.model_copy(update={"promotions": (row.model_copy(update={"stages": tuple(stages)}),)})
    panel = figures.forgetting(changed)
    assert panel is not None
    first, second = panel.figure.data
    assert first.name == "trial 0 cumulative, rows 0 to 1,000"
    assert list(first.x) == ["1", "2", "3"]
    assert list(first.y) == pytest.approx([0.8, 0.7, 0.6])
    assert (list(second.x), second.text[0]) == (["2", "3"], "held back: 0.7000")
    assert changed.model_dump(mode="json")["promotions"][0]["stages"][2]["slices"][0]["met_rows"] == 200


def test_the_page_tells_where_promoted_runs_come_from_and_what_the_gate_decided(
    database: Engine, tmp_path: Path
) -> None:
    report = rows.status(database, NAME)
    last = max(report.promotions[0].stages, key=lambda stage: stage.value or 0)
    finalists = (
        Finalist(
            trial_number=0, value=0.9, verdict="chosen", why="the higher <accuracy>", accuracy=0.8, run_ids=("a",)
        ),
        Finalist(trial_number=3, value=0.89, verdict="dropped", why="look 1: 4.00 points behind", accuracy=0.76),
    )
    look = GateLook(number=1, rows=300, questions=200, level=0.01, p_values={3: 0.002})
    decided = GateReport(study=NAME, top=1, waiting=0, looks=(look,), finalists=finalists)
    gate.keep(decided, paths.gate_file(tmp_path, NAME))
    assert gate.kept(paths.gate_file(tmp_path, NAME)) == decided

    html.write(database, NAME, tmp_path / "report.html", NOW, decided)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "the higher &lt;accuracy&gt;" in text
    assert "look 1: 4.00 points behind" in text
    assert "Look 1: 300 rows of 200 questions, dropped up to p = 0.01; p-values: trial 3 0.002." in text
    assert f"<summary>trial 0 cumulative, stage {last.name}: run {last.run_id}</summary>" in text
    assert f"mvsweep lineage {last.run_id} --sweep-file again.yaml" in text
    assert "<h2>Gate</h2>" not in written(database, tmp_path / "without.html")


def test_a_gate_file_of_another_version_is_left_out(tmp_path: Path) -> None:
    assert gate.kept(tmp_path / "gate.json") is None
    (tmp_path / "gate.json").write_text('{"study": 1}')
    assert gate.kept(tmp_path / "gate.json") is None
