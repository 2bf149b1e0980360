"""The published reports' experiments, tiny: each runs to its end, goes on where it was, and has its tables."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from benchmarks import published_effects
from mathverify_sweep.data import synthetic

ROOT = Path(__file__).resolve().parents[2]
TINY = ("base_model.name=builtin:tiny", "training.max_length=128")
GENERATED = (
    *TINY,
    "data.source=generated",
    "data.split_column=null",
    "data.generated_rows=1200",
    "data.train_rows=96",
    "data.validation_share=0.2",
    "data.validation_rows=60",
)
INTERVAL = re.compile(r"[+-]\d+\.\d\d \[[+-]\d+\.\d\d, [+-]\d+\.\d\d\]")


class Bench:
    """The benchmark in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._where = ["--storage", f"sqlite:///{folder / 'mvsweep.sqlite3'}", "--output", str(folder / "runs")]

    def run(self, what: str, settings: tuple[str, ...] = (), *more: str) -> str:
        """What it prints; it has to end well."""
        given = [part for setting in settings for part in ("--set", setting)]
        command = [sys.executable, "-m", "benchmarks.published", what, *self._where, *given, *more]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def report(self) -> str:
        return self.run("report", (), "--to", str(self._folder / "report"))


def cells(told: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in told.splitlines() if line.startswith("| ")]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_report_003_is_swept_and_promoted_by_four_plans_and_said_again_it_trains_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    rate = "search_space.learning_rate={low: 1e-4, high: 1e-3, log: true}"
    settings = (
        *GENERATED,
        "data.generated_rows=400",
        "data.train_rows=48",
        "data.validation_rows=40",
        "budget.trials=4",
        rate,
    )
    bench.run("run", settings)
    before = bench.report()
    bench.run("run", settings)
    assert bench.report() == before
    lines = cells(before)
    trials = [line for line in lines if line[0].isdecimal()]
    plans = [line for line in lines if "(trial " in line[0]]
    assert [line[8] for line in trials] == ["finished"] * 4
    assert [line[0].rpartition(" (")[0] for line in plans] == [
        "cumulative", "sequential", "sequential, 2.714 passes", "scratch, 2.714 passes",
    ]  # fmt: skip
    met = [int(line[1].replace(",", "")) for line in plans]
    assert met[0] == pytest.approx(met[2], rel=0.01)
    assert met[0] == pytest.approx(met[3], rel=0.01)
    assert all(INTERVAL.fullmatch(line[6]) for line in plans[1:])
    assert (tmp_path / "report" / "003_plans.svg").is_file()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_axis_of_the_conclusions_is_held_against_itself_in_pairs(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.run("conclusions", (*GENERATED, "data.train_rows=32"))
    lines = cells(bench.report())
    effects = {(line[0], line[1]): int(line[2]) for line in lines if " minus " in line[0]}
    assert effects["rank 64 minus 8", "all"] == 24
    assert effects["schedule cosine minus linear", "1e-05"] == 8
    assert effects["learning rate 0.0001 minus 1e-05", "all"] == 16
    for name in ("conclusions", "effects"):
        assert ElementTree.parse(tmp_path / "report" / f"{name}.svg").getroot().tag.endswith("svg")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_both_arms_of_report_004_are_read_on_the_test_file_before_and_after(tmp_path: Path) -> None:
    told = [row for row in synthetic.generate(1_000, seed=7) if row.is_correct]
    for name, rows in (("train.jsonl", told[:-20]), ("test.jsonl", told[-20:])):
        lines = [{"question": row.question, "answer": f"{row.solution}\n#### {row.answer}"} for row in rows]
        (tmp_path / name).write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    bench = Bench(tmp_path)
    little = (*TINY, f"data.source={tmp_path / 'train.jsonl'}", "data.validation_rows=10", "training.max_new_tokens=24")
    test = ("--test", str(tmp_path / "test.jsonl"), "--steps", "3", "--workers", "1")
    bench.run("solving", little, *test)
    found = cells(bench.report())
    assert [line[:2] for line in found if line[0] in ("lora", "qlora") and len(line) == 8] == [
        [arm, which] for arm in ("lora", "qlora") for which in ("untrained", "2, 0.0001", "32, 0.001")
    ]
    assert [line[0] for line in found if line[0] in ("lora", "qlora") and len(line) == 4] == ["lora", "qlora"]
    assert len([line for line in found if line[0].isdecimal() and len(line) == 2]) == 3


def test_an_effect_over_pairs_has_the_noise_of_runs_and_of_questions_in_its_interval() -> None:
    rng = np.random.default_rng(1)
    questions = [str(number // 3) for number in range(600)]
    rows_alone = np.repeat(rng.normal(0, 1, 200), 3)[None, :] + np.zeros((24, 1))
    runs_alone = rng.normal(0, 1, (24, 1)) + np.zeros((1, 600))
    of_rows = published_effects.crossed_gain(rows_alone, questions)
    of_runs = published_effects.crossed_gain(runs_alone, questions)
    of_both = published_effects.crossed_gain(rows_alone + runs_alone, questions)
    assert of_rows.high - of_rows.low == pytest.approx(2 * 1.96 / 200**0.5, rel=0.15)
    assert of_runs.high - of_runs.low == pytest.approx(2 * 1.96 / 24**0.5, rel=0.3)
    assert of_both.high - of_both.low > of_runs.high - of_runs.low
