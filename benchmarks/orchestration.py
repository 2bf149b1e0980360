"""What orchestration costs: ask, report and tell as a worker does them, by workers, trials and database.

Each process does exactly what a worker's clerk does (`worker.claims.claim`, `worker.saying.say`), on a study that has
that many ended trials; all processes together begin about four trials a second, so the number of processes is what
differs. Then 64 real workers on 60-second runs that train nothing, and what of a worker's time was not training. Then
how long `mvsweep dashboard` takes for the page of a study of so many trials. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import mean, quantiles
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import sqlalchemy as sa

from benchmarks.faults.postgres import Postgres, free_port
from mathverify_sweep.chaos.stage import Stage, create, sweep
from mathverify_sweep.specs import RunResult
from mathverify_sweep.states import EndReason
from mathverify_sweep.store.database import connect, transaction
from mathverify_sweep.store.runs import Claim, RunRecord, WorkerIdentity
from mathverify_sweep.study.study import open_study
from mathverify_sweep.worker.claims import claim, with_its_past
from mathverify_sweep.worker.outbox import Finished, Held, Reported
from mathverify_sweep.worker.saying import say

STUDY = "overhead"
WORKERS = 1, 8, 64
TRIALS = 100, 1_000, 10_000
TRIALS_A_SECOND = 4.0
CELL_SECONDS = 12.0
PARTS = "latency", "workers", "dashboard"
KEPT_SECONDS = 10.0
"""optuna-dashboard answers from what it has read for so long."""
Timings = dict[str, list[float]]


def main() -> None:
    """Measure, and print a table for each half."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", choices=("sqlite", "postgresql", "both"), default="both")
    parser.add_argument("--trials", type=int, nargs="*", default=TRIALS)
    parser.add_argument("--workers", type=int, nargs="*", default=WORKERS)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--run-seconds", type=float, default=60.0, help="what a run of the real workers takes")
    parser.add_argument("--runs", type=int, default=3, help="runs of each real worker")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    kinds = ("sqlite", "postgresql") if options.database == "both" else (options.database,)
    found: dict[str, Any] = {}
    if "latency" in options.only:
        found["latency"] = [cell for kind in kinds for cell in _latencies(kind, options.trials, options.workers)]
    if "workers" in options.only:
        found["workers"] = [_not_training(k, max(options.workers), options.run_seconds, options.runs) for k in kinds]
    if "dashboard" in options.only:
        found["dashboard"] = [_page(kind, count) for kind in kinds for count in options.trials]
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    )
    if "latency" in found:
        print(_latency_table(found["latency"]))
    if "workers" in found:
        print(_workers_table(found["workers"]))
    if "dashboard" in found:
        print(_pages_table(found["dashboard"]))


@contextmanager
def database(kind: str) -> Iterator[tuple[str, Path]]:
    """An empty database of this kind, and a folder."""
    folder = Path(tempfile.mkdtemp(prefix="mvsweep-overhead-"))
    try:
        if kind == "sqlite":
            yield f"sqlite:///{folder / 'o.sqlite3'}", folder
        else:
            with Postgres() as server:
                yield server.url, folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _latencies(kind: str, trials: Sequence[int], workers: Sequence[int]) -> Iterator[dict[str, Any]]:
    for count in trials:
        with _study_of(kind, count) as (url, folder):
            for processes in workers:
                timings = _together(url, folder, processes)
                cell = {"database": kind, "trials": count, "workers": processes}
                yield cell | {what: _figures(seconds) for what, seconds in timings.items()}
                print(cell, {k: _figures(v)["mean"] for k, v in timings.items()}, file=sys.stderr, flush=True)


@contextmanager
def _study_of(kind: str, count: int) -> Iterator[tuple[str, Path]]:
    """A database with a study that has so many ended trials, and a folder."""
    with database(kind) as (url, folder):
        engine = connect(url)
        create(engine, sweep(STUDY, 1_000_000, pruner={"type": "asha"}))
        _one_trial(url, folder, random.Random(0), {})
        _multiply(engine, count)
        engine.dispose()
        yield url, folder


