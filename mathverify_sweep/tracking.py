"""A W&B run, or nothing: a picture of a run, drawn on a background thread.

Nothing here fails, slows or stops a run: calls return at once, points are dropped when W&B falls behind, and whatever
goes wrong becomes one log line. Online runs that cannot start are recorded offline. SQL is the record: an offline run
loses its tail when the process is killed, and W&B is never asked for anything. The only home of wandb.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal

from mathverify_sweep import environment
from mathverify_sweep.specs import RunResult, RunSpec
from mathverify_sweep.states import EndReason

if TYPE_CHECKING:
    import wandb

log = logging.getLogger(__name__)

QUEUE_LIMIT = 2_000
"""Points that wait for W&B before new ones are dropped; starts and ends are never dropped."""
OFFLINE_SECONDS = 600.0
"""After a failed online start, runs go offline this long before online is tried again."""

Drawn = tuple[int, Mapping[str, float]]
"""Values over rows seen."""


@dataclass(frozen=True)
class TrackingSettings:
    """Where W&B runs go. `start_timeout`: seconds that W&B may take to open one run, or to upload it at its end."""

    mode: Literal["offline", "online", "disabled"] = "offline"
    project: str = "mathverify-sweep"
    entity: str | None = None
    start_timeout: float = 30.0


class Tracker:
    """One background thread that draws all runs of a worker, each as a W&B run grouped by study."""

    def __init__(self, settings: TrackingSettings) -> None:
        self._settings = settings
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._open: dict[str, TrackedRun] = {}
        self._offline_until = 0.0
        self._dropping = False
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        if settings.mode != "disabled":
            self._thread.start()

    def start(self, run_id: str, spec: RunSpec, folder: Path, earlier: Sequence[Drawn] = ()) -> TrackedRun:
        """Open a W&B run for a trial or a stage; its files go to `folder`/wandb. Returns at once.

        Another attempt gives the `run_id` of the first, and what that one logged: online it is the same W&B run, which
        goes on; offline its folder has the whole curve, so that it is the one to sync.
        """
        run = TrackedRun(self, run_id, spec)
        self._put(lambda: run._begin(self._opened(run_id, spec, folder), earlier))
        return run

    def close(self, timeout: float = 15.0) -> None:
        """Wait up to `timeout` seconds for what was said so far. Runs that have not ended are marked as failed."""
        if not self._thread.is_alive():
            return
        self._tasks.put(None)
        self._thread.join(timeout)
        if self._thread.is_alive():
            log.warning("W&B is still busy after %g s; going on without it", timeout)

    def _put(self, task: Callable[[], None], droppable: bool = False) -> None:
        if self._settings.mode == "disabled":
            return
        if not (droppable and self._is_behind()):
            self._tasks.put(task)

    def _is_behind(self) -> bool:
        """Whether points are dropped: from a full queue on until half of it is drawn, so that it is said once."""
        behind = self._tasks.qsize() >= (QUEUE_LIMIT // 2 if self._dropping else QUEUE_LIMIT)
        if behind and not self._dropping:
            log.warning("W&B is %d points behind: new points are dropped until it catches up", QUEUE_LIMIT)
        self._dropping = behind
        return behind

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            self._attempt(task)
        for run in list(self._open.values()):
            self._attempt(lambda run=run: run._end({}, (), exit_code=1))  # type: ignore[misc]
        self._attempt(_teardown)

    def _attempt(self, task: Callable[[], None]) -> None:
        try:
            task()
        except Exception as error:  # noqa: BLE001 - W&B raises what it likes, and a picture must not end a run
            log.warning("W&B: %s", _without_secrets(error))

    def _opened(self, run_id: str, spec: RunSpec, folder: Path) -> wandb.Run:
        folder.mkdir(parents=True, exist_ok=True)  # else W&B falls back to a temporary folder without being asked
        options = _identity(run_id, spec) | {"dir": str(folder), "project": self._settings.project}
        if self._settings.mode == "online" and time.monotonic() >= self._offline_until:
            try:
                return _init("online", self._settings, options | {"resume": "allow"})
            except Exception as error:  # noqa: BLE001 - no key, no network, a server's mood: all mean offline
                self._offline_until = time.monotonic() + OFFLINE_SECONDS
                log.warning("run %s: W&B is recorded offline: %s", run_id, _without_secrets(error))
                options["id"] = f"{run_id}-offline"  # W&B's service may still hold the id that it could not start
        try:
            return _init("offline", self._settings, options)
        except Exception:  # noqa: BLE001 - W&B's service process has died, which has no name of its own
            self._attempt(_teardown)
            return _init("offline", self._settings, options)


class TrackedRun:
    """A W&B run that is being drawn. Methods return at once."""

    def __init__(self, tracker: Tracker, run_id: str, spec: RunSpec) -> None:
        self._tracker = tracker
        self._run_id = run_id
        self._spec = spec
        self._wandb: wandb.Run | None = None
        self._link: str | None = None

    @property
    def link(self) -> str | None:
        """The run's page, or its folder when it is offline; None until W&B has opened it, and when it could not."""
        return self._link

    def log(self, rows_seen: int, values: Mapping[str, float]) -> None:
        """Draw values over rows seen."""
        row = {"rows_seen": rows_seen, **values}
        self._tracker._put(lambda: self._draw(row), droppable=True)

    def finish(self, result: RunResult) -> None:
        """Write the summary and the final table, and end the W&B run.

        Everything but `finished` and `pruned` ends it with a code other than zero: W&B requeues a preempted run only
        then.
        """
        summary = _summary(self._spec, result)
        table = tuple(result.metrics.model_dump(exclude={"task"}).items()) if result.metrics else ()
        code = 0 if result.end_reason in (EndReason.FINISHED, EndReason.PRUNED) else 1
        self._tracker._put(lambda: self._end(summary, table, code))

    def _begin(self, opened: wandb.Run, earlier: Sequence[Drawn]) -> None:
        self._wandb = opened
        self._tracker._open[self._run_id] = self
        self._link = str(Path(opened.dir).parent) if opened.offline else opened.url
        opened.define_metric("rows_seen", hidden=True)
        opened.define_metric("*", step_metric="rows_seen")
        for rows_seen, values in earlier if opened.offline else ():
            self._draw({"rows_seen": rows_seen, **values})

    def _draw(self, row: dict[str, float]) -> None:
        if self._wandb is not None:
            self._wandb.log(row)

    def _end(self, summary: Mapping[str, Any], table: tuple[tuple[str, float], ...], exit_code: int) -> None:
        opened, self._wandb = self._wandb, None
        if opened is None:
            return
        self._tracker._open.pop(self._run_id, None)
        try:
            if table:
                _log_table(opened, table, summary)
            opened.summary.update(dict(summary))
        finally:
            opened.finish(exit_code=exit_code)


