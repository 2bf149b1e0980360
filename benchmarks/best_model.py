"""The best plan on all rows, beside other long runs of the same base model, against a run set by hand; read on test.

    python -m benchmarks.best_model --plan cumulative --file docs/results/promotion/final.yaml --device cuda \\
        --output runs --set data.source=/data/verification_pool.parquet --to docs/results/promotion

`--plan` is what `benchmarks.promotion` found to be the best (docs/results/promotion.md). The sweep file's
trials are small and only there to be promoted. Which model is the best, and which are averaged, validation decides;
test is read by these and by the first run set by hand, once, at the end. Killed, it goes on. Writes a table.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.promotion import PASSES, work
from benchmarks.readings import points, right, table
from mathverify_sweep import actions, metrics, paths, sweep_file
from mathverify_sweep.config import SweepConfig
from mathverify_sweep.data.rows import groups
from mathverify_sweep.metrics import Bools, Floats
from mathverify_sweep.resampling import mean_gain
from mathverify_sweep.store import database as store
from mathverify_sweep.store import promotions, runs
from mathverify_sweep.study import study
from mathverify_sweep.verifiers import ensemble, verifier
from mathverify_sweep.verifiers.verifier import Model, Verifier

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine as Database

BY_HAND = "set by hand, one pass"
LONG_RUNS: dict[str, tuple[int, dict[str, Any]]] = {
    BY_HAND: (0, {"plan": "scratch", "stages": "[all]", "seed": 11}),
    f"{BY_HAND}, another seed": (0, {"plan": "scratch", "stages": "[all]", "seed": 12}),
    "best plan": (1, {"stages": "[0.25, 0.5, 0.75, all]", "passes": PASSES, "seed": 11}),
    "two passes, dropout": (2, {"plan": "scratch", "stages": "[all]", "passes": 2, "seed": 11}),
    "one pass, twice the rate, dropout": (3, {"plan": "scratch", "stages": "[all]", "seed": 11}),
}
"""By name the trial of the sweep file that is promoted, and how."""

AVERAGED = 5
"""Runs in the ensemble at most."""


def main() -> None:
    """Train, choose, read test, tell."""
    options = _options()
    config = sweep_file.require(options.file, options.settings)
    database = store.connect(options.storage)
    store.upgrade(database)
    named = _trained(database, config, options)
    asked = _asked(database, config, named)
    said = _said(database, asked, options)
    rows = verifier.rows_of(named[BY_HAND], "test")
    labels, questions = np.array([row.is_correct for row in rows]), groups(rows)
    parts = [_validation(named, options.plan), _test(asked, said, labels, questions)]
    tables = "\n".join([*parts, _differences(asked, said, labels, questions)])
    options.to.mkdir(parents=True, exist_ok=True)
    (options.to / "final.md").write_text(tables, encoding="utf-8")
    print(tables)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", default="cumulative", help="the best plan")
    parser.add_argument("--file", default="docs/results/promotion/final.yaml", help="sweep file with the settings")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--storage", default=f"sqlite:///{paths.DEFAULT_DATABASE}")
    parser.add_argument("--output", type=Path, default=paths.DEFAULT_OUTPUT)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--to", type=Path, default=Path("promotion"), help="folder for the table")
    return parser.parse_args()


def _trained(database: Database, config: SweepConfig, options: argparse.Namespace) -> dict[str, Model]:
    """The last stage of each long run, by name. Raises StudyError when one has not finished."""
    actions.create(database, config)
    work(config.study, options)
    handle = study.open_study(database, config.study)
    ids = {}
    for name, (trial, own) in LONG_RUNS.items():
        settings = [f"promotion.{key}={value}" for key, value in {"plan": options.plan, **own}.items()]
        (promoted,) = actions.promote(database, handle, 1, trial, settings)
        ids[name] = promoted.promotion_id
    work(config.study, options)
    stages = {record.promotion_id: record.run_ids for record in promotions.promotions(database, config.study)}
    return {name: verifier.model(runs.get(database, stages[promotion][-1])) for name, promotion in ids.items()}


def _asked(database: Database, config: SweepConfig, named: dict[str, Model]) -> dict[str, Verifier]:
    """Who reads test: the first run set by hand, the best of the others on validation, and a mean."""
    sought = {name: model for name, model in named.items() if not name.startswith(BY_HAND)}
    best = min(sought, key=lambda name: sought[name].metrics.log_loss)
    chosen = ensemble.choose(database, config.study, list(named.values()), AVERAGED)
    averaged = verifier.find(database, [member.run_id for member in chosen.members])
    return {
        BY_HAND: verifier.find(database, [named[BY_HAND].run.run_id]),
        f"best on validation ({best})": verifier.find(database, [named[best].run.run_id]),
        f"mean of {len(averaged.models)} ({'; '.join(_names(named, averaged))})": averaged,
    }


def _said(database: Database, asked: dict[str, Verifier], options: argparse.Namespace) -> dict[str, Floats]:
    """Their log-odds on test."""
    from mathverify_sweep.training.judge import Judge  # imports torch

    judge = Judge("cuda:0" if options.device == "cuda" else options.device)
    output = options.output.resolve()
    return {name: verifier.split_log_odds(database, each, "test", output, judge) for name, each in asked.items()}


def _validation(named: dict[str, Model], plan: str) -> str:
    lines = [
        [name, f"{model.result.rows_seen:,}", f"{model.metrics.log_loss:.4f}", f"{model.metrics.accuracy:.4f}"]
        for name, model in named.items()
    ]
    header = ["long run", "rows of its last stage", "log-loss", "accuracy at 0"]
    return f"Validation. The best plan is `{plan}`.\n\n{table(header, lines)}"


def _test(asked: dict[str, Verifier], said: dict[str, Floats], labels: Bools, questions: Sequence[str]) -> str:
    lines = []
    for name, each in asked.items():
        found = metrics.judge(said[name], labels, questions)
        lines.append(
            [
                name,
                f"{found.accuracy:.4f} [{found.accuracy_low:.4f}, {found.accuracy_high:.4f}]",
                f"{right(said[name], labels, each.threshold).mean():.4f} (at {each.threshold:+.2f})",
                f"{found.log_loss:.4f}",
                f"{found.auc:.4f}",
            ]
        )
    header = ["model", "accuracy at 0 [95 %]", "at the threshold", "log-loss", "AUC"]
    return f"Test, {len(labels):,} rows.\n\n{table(header, lines)}"


def _differences(asked: dict[str, Verifier], said: dict[str, Floats], labels: Bools, questions: Sequence[str]) -> str:
    """Paired, by question: what the choice, the mean and the threshold bring."""
    by_hand, best, mean = (right(odds, labels) for odds in said.values())
    _, best_there, mean_there = (right(said[name], labels, each.threshold) for name, each in asked.items())
    gains = {
        "best minus set by hand": best - by_hand,
        "mean minus best": mean - best,
        "mean minus set by hand": mean - by_hand,
        "best, its threshold minus 0": best_there - best,
        "mean, its threshold minus 0": mean_there - mean,
    }
    lines = [[what, points(mean_gain(gain, questions))] for what, gain in gains.items()]
    return table(["difference on test", "points [95 %]"], lines)


def _names(named: dict[str, Model], averaged: Verifier) -> Iterator[str]:
    """Of the models that are averaged."""
    for run_id in averaged.run_ids:
        yield next(name for name, model in named.items() if model.run.run_id == run_id)


if __name__ == "__main__":
    main()