def _together(url: str, folder: Path, processes: int) -> Timings:
    context = multiprocessing.get_context("fork")  # what is imported once need not be imported 64 times
    cycles = max(1, round(TRIALS_A_SECOND * CELL_SECONDS / processes))
    jobs = [(url, folder, cycles, processes, seed) for seed in range(processes)]
    with context.Pool(processes) as pool:
        merged: Timings = defaultdict(list)
        for one in pool.imap_unordered(_work, jobs, chunksize=1):
            for what, seconds in one.items():
                merged[what] += seconds
    return dict(merged)


def _work(job: tuple[str, Path, int, int, int]) -> Timings:
    url, folder, cycles, processes, seed = job
    chance = random.Random(seed)
    timings: Timings = defaultdict(list)
    _one_trial(url, folder, chance, {})  # what is done once in a worker's life is not counted
    for _ in range(cycles):
        time.sleep(chance.uniform(0, 2 * processes / TRIALS_A_SECOND))
        _one_trial(url, folder, chance, timings)
    return dict(timings)


_open: dict[str, Any] = {}


def _one_trial(url: str, folder: Path, chance: random.Random, timings: dict[str, list[float]]) -> None:
    """Ask, report three times, tell."""
    if (os.getpid(), url) not in _open:
        engine = connect(url)
        _open[os.getpid(), url] = engine, open_study(engine, STUDY), WorkerIdentity.of_this_process("cpu", 60.0)
    engine, study, identity = _open[os.getpid(), url]

    def timed(what: str, do: Any) -> Any:
        began = time.perf_counter()
        answer = do()
        timings.setdefault(what, []).append(time.perf_counter() - began)
        return answer

    found = timed("ask", lambda: with_its_past(engine, required(claim(engine, study, identity)), folder))
    held, value = Held.of(found.claim), chance.uniform(0.6, 0.9)
    for rung in study.config.rungs:
        report = Reported(held=held, rows_seen=rung, value=value, asks=True)
        timed("report", lambda report=report: say(engine, study, folder, [report]))
    result = RunResult(end_reason=EndReason.FINISHED, value=value, log_odds=(0.5,) * 65, rows_seen=400)
    end = Finished(held=held, result=result, at=datetime.now(UTC), retry=None, tells=True, link=None)
    timed("tell", lambda: say(engine, study, folder, [end]))


def required(found: Claim | None) -> Claim:
    """There is always a trial left."""
    assert found is not None
    return found


def _multiply(engine: sa.Engine, count: int) -> None:
    """Copies of the one trial there is, in Optuna's tables and in ours: a study of `count` trials, in seconds."""
    tables = sa.MetaData()
    tables.reflect(engine)
    run = tables.tables["mv_runs"]
    with transaction(engine) as connection:
        trial = dict(connection.execute(sa.select(tables.tables["trials"])).one()._mapping)
        first = dict(connection.execute(sa.select(run)).one()._mapping)
        new = range(1, count)
        ids = {number: trial["trial_id"] + number for number in new}
        connection.execute(sa.insert(tables.tables["trials"]), [trial | {"trial_id": ids[n], "number": n} for n in new])
        copies = [
            first | {"position": first["position"] + n, "run_id": f"copy{n}", "trial_number": n, "lease_token": f"t{n}"}
            for n in new
        ]
        connection.execute(sa.insert(run), copies)
        for table in tables.tables.values():
            if table.name == "trials" or table.name == "mv_runs":
                continue
            key = next((c for c in ("trial_id", "run_id") if c in table.c), None)
            if key is None:
                continue
            own = next((c.name for c in table.primary_key if c.name not in (key, "rows_seen", "split")), None)
            for row in connection.execute(sa.select(table)).mappings().all():
                values = {name: value for name, value in row.items() if name != own}
                made = [values | {key: ids[n] if key == "trial_id" else f"copy{n}"} for n in new]
                connection.execute(sa.insert(table), made)
        if engine.dialect.name == "postgresql":
            for name, column in (("trials", "trial_id"), ("mv_runs", "position")):
                serial = f"pg_get_serial_sequence('{name}', '{column}')"
                connection.execute(sa.text(f"SELECT setval({serial}, (SELECT max({column}) FROM {name}))"))
            connection.execute(sa.text("ANALYZE"))


