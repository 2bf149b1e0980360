"""`make soak`: many workers, thousands of trials, and a fault every few seconds, for us and for a stock Optuna loop.

Workers train nothing (`--engine rehearsal`); all else is real: processes, servers, signals, full disks. Whatever a
worker dies of, a new one takes its place two seconds later, as a cluster's scheduler would have it. Prints a table in
Markdown; `--json FILE` keeps what it was made from. Exits with 1 when one of our rules is broken.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.faults.contestants import Contestant, Job, Ours, Score, Stock
from benchmarks.faults.places import Place, PostgresPlace, SqlitePlace
from benchmarks.faults.schedule import Fault, schedule
from mathverify_sweep.chaos.fleet import Member

REPLACED_AFTER = 2.0
LOOK_SECONDS = 0.5
SETTLE_SECONDS = 300.0
"""How long the workers have, after the last fault, to come to an end."""


@dataclass(frozen=True)
class Settings:
    """One soak. `seconds`: how long faults are done."""

    workers: int
    seconds: float
    every: float
    seed: int
    job: Job


@dataclass
class Outcome:
    """How one contestant fared on one database."""

    contestant: str
    database: str
    seconds: float = 0.0
    ended_in_time: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    gave_up: int = 0
    score: Score | None = None


class Soak:
    """One contestant in one place."""

    def __init__(self, place: Place, contestant: Contestant, settings: Settings) -> None:
        self._place, self._contestant, self._settings = place, contestant, settings
        self._began = time.monotonic()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._replaced: set[int] = set()
        self._to_come = 0
        self._outcome = Outcome(contestant.name, place.kind)

    def run(self) -> Outcome:
        """Start the workers, do the faults, wait for the end, count."""
        settings = self._settings
        for fault in schedule(settings.seed, settings.seconds, settings.every, settings.job.lease_seconds):
            self._at(fault.at, lambda fault=fault: self._do(fault))  # type: ignore[misc]
        for gpu in range(settings.workers):
            self._contestant.fleet.start(gpu)
        counted = False
        while self._seconds < settings.seconds + SETTLE_SECONDS and not self._is_over():
            while self._due and self._due[0][0] <= self._seconds:
                heapq.heappop(self._due)[2]()
            self._replace_the_dead()
            if not counted and self._seconds >= settings.seconds:
                counted = True
                self._mend()
                self._outcome.ended_in_time = self._contestant.ended()
                self._say(f"{self._outcome.ended_in_time} trials have ended")
            time.sleep(LOOK_SECONDS)
        return self._count(counted)

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def _at(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._due, (seconds, next(self._order), action))

    def _is_over(self) -> bool:
        return not self._contestant.fleet.alive and not self._ends_that_count() and self._to_come == 0

    def _count(self, counted: bool) -> Outcome:
        self._outcome.seconds = self._seconds
        self._mend()
        left = len(self._contestant.fleet.alive)
        self._contestant.fleet.close()
        if not counted:
            self._outcome.ended_in_time = self._contestant.ended()
        self._say(f"ended; {left} worker(s) were still there")
        self._outcome.score = self._contestant.score()
        return self._outcome

    def _mend(self) -> None:
        """Nothing is broken any more, so that the workers can come to an end."""
        for disk in self._place.disks:
            disk.free()
        self._place.start()
        for member in self._contestant.fleet.alive:
            member.process.send_signal(signal.SIGCONT)

    def _ends_that_count(self) -> list[Member]:
        """Workers that were killed or gave up, and were not replaced yet."""
        fleet = self._contestant.fleet
        return [m for m in fleet.members if not m.lives and m.process.returncode != 0 and id(m) not in self._replaced]

    def _replace_the_dead(self) -> None:
        for member in self._ends_that_count():
            self._replaced.add(id(member))
            if not member.hurt:
                self._outcome.gave_up += 1
                self._say(f"a worker gave up with {member.process.returncode}: {member.log}")
            gpu = member.gpu
            self._to_come += 1
            self._at(self._seconds + REPLACED_AFTER, lambda gpu=gpu: self._start(gpu))  # type: ignore[misc]

    def _start(self, gpu: int) -> None:
        self._to_come -= 1
        self._contestant.fleet.start(gpu)

    def _do(self, fault: Fault) -> None:
        self._outcome.faults[fault.kind] = self._outcome.faults.get(fault.kind, 0) + 1
        self._say(f"{fault.kind} {fault.seconds:.0f} s" if fault.seconds else fault.kind)
        if fault.kind in ("kill", "terminate", "freeze"):
            self._hurt(fault)
        elif fault.kind == "cut":
            self._cut(0.1 + 0.9 * fault.draw)
        elif fault.kind == "outage":
            self._place.stop()
            self._at(self._seconds + fault.seconds, self._place.start)
        else:
            disk = self._place.disks[int(fault.draw * len(self._place.disks))]
            disk.fill()
            self._at(self._seconds + fault.seconds, lambda: self._free(disk.free))

    def _free(self, free: Callable[[], None]) -> None:
        free()
        self._place.start()  # a server that a full disk has ended

    def _cut(self, share: float) -> None:
        try:
            self._place.cut(share)
        except Exception as error:  # noqa: BLE001 - the server is away by another fault; then nothing is cut
            self._say(f"not cut: {type(error).__name__}")

    def _hurt(self, fault: Fault) -> None:
        alive = self._contestant.fleet.alive
        if not alive:
            return
        member = alive[int(fault.draw * len(alive))]
        number = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "freeze": signal.SIGSTOP}[fault.kind]
        member.signal(number)
        if fault.kind == "freeze":
            self._at(self._seconds + fault.seconds, lambda: member.signal(signal.SIGCONT))

    def _say(self, text: str) -> None:
        alive = len(self._contestant.fleet.alive)
        line = f"{self._seconds:6.1f} s  {self._outcome.contestant} on {self._place.kind}, {alive} workers: {text}"
        print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Soak whom and what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", choices=("sqlite", "postgresql", "both"), default="both")
    parser.add_argument("--contestant", choices=("mvsweep", "stock", "both"), default="both")
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--trials", type=int, default=2_000)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long faults are done")
    parser.add_argument("--every", type=float, default=4.0, help="mean seconds between two faults")
    parser.add_argument("--run-seconds", type=float, default=10.0, help="what a run takes")
    parser.add_argument("--lease", type=float, default=8.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--logs", type=Path, help="keep what the workers print in this folder")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that workers, servers and disks are put away
    job = Job(options.trials, options.run_seconds, options.lease)
    settings = Settings(options.workers, options.seconds, options.every, options.seed, job)
    outcomes = []
    for kind in ("sqlite", "postgresql") if options.database == "both" else (options.database,):
        for name in ("mvsweep", "stock") if options.contestant == "both" else (options.contestant,):
            outcomes.append(_soak(kind, name, settings, options.logs))
            if options.json:
                kept = {"settings": asdict(settings), "outcomes": [asdict(outcome) for outcome in outcomes]}
                options.json.write_text(json.dumps(kept, indent=2))
    print(_table(settings, outcomes))
    sys.exit(any(_broken(outcome) for outcome in outcomes if outcome.contestant == Ours.name))


def _soak(kind: str, name: str, settings: Settings, logs: Path | None) -> Outcome:
    # A stock worker opens two connections or more, so the server is given more of them for its sake.
    connections = 100 if name == "mvsweep" else 4 * settings.workers + 20
    with SqlitePlace() if kind == "sqlite" else PostgresPlace(connections) as place:
        contestant = (Ours if name == "mvsweep" else Stock)(place, settings.job)
        try:
            return Soak(place, contestant, settings).run()
        finally:
            contestant.fleet.close()
            if logs is not None:
                shutil.copytree(place.logs, logs / f"{name}-{kind}", dirs_exist_ok=True)


def _broken(outcome: Outcome) -> bool:
    assert outcome.score is not None
    return any(outcome.score.rules.values())


def _table(settings: Settings, outcomes: list[Outcome]) -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    lines = [
        f"{settings.workers} workers, {settings.job.trials} trials of {settings.job.run_seconds:g} s, lease "
        f"{settings.job.lease_seconds:g} s, faults for {settings.seconds:g} s, about every {settings.every:g} s, seed "
        f"{settings.seed}. {datetime.now(UTC):%Y-%m-%d}, commit {commit.stdout.strip()}, {os.cpu_count()} cores, "
        f"{memory:.0f} GiB, {platform.system()}, Python {platform.python_version()}.",
        "",
        "| | " + " | ".join(f"{o.contestant}, {o.database}" for o in outcomes) + " |",
        "|---|" + "---:|" * len(outcomes),
    ]
    rows: dict[str, Callable[[Outcome], object]] = {
        "faults done": lambda o: sum(o.faults.values()),
        "trials ended while faults were done": lambda o: o.ended_in_time,
        "seconds until the last worker ended": lambda o: round(o.seconds),
        "workers that gave up by themselves": lambda o: o.gave_up,
    }
    for name in _names([list(o.score.counts) for o in outcomes if o.score]):
        rows[name] = lambda o, name=name: o.score.counts.get(name, "") if o.score else ""  # type: ignore[misc]
    for name in _names([list(o.score.rules) for o in outcomes if o.score]):
        rows[f"**{name}**: broken"] = lambda o, name=name: _times(o, name)  # type: ignore[misc]
    lines += [f"| {name} | " + " | ".join(str(of(o)) for o in outcomes) + " |" for name, of in rows.items()]
    return "\n".join(lines)


def _times(outcome: Outcome, rule: str) -> object:
    assert outcome.score is not None
    return len(outcome.score.rules[rule]) if rule in outcome.score.rules else ""


def _names(lists: list[list[str]]) -> list[str]:
    return list(dict.fromkeys(name for names in lists for name in names))


if __name__ == "__main__":
    main()
