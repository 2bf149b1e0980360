"""Tables fit 80 columns, and say what matters."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from mathverify_sweep.metrics import Interval
from mathverify_sweep.reports import rows, terminal, verifiers
from mathverify_sweep.reports.models import ComparedPair, ComparedRuns, StatusReport
from mathverify_sweep.resampling import Comparison
from mathverify_sweep.states import RunState
from mathverify_sweep.study.study import open_study
from tests.example_study import NAME, Player, example_database


def printed(renderable: RenderableType) -> str:
    console = Console(width=80, file=StringIO(), color_system=None)
    console.print(renderable)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text, "nothing is cut off"
    return str(text)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> StatusReport:
    with example_database(tmp_path_factory.mktemp("terminal")) as engine:
        return rows.status(engine, NAME)


def test_status_shows_trials_stages_and_what_runs_now(report: StatusReport) -> None:
    text = printed(terminal.status(report))
    assert "13 of 14 trials" in text
    assert "diverged" in text
    assert "complete, try 2" in text or "pruned, try 2" in text
    assert "4,000/4,000" in text
    assert "cumulative" in text
    assert "now: trial 12 on w0rker01@node-1 (cpu): 150 of 800 rows" in text


def test_the_leaderboard_shows_intervals_baselines_and_settings(report: StatusReport) -> None:
    board = rows.leaderboard(report, top=2)
    best = board.rows[0].metrics
    text = printed(terminal.leaderboard(board))
    assert f"{best.accuracy:.4f} [{best.accuracy_low:.3f}, {best.accuracy_high:.3f}]" in text
    assert "base  majority" in text
    assert f"{board.rows[0].name}: learning_rate=" in text


@pytest.mark.parametrize(("low", "said"), [(0.01, "excludes 0"), (-0.01, "includes 0: no clear winner")])
def test_a_comparison_says_whether_there_is_a_winner_and_where_they_agree(low: float, said: str) -> None:
    comparison = Comparison(Interval(0.02, low, 0.03), 0.04, 0.9, 1_700, 120, 80, 100)
    pair = ComparedPair(first="a1", second="b2", comparison=comparison)
    found = ComparedRuns(split="test", rows=2_000, questions=400, pairs=(pair,))
    text = " ".join(printed(verifiers.compared(found)).split())
    assert f"accuracy of a1 minus b2: +2.00 points [{100 * low:+.2f}, +3.00], p = 0.04, the interval {said}" in text
    assert "90.0 % 1,700 120 80 100" in text


def test_watching_tells_each_run_that_ends_once(tmp_path: Path) -> None:
    console = Console(width=80, file=StringIO(), color_system=None)
    looks = 0
    with example_database(tmp_path) as engine, open_study(engine, NAME) as handle:
        player = Player(engine, handle, tmp_path / "artifacts")

        def is_over(_: StatusReport) -> bool:
            nonlocal looks
            looks += 1
            if looks == 1:
                player.trial()
            return looks == 3

        seen = terminal.watch(engine, NAME, is_over, console, seconds=0)
    assert seen.trials[13].state in (RunState.COMPLETE, RunState.PRUNED)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count(f"trial 13 {seen.trials[13].state.lower()} 0.") == 1
    assert "trial 3 complete" not in text, "what had ended before is not told"
