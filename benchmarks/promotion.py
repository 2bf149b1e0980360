"""The plans of a promotion against each other, at equal optimizer steps: what each is worth, what it takes and forgets.

    python -m benchmarks.promotion run    --file docs/results/promotion/plans.yaml --device cuda --output runs \\
        --share 0.5 --set data.source=/data/verification_pool.parquet
    python -m benchmarks.promotion report --file … --output runs --to docs/results/promotion

`run` trains one trial (the first of the sweep file's `enqueue`, or the sampler's first), promotes it by every plan with
every seed in four stages of a quarter each of the rows, or of a share of them, packed into one engine; every stage is
read on a sample of the rows of each quarter up to its own. Killed, it goes on. `report` writes a table and SVG figures
from the database. Figures are those on validation, accuracy at log-odds 0; intervals are clustered by question.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.readings import Read, labels_of, loss, points, reading_of, table
from mathverify_sweep import actions, paths, sweep_file
from mathverify_sweep.config import PromotionConfig, SweepConfig
from mathverify_sweep.metrics import Bools
from mathverify_sweep.resampling import mean_gain
from mathverify_sweep.specs import Metrics, SliceFigures
from mathverify_sweep.states import RunState
from mathverify_sweep.store import database as store
from mathverify_sweep.store import promotions, runs
from mathverify_sweep.store.runs import RunRecord
from mathverify_sweep.study import drawings, study
from mathverify_sweep.verifiers import verifier

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine as Database

PLANS = ("cumulative", "sequential", "replay", "scratch", "trunk")
QUARTERS = (0.25, 0.5, 0.75, 1.0)
PASSES = 2.5  # what four cumulative stages of one epoch each come to
REFERENCE = "cumulative"


@dataclass(frozen=True)
class Arm:
    """One plan with one seed: its finished stages in order, without the pieces of a trunk; and all runs it took."""

    plan: str
    seed: int
    stages: tuple[RunRecord, ...]
    every: tuple[RunRecord, ...]

    @property
    def seconds(self) -> list[float]:
        """Time in a slot up to the end of each stage, that of a trunk's pieces included.

        Others may be in slots beside it, and attempts that were cut are left out, so this is no cost.
        """
        until = [stage.stage or 0 for stage in self.stages]
        return [sum(run.busy_seconds or 0.0 for run in self.every if (run.stage or 0) <= end) for end in until]


def main() -> None:
    """Run it, or report it."""
    options = _options()
    config = sweep_file.require(options.file, ["budget.trials=1", "pruner.type=none", *options.settings])
    database = store.connect(options.storage)
    store.upgrade(database)
    if options.what == "run":
        _run(database, config, options)
    else:
        _report(database, config, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("--file", default="quickstart", help="sweep file with the trial, the data and the base model")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--storage", default=f"sqlite:///{paths.DEFAULT_DATABASE}")
    parser.add_argument("--output", type=Path, default=paths.DEFAULT_OUTPUT)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--share", type=float, default=1.0, help="of the training rows that the plans are compared on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--slice-rows", type=int, default=500, help="rows of each quarter that forgetting is read on")
    parser.add_argument("--to", type=Path, default=Path("promotion"), help="folder for the report")
    return parser.parse_args()


def _run(database: Database, config: SweepConfig, options: argparse.Namespace) -> None:
    actions.create(database, config)
    work(config.study, options)
    handle = study.open_study(database, config.study)
    # 1 as a share is all; as a number of rows it would be one.
    stages = ["all" if share == 1 else share for share in _shares(options)]
    for seed in options.seeds:
        for plan in PLANS:
            settings = {"plan": plan, "stages": f"[{', '.join(map(str, stages))}]", "passes": PASSES, "seed": seed}
            settings["slice_rows"] = options.slice_rows
            actions.promote(database, handle, 1, 0, [f"promotion.{key}={value}" for key, value in settings.items()])
    work(config.study, options)
    arms = list(_arms(database, config.study))
    missing = len(options.seeds) * len(PLANS) - len(arms)
    if missing:
        raise SystemExit(
            f"{missing} of the promotions did not get to their end: mvsweep status {config.study} says why"
        )


def work(name: str, options: argparse.Namespace) -> None:
    """A worker, until nothing of the study is left to do."""
    command = [sys.executable, "-m", "mathverify_sweep", "worker", name, "--until-idle", "--device", options.device]
    command += ["--storage", options.storage, "--output", str(options.output)]
    subprocess.run(command, check=True)


def _arms(database: Database, name: str) -> Iterator[Arm]:
    """Every promotion of this benchmark that has got to its end."""
    for record in promotions.promotions(database, name):
        settings = PromotionConfig.model_validate_json(record.plan)
        every = tuple(runs.get(database, run_id) for run_id in record.run_ids)
        stages = tuple(run for run in every if run.spec is not None and not run.spec.leaves_state)
        if settings.seed is not None and all(run.state is RunState.COMPLETE for run in every):
            yield Arm(settings.plan, settings.seed, stages, every)


def _shares(options: argparse.Namespace) -> list[float]:
    """Of all training rows, those that each stage ends at."""
    return [options.share * quarter for quarter in QUARTERS]


def _report(database: Database, config: SweepConfig, options: argparse.Namespace) -> None:
    arms = sorted(_arms(database, config.study), key=lambda arm: (PLANS.index(arm.plan), arm.seed))
    by_plan: dict[str, list[Arm]] = defaultdict(list)
    for arm in arms:
        by_plan[arm.plan].append(arm)
    options.to.mkdir(parents=True, exist_ok=True)
    tables = "\n".join([_table(database, by_plan), _stages(by_plan)])
    (options.to / "table.md").write_text(tables, encoding="utf-8")
    figures = {
        "accuracy": ("minutes in a slot, beside others", "validation accuracy, mean of the seeds", _over_time(by_plan)),
        "forgetting": ("stage", "accuracy on rows of the first quarter", _first_quarter(by_plan)),
    }
    for name, (x_label, y_label, named) in figures.items():
        drawn = drawings.curves(f"{name} by plan", x_label, y_label, named)
        (options.to / f"{name}.svg").write_text(drawn, encoding="utf-8")
    print(tables)


def _table(database: Database, by_plan: dict[str, list[Arm]]) -> str:
    """A line per plan: its last stage, over seeds, and against the reference on the same rows."""
    labels, questions = labels_of(by_plan[REFERENCE][0].stages[-1])
    read = {plan: _mean_reading(database, arms, labels) for plan, arms in by_plan.items()}
    against = read[REFERENCE]
    lines = []
    for plan, arms in by_plan.items():
        gain = mean_gain(read[plan].right - against.right, questions)
        more = mean_gain(read[plan].losses - against.losses, questions)
        lines.append(
            [
                plan,
                str(len(arms)),
                f"{min(_steps(arm) for arm in arms):,}",
                f"{np.mean([arm.seconds[-1] for arm in arms]) / 60:.1f}",
                ", ".join(f"{_figures(arm.stages[-1]).accuracy:.4f}" for arm in arms),
                "" if plan == REFERENCE else points(gain),
                f"{np.mean([_figures(arm.stages[-1]).log_loss for arm in arms]):.4f}",
                "" if plan == REFERENCE else loss(more),
            ]
        )
    header = ["plan", "seeds", "steps", "slot min", "accuracy, seed by seed", f"minus {REFERENCE}, points [95 %]"]
    note = (
        "Intervals are of the rows, clustered by question, for these seeds; how much seeds differ stands beside them."
    )
    return f"{table([*header, 'log-loss', f'minus {REFERENCE} [95 %]'], lines)}\n{note}\n"


def _stages(by_plan: dict[str, list[Arm]]) -> str:
    """A line per stage, means of the seeds."""
    lines = []
    for plan, arms in by_plan.items():
        for at in range(len(arms[0].stages)):
            figures = [_figures(arm.stages[at]) for arm in arms]
            slices = [_first_slice(arm.stages[at]) for arm in arms]
            lines.append(
                [
                    plan,
                    str(at + 1),
                    f"{np.mean([arm.seconds[at] for arm in arms]) / 60:.1f}",
                    f"{np.mean([each.accuracy for each in figures]):.4f}",
                    f"{np.mean([each.log_loss for each in figures]):.4f}",
                    f"{np.mean([each.auc for each in figures]):.4f}",
                    f"{np.mean([each.met_accuracy for each in slices]):.3f}",
                    f"{np.mean([each.held_back_accuracy for each in slices]):.3f}",
                ]
            )
    header = ["plan", "stage", "slot min", "accuracy", "log-loss", "AUC", "rows of the first quarter: met", "held back"]
    return table(header, lines)


def _mean_reading(database: Database, arms: Sequence[Arm], labels: Bools) -> Read:
    """Of each validation row the share of the seeds whose last stage is right, and the mean of their log-losses."""
    last = [reading_of(database, arm.stages[-1], labels) for arm in arms]
    return Read(np.mean([each.right for each in last], axis=0), np.mean([each.losses for each in last], axis=0))


def _steps(arm: Arm) -> int:
    """Optimizer steps taken, each once: a run that went on from another has taken only its own part."""
    before = {run.run_id: run.result.optimizer_steps for run in arm.every if run.result}
    taken = [(run, before[run.run_id]) for run in arm.every]
    return sum(steps - before.get(run.spec.goes_on_from or "", 0) for run, steps in taken if run.spec)


def _over_time(by_plan: dict[str, list[Arm]]) -> dict[str, list[tuple[float, float]]]:
    """Mean minutes in a slot and mean accuracy after each stage."""
    found = {}
    for plan, arms in by_plan.items():
        minutes = np.mean([arm.seconds for arm in arms], axis=0) / 60
        accuracy = np.mean([[_figures(stage).accuracy for stage in arm.stages] for arm in arms], axis=0)
        found[plan] = [(float(x), float(y)) for x, y in zip(minutes, accuracy, strict=True)]
    return found


def _first_quarter(by_plan: dict[str, list[Arm]]) -> dict[str, list[tuple[float, float]]]:
    """Mean accuracy on a sample of the first quarter's rows after each stage: what falls there is forgotten."""
    return {
        plan: [
            (float(number), float(np.mean([_first_slice(arm.stages[number - 1]).met_accuracy for arm in arms])))
            for number in range(1, len(arms[0].stages) + 1)
        ]
        for plan, arms in by_plan.items()
    }


def _first_slice(stage: RunRecord) -> SliceFigures:
    return verifier.model(stage).result.slices[0]


def _figures(run: RunRecord) -> Metrics:
    return verifier.model(run).metrics


if __name__ == "__main__":
    main()