def _identity(run_id: str, spec: RunSpec) -> dict[str, Any]:
    # What belongs together is found by group, by the tag of the trial, and by the lineage in the config.
    trial = f"trial-{spec.trial_number}"
    name = trial + (f"-stage-{spec.stage}" if spec.stage else "")
    kind = "trial" if spec.stage is None else "stage"
    return {
        "id": run_id,
        "name": name,
        "group": spec.study_name[:128],
        "job_type": kind,
        "tags": [kind, trial],
        "config": _config(spec),
    }


def _config(spec: RunSpec) -> dict[str, Any]:
    """Parameters by their own names, so that W&B's plots find them; the rest of the spec below its sections, among it
    parent runs and the data's fingerprint; and the code.
    """
    code = json.loads(environment.described())
    rest = spec.model_dump(mode="json", exclude={"params", "study_name", "prompt_texts"})
    return {
        **spec.params.model_dump(mode="json"),
        "alpha": spec.params.alpha,
        **rest,
        **{f"code_{name}": code[name] for name in _CODE},
    }


_CODE = ("version", "commit", "changed")


def _summary(spec: RunSpec, result: RunResult) -> dict[str, Any]:
    said = result.model_dump(mode="json", exclude={"metrics", "log_odds", "message", "value"}, exclude_none=True)
    metrics = result.metrics.model_dump(exclude={"task"}) if result.metrics else {}
    value = {} if result.value is None else {str(spec.objective): result.value}
    return {**said, **metrics, **value}


def _init(mode: Literal["online", "offline"], settings: TrackingSettings, options: Mapping[str, Any]) -> wandb.Run:
    # An offline run talks to nobody, not even to W&B's error reporting (read when W&B's service starts).
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    light = wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        save_code=False,
        symlink=False,
        silent=True,  # also: never ask for a key at the terminal
        init_timeout=settings.start_timeout,
        finish_timeout=settings.start_timeout,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
    wandb.setup(light)  # starts W&B's service at the first run; later calls do nothing
    return wandb.init(mode=mode, entity=settings.entity, reinit="create_new", settings=light, **options)


def _log_table(opened: wandb.Run, table: tuple[tuple[str, float], ...], summary: Mapping[str, Any]) -> None:
    import wandb

    rows = [[name, float(value)] for name, value in table]
    opened.log({"rows_seen": summary["rows_seen"], "final": wandb.Table(columns=["metric", "value"], data=rows)})


def _teardown() -> None:
    import wandb

    wandb.teardown()


def _without_secrets(error: Exception) -> str:
    """An error's kind and first line; W&B keys have 40 characters or more."""
    lines = str(error).splitlines()
    text = lines[0] if lines else ""
    key = os.environ.get("WANDB_API_KEY")
    if key:
        text = text.replace(key, "***")
    text = re.sub(r"(://)[^/@\s]+@", r"\1***@", re.sub(r"\b[0-9A-Za-z_-]{40,}\b", "***", text))
    return f"{type(error).__name__}: {text[:300]}"
