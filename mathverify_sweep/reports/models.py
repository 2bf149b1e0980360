"""What a report says of a study, as values that go to JSON as they are."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from mathverify_sweep.search_space import Value
from mathverify_sweep.specs import Frozen, Metrics, Objective
from mathverify_sweep.states import EndReason, RunState

StudyState = Literal["new", "running", "waiting", "stopped", "idle", "done"]
"""`waiting`: runs wait for a worker; `idle`: its budget is not used up, and nobody works; `done`: it is."""


class CurvePoint(Frozen):
    """What a run said after `rows_seen` rows: its value at a rung, its loss on the way."""

    rows_seen: int
    value: float | None = None
    loss: float | None = None


class RunRow(Frozen):
    """A trial or a stage as its last attempt stands; a trial that nobody has taken yet has no run."""

    run_id: str | None
    state: RunState
    end_reason: EndReason | None
    message: str = ""
    attempts: int
    value: float | None = Field(description="the objective at the end, or at the last rung of a run that was pruned")
    accuracy: float | None
    accuracy_low: float | None = Field(description="lower end of the 95 % interval, clustered by question")
    accuracy_high: float | None
    rows_seen: int
    rows_to_meet: int = Field(description="what `rows_seen` is at the end, unless rows do not fit")
    train_rows: int
    seconds: float = Field(description="device time of all attempts")
    worker: str | None
    gpu: str | None
    metrics: Metrics | None
    curve: tuple[CurvePoint, ...] = Field((), exclude=True)


class TrialRow(RunRow):
    """A trial with its tuned parameters."""

    number: int
    params: dict[str, Value]
    wandb: str | None = Field(None, description="W&B page, or folder of the offline run")


class StageRow(RunRow):
    """A stage of a promotion. `started_from` is the run whose adapter, or whose checkpoint, it took."""

    stage: int
    part: Literal["trunk", "cooldown"] | None = Field(None, description="of the plan `trunk`")
    started_from: str | None

    @property
    def name(self) -> str:
        """`2`, or `2 trunk`."""
        return f"{self.stage} {self.part}" if self.part else f"{self.stage}"


class PromotionRow(Frozen):
    """The long run of one trial by one plan."""

    promotion_id: str
    trial_number: int
    plan: str
    state: RunState
    trial_value: float | None = Field(description="the trial's own value, before its promotion")
    stages: tuple[StageRow, ...]


class RunningRow(Frozen):
    """What a worker is doing now."""

    run_id: str
    trial_number: int
    stage: int | None
    attempt: int
    worker: str
    gpu: str
    rows_seen: int
    rows_to_meet: int
    value: float | None
    loss: float | None
    started_at: datetime | None
    heard_at: datetime | None = Field(description="when its lease was renewed last")


class BudgetUse(Frozen):
    """What the study may spend, and what it has spent. Device-hours count retries and stages too."""

    trials: int
    trials_used: int
    gpu_hours: float | None
    gpu_hours_used: float
    deadline: datetime | None


class StatusReport(Frozen):
    """A study as it stands."""

    study: str
    state: StudyState
    stopped: str | None = Field(description="why it hands out no more runs")
    objective: Objective
    data_fingerprint: str
    created_at: datetime
    counts: dict[RunState, int] = Field(description="trials by state")
    end_reasons: dict[EndReason, int] = Field(description="ended trials by reason")
    best_trial: int | None
    best_value: float | None
    budget: BudgetUse
    baselines: dict[str, Metrics]
    trials: tuple[TrialRow, ...]
    promotions: tuple[PromotionRow, ...]
    running: tuple[RunningRow, ...]


class LeaderRow(Frozen):
    """A line of the leaderboard. Baselines have no rank and come last; a model below them is no verifier."""

    kind: Literal["trial", "baseline"]
    rank: int | None
    name: str
    trial_number: int | None
    run_id: str | None
    value: float
    metrics: Metrics
    params: dict[str, Value]
    rows_seen: int
    promoted: StageRow | None = Field(description="the best stage of its promotion, when there is one")


class Leaderboard(Frozen):
    """The best trials, and the baselines on the same validation rows."""

    study: str
    objective: Objective
    complete: int = Field(description="trials that were ranked; the best of many looks better than it is")
    rows: tuple[LeaderRow, ...]
