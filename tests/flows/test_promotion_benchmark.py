"""The experiment on plans, tiny: it runs to its end, takes equal steps, and its report is made from the database."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ("data.generated_rows=1200", "data.train_rows=128", "data.validation_rows=100", "training.max_length=96")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_plan_takes_as_many_steps_and_is_held_against_the_others(tmp_path: Path) -> None:
    options = ["--file", str(ROOT / "sweeps" / "quickstart.yaml"), "--seeds", "0", "--slice-rows", "40"]
    options += ["--storage", f"sqlite:///{tmp_path / 'mvsweep.sqlite3'}", "--output", str(tmp_path / "runs")]
    options += [part for setting in SETTINGS for part in ("--set", setting)]
    told = ""
    for what in (["run"], ["report", "--to", str(tmp_path / "report")]):
        command = [sys.executable, "-m", "benchmarks.promotion", *what, *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        told = done.stdout
    first, _, stages = told.partition("| plan | stage")
    assert stages.count("cumulative") == 4
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in first.splitlines() if line.startswith("| ")]
    assert [line[0] for line in lines[1:]] == ["cumulative", "sequential", "replay", "scratch", "trunk"]
    steps = [int(line[2].replace(",", "")) for line in lines[1:]]
    assert max(steps) - min(steps) <= 6, "a step or so a stage, where a last batch is not full"
    assert all(re.fullmatch(r"[+-]\d+\.\d\d \[[+-]\d+\.\d\d, [+-]\d+\.\d\d\]", line[5]) for line in lines[2:])
    for name in ("accuracy", "forgetting"):
        drawn = ElementTree.parse(tmp_path / "report" / f"{name}.svg").getroot()
        names = [node.text for node in drawn.iter("{http://www.w3.org/2000/svg}text")]
        assert {"cumulative", "sequential", "replay", "scratch", "trunk"} <= set(names)