def _not_training(kind: str, workers: int, run_seconds: float, runs_each: int) -> dict[str, Any]:
    """Real workers, all of them on runs of so many seconds: per run, the time from one start to the next, less it."""
    config = sweep(STUDY, workers * runs_each)
    with (
        database(kind) as (url, folder),
        Stage(folder, url, config, lease_seconds=60.0, run_seconds=run_seconds) as stage,
    ):
        for gpu in range(workers):
            stage.fleet.start(gpu)
        stage.wait_until_done(runs_each * run_seconds + 300)
        broken, records = stage.broken(), stage.runs()
    assert not broken, broken
    gaps = _gaps(records, run_seconds)
    return {"database": kind, "workers": workers, "run_seconds": run_seconds, "gaps": gaps}


def _gaps(records: Sequence[RunRecord], run_seconds: float) -> dict[str, dict[str, float]]:
    """Apart are those that begin before the last worker has: to start 64 of them takes two cores a minute or two."""
    by_worker: dict[str, list[RunRecord]] = defaultdict(list)
    for run in records:
        assert run.worker is not None
        by_worker[run.worker.worker_id].append(run)
    mine = [sorted(own, key=_start) for own in by_worker.values()]
    last_has_begun = max(_start(own[0]) for own in mine)
    gaps: dict[str, list[float]] = defaultdict(list)
    for own in mine:
        for one, following in pairwise(own):
            when = "all at work" if _start(one) >= last_has_begun else "some still starting"
            gaps[when].append((_start(following) - _start(one)).total_seconds() - run_seconds)
    return {when: _figures(seconds) for when, seconds in sorted(gaps.items())}


def _start(run: RunRecord) -> datetime:
    assert run.started_at is not None
    return run.started_at


def _page(kind: str, count: int) -> dict[str, Any]:
    """Seconds until the dashboard's first answer about a study, and about new trials of it afterwards."""
    with _study_of(kind, count) as (url, folder):
        port = free_port()
        command = [sys.executable, "-m", "mathverify_sweep", "dashboard", "--storage", url, "--output", str(folder)]
        with subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL) as process:
            try:
                page = f"http://127.0.0.1:{port}/api/studies/1"
                started = _answered(f"http://127.0.0.1:{port}/api/studies", patience=30.0)
                first = _answered(page)
                time.sleep(KEPT_SECONDS + 1)
                later = _answered(f"{page}?after={count}")
            finally:
                process.terminate()
    return {"database": kind, "trials": count, "started": started, "first": first, "later": later}


def _answered(url: str, patience: float = 0.0) -> float:
    """Seconds that an answer takes, those until somebody listens included."""
    began = time.perf_counter()
    while True:
        try:
            with urlopen(url, timeout=300) as answer:
                answer.read()
            return time.perf_counter() - began
        except URLError:
            if time.perf_counter() - began > patience:
                raise
            time.sleep(0.05)


def _figures(seconds: Sequence[float]) -> dict[str, float]:
    worst = quantiles(seconds, n=20)[-1] if len(seconds) > 1 else seconds[0]
    return {"count": len(seconds), "mean": mean(seconds), "p95": worst, "max": max(seconds)}


def _latency_table(cells: Sequence[dict[str, Any]]) -> str:
    lines = ["", "Milliseconds, mean (95th percentile).", "", "| database | trials | workers | ask | report | tell |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for cell in cells:
        figures = [f"{1e3 * cell[w]['mean']:.0f} ({1e3 * cell[w]['p95']:.0f})" for w in ("ask", "report", "tell")]
        lines.append(f"| {cell['database']} | {cell['trials']:,} | {cell['workers']} | {' | '.join(figures)} |")
    return "\n".join(lines)


def _workers_table(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["", "| database | workers | run | while | not training, mean | share | 95th percentile | runs counted |"]
    lines.append("|---|---:|---:|---|---:|---:|---:|---:|")
    for row in rows:
        for when, gap in row["gaps"].items():
            share = gap["mean"] / row["run_seconds"]
            figures = f"{gap['mean']:.2f} s | {share:.2%} | {gap['p95']:.2f} s | {gap['count']}"
            lines.append(f"| {row['database']} | {row['workers']} | {row['run_seconds']:g} s | {when} | {figures} |")
    return "\n".join(lines)


def _pages_table(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["", "| database | trials | `mvsweep dashboard` listens | page of the study | new trials later |"]
    lines.append("|---|---:|---:|---:|---:|")
    for row in rows:
        seconds = [f"{row[what]:.2f} s" for what in ("started", "first", "later")]
        lines.append(f"| {row['database']} | {row['trials']:,} | {' | '.join(seconds)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
