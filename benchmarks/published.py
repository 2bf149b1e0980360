"""The published reports on a model and rows of yours: two of them run, and what they conclude put to the test.

    python -m benchmarks.published run         report 003: its random sweep, then its best trial by four plans
    python -m benchmarks.published conclusions sweeps/conclusions.yaml with two seeds: rank, rate, schedule, batch
    python -m benchmarks.published solving     report 004: LoRA and QLoRA side by side, GSM8K before and after
    python -m benchmarks.published report      tables and SVG figures of what a database has, into a folder

    … run --device cuda --set base_model.name=/models/smollm2 --set data.source=/data/verification_pool.parquet \\
        --set data.split_column=split --set data.validation_rows=null --storage sqlite:///003.sqlite3 --output runs

Killed, each goes on when it is run again with the same options. The three may share a GPU, each with a database of its
own; `--token-budget` then says how much of it the packed engine takes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import published_effects, published_report
from mathverify_sweep import actions, paths, sweep_file
from mathverify_sweep.data.rows import groups
from mathverify_sweep.metrics import cluster_numbers
from mathverify_sweep.states import RunState
from mathverify_sweep.store import database as store
from mathverify_sweep.store import runs
from mathverify_sweep.study import study
from mathverify_sweep.verifiers import evaluate, verifier

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine as Database

QUIET = ("tracking.wandb=disabled",)

VERDICT_ONLY = "search_space.prompt_loss_weight=0.0"
"""The file puts the loss on every token, as the report's trainer would have. Passes of that kind are not recorded, so a
step of a small model takes 0.15 to 0.2 s whatever its size, and a trial of 2,500 steps seven minutes."""
STAGES = "promotion.stages=[0.2857,0.5714,0.8571,all]"
PLANS: tuple[tuple[str, ...], ...] = (
    ("promotion.plan=cumulative",),
    ("promotion.plan=sequential",),
    ("promotion.plan=sequential", "promotion.passes=2.714"),
    ("promotion.plan=scratch", "promotion.passes=2.714"),
)

SEEDS = (0, 1)

GENERATED_TOKENS = 400_000
"""Padded tokens of the solutions that are written at once: keys and values of SmolLM2-135M take 23 kB for each."""
THEIRS = "{{lora_r: 2, max_steps: {steps}, warmup_steps: 0.05, learning_rate: 1e-4}}"
UNTRAINED = "{lora_r: 2, max_steps: 1, warmup_steps: 1, learning_rate: 1e-4}"
OURS = "{{lora_r: 32, max_steps: {steps}, warmup_steps: 0.05, learning_rate: 1e-3}}"
"""Beside theirs: a rank and a rate that a model of 135 million numbers learns more with in as many steps."""
MEMORY_STEPS = 60


def main() -> None:
    """Run one of them, or report all."""
    options = _options()
    database = store.connect(options.storage)
    store.upgrade(database)
    if options.what == "report":
        published_report.write(database, options.output, options.to)
    else:
        began = time.monotonic()
        {"run": _run, "conclusions": _conclusions, "solving": _solving}[options.what](database, options)
        print(f"{options.what}: {time.monotonic() - began:.0f} s", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "conclusions", "solving", "report"))
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--storage", default=f"sqlite:///{paths.DEFAULT_DATABASE}")
    parser.add_argument("--output", type=Path, default=paths.DEFAULT_OUTPUT)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--token-budget", default="auto", help="of the packed engine")
    parser.add_argument("--arms", nargs="+", default=["lora", "qlora"], help="solving: which of the two")
    parser.add_argument("--steps", type=int, default=1_250, help="solving: optimizer steps of four rows")
    parser.add_argument("--workers", type=int, default=2, help="solving: of each arm, side by side")
    parser.add_argument("--test", default="gsm8k/test.jsonl", help="solving: the file that pass@1 is read on")
    parser.add_argument("--to", type=Path, default=Path("published"), help="report: its folder")
    return parser.parse_args()


def _run(database: Database, options: argparse.Namespace) -> None:
    config = sweep_file.require("published/003/sweep", [*QUIET, VERDICT_ONLY, *options.settings])
    actions.create(database, config)
    packed = ["--token-budget", options.token_budget]
    _work([(config.study, packed)], options)
    handle = study.open_study(database, config.study)
    for plan in PLANS:
        actions.promote(database, handle, 1, None, [STAGES, *plan])
    _work([(config.study, packed)], options)


def _conclusions(database: Database, options: argparse.Namespace) -> None:
    for seed in SEEDS:
        settings = [f"study={published_effects.study_of(seed)}", f"training.seed={seed}"]
        config = sweep_file.require("conclusions", [*QUIET, *settings, *options.settings])
        actions.create(database, config)
        _work([(config.study, ["--token-budget", options.token_budget])], options)


def _solving(database: Database, options: argparse.Namespace) -> None:
    """Each arm in a process of its own: what they wait for is Python, not the GPU."""
    if len(options.arms) == 1:
        _solve(database, options.arms[0], options)
        return
    given = [part for each in options.settings for part in ("--set", each)]
    given += ["--storage", options.storage, "--output", str(options.output), "--device", options.device]
    given += ["--steps", str(options.steps), "--workers", str(options.workers), "--test", options.test]
    command = [sys.executable, "-m", "benchmarks.published", "solving", *given, "--arms"]
    _all_of([[*command, arm] for arm in options.arms])


def _solve(database: Database, arm: str, options: argparse.Namespace) -> None:
    study_name, memory = published_report.solving_of(arm), published_report.memory_of(arm)
    enqueued = [UNTRAINED, THEIRS.format(steps=options.steps), OURS.format(steps=options.steps)]
    shared = [*QUIET, "data.validation_share=0.04", "data.validation_rows=200", "pruner.min_rows=null"]
    shared += ["search_space.learning_rate={low: 2e-5, high: 2e-3, log: true}", f"data.train_rows={4 * options.steps}"]
    own = [
        f"study={study_name}",
        f"enqueue=[{', '.join(enqueued)}]",
        f"search_space.max_steps={{choices: [1, {options.steps}]}}",
        f"training.micro_batch_tokens={GENERATED_TOKENS}",
        f"budget.trials={len(enqueued)}",
    ]
    # What is written takes far more memory than a step of four rows. So the arms' memory is that of a run that writes
    # one token behind each question, some rows at a time.
    steps = min(MEMORY_STEPS, options.steps)
    little = [
        f"study={memory}",
        f"enqueue=[{THEIRS.format(steps=steps)}]",
        f"search_space.max_steps={{choices: [1, {steps}]}}",
        "training.max_new_tokens=1",
        "training.micro_batch_tokens=4096",
        "budget.trials=1",
    ]
    for settings in (own, little):
        config = sweep_file.require(f"published/004/{arm}", [*shared, *settings, *options.settings])
        actions.create(database, config)
    workers = [(name, ["--engine", "reference"]) for name in [memory] + [study_name] * options.workers]
    _work(workers, options)
    _read_test(database, study_name, options)


def _read_test(database: Database, study_name: str, options: argparse.Namespace) -> None:
    """Which rows of the test file each of the arm's runs solves, kept run by run."""
    from mathverify_sweep.training.judge import Judge  # imports torch

    file = published_report.solved_file(options.output, study_name)
    known: dict[str, published_report.Solved] = json.loads(file.read_text()) if file.exists() else {}
    judge = Judge("cuda:0" if options.device == "cuda" else options.device)
    finished = [run for run in runs.runs(database, study_name) if run.state is RunState.COMPLETE]
    for run in finished:
        if run.run_id in known:
            continue
        model = verifier.model(run)
        labelled = evaluate.from_file(verifier.find(database, [run.run_id]), options.test, None)
        began = time.monotonic()
        (found,) = judge.reader([model.trained(options.output.resolve())])(labelled.rows)
        known[run.run_id] = {
            "solved": [odds >= 0 for odds in found],
            "questions": cluster_numbers(groups(labelled.rows)).tolist(),
            "left_out_rows": labelled.left_out_rows,
            "seconds": time.monotonic() - began,
        }
        partial = file.with_suffix(".new")
        partial.write_text(json.dumps(known), encoding="utf-8")
        partial.replace(file)
        share = sum(known[run.run_id]["solved"]) / len(found)
        print(f"{study_name} trial {run.trial_number}: {share:.4f} of {len(found)} rows", flush=True)


def _work(studies: Sequence[tuple[str, Sequence[str]]], options: argparse.Namespace) -> None:
    """A worker for each, with what else it is told, until nothing of its study is left to do."""
    device = ["--gpu", "0"] if options.device == "cuda" else ["--device", options.device]
    where = ["--storage", options.storage, "--output", str(options.output), *device, "--until-idle"]
    worker = [sys.executable, "-m", "mathverify_sweep", "worker"]
    _all_of([[*worker, name, *where, *more] for name, more in studies])


def _all_of(commands: Sequence[Sequence[str]]) -> None:
    """Side by side, until all of them have ended. Raises SystemExit when one of them did not end well."""
    started = [subprocess.Popen(command) for command in commands]
    failed = [command for command, process in zip(commands, started, strict=True) if process.wait() != 0]
    if failed:
        raise SystemExit("did not end well: " + "; ".join(" ".join(command) for command in failed))


if __name__ == "__main__":
    main()
