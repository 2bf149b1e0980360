"""What a report says of a study, as values that go to JSON as they are."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from mathverify_sweep.metrics import Interval
from mathverify_sweep.resampling import Comparison
from mathverify_sweep.search_space import Value
from mathverify_sweep.specs import Frozen, Metrics, Objective, RunSpec, SliceFigures, Split
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
    peak_memory_bytes: int = Field(0, description="of the last attempt; on a GPU of its engine, whoever shares it")
    worker: str | None
    gpu: str | None
    metrics: Metrics | None
    curve: tuple[CurvePoint, ...] = Field((), exclude=True)

    @property
    def how(self) -> str:
        """The state in small letters; `imported` for a trial that is complete by a score from elsewhere."""
        return "imported" if self.state is RunState.COMPLETE and not self.attempts else self.state.lower()


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
    slices: tuple[SliceFigures, ...] = Field((), description="what it knows of each slice of the data up to its own")

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


class Prediction(Frozen):
    """Device time that was predicted for the work that workers have done, by rates measured before, and what it was."""

    device: str
    workers: int
    runs: int = Field(description="attempts that have trained")
    rows_trained: int
    rows_judged: int
    predicted_seconds: float = Field(description="device time of all workers together")
    took_seconds: float
    ratio: float = Field(description="taken over predicted")


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
    predictions: tuple[Prediction, ...] = Field((), description="of devices on which `mvsweep plan` had measured")
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


class Part(Frozen):
    """Some of the rows of an evaluation, by what they have in common; accuracy is at the verifier's threshold."""

    name: str
    rows: int
    accuracy: Interval


class Evaluation(Metrics):
    """All figures of a verifier on a split or a file."""

    run_ids: tuple[str, ...]
    where: str = Field(description="a split, or the file")
    intervals: dict[str, Interval] = Field(description="95 %, clustered by question, by the name of the figure")
    parts: dict[str, tuple[Part, ...]] = Field(description="by length of the solution, and by a column of the file")
    left_out_rows: int = Field(0, description="of a file to be solved: rows without a final number to compare with")


class Sampled(Frozen):
    """What several solutions of each row come to."""

    run_ids: tuple[str, ...]
    where: str = Field(description="a split, or the file")
    rows: int
    left_out_rows: int = Field(0, description="of a file to be solved: rows without a final number to compare with")
    samples: int = Field(description="solutions of each row")
    temperature: float
    figures: dict[str, Interval] = Field(description="95 %, clustered by question, by the name of the figure")


class ComparedPair(Frozen):
    """Two runs; what is said is of the first, held against the second."""

    first: str
    second: str
    comparison: Comparison


class ComparedRuns(Frozen):
    """Every pair of some runs on one split."""

    split: Split
    rows: int
    questions: int
    pairs: tuple[ComparedPair, ...]


class Member(Frozen):
    """A run of an ensemble; `metrics` are those of the ensemble up to it, on validation."""

    run_id: str
    trial_number: int | None
    stage: int | None
    metrics: Metrics


class Ensemble(Frozen):
    """Runs whose mean log-odds is one verifier, in the order in which they were chosen."""

    study: str
    candidates: int
    members: tuple[Member, ...]
    against_the_first: Comparison = Field(description="on validation, where it was chosen")


class Exported(Frozen):
    """A folder with a model. The last four say what merging has changed on validation, at the threshold."""

    run_id: str
    folder: str
    merged: bool
    dtype: Literal["float32", "bfloat16"]
    rows: int = 0
    flipped: int = Field(0, description="rows with another verdict than by the adapter")
    largest_shift: float = Field(0.0, description="of any row's log-odds")
    accuracy_change: float = 0.0


class Code(Frozen):
    """What a worker ran. `changed`: its files differed from the commit."""

    version: str
    commit: str | None
    changed: bool
    python: str
    platform: str
    threads: int = Field(description="of the matmuls on a CPU: with as many the bits are the same")
    packages: dict[str, str]


class LineageAttempt(Frozen):
    """One attempt of a run, and the checkpoint that it went on from, in rows seen."""

    run_id: str
    attempt: int
    end_reason: EndReason | None
    worker: str
    resumed_from_rows: int


class LineageExport(Frozen):
    """A folder that a run was exported to."""

    folder: str
    merged: bool
    dtype: str
    flipped: int | None
    created_at: datetime


class LineageStep(Frozen):
    """A run between nothing and the run that was asked for."""

    run_id: str
    spec: RunSpec
    begins: str = Field(description="what it began with, in words")
    plan: str | None = Field(None, description="of its promotion, JSON")
    rows_digest: str | None = Field(None, description="SHA-256 of the rows that it met, in their order")
    optimizer_steps: int
    value: float | None
    slices: tuple[SliceFigures, ...] = Field((), description="of a stage: what it knows of each slice up to its own")
    attempts: tuple[LineageAttempt, ...]
    code: Code | None = Field(None, description="of its last attempt")
    exports: tuple[LineageExport, ...] = ()


class Lineage(Frozen):
    """How a run came to be, the oldest step first, and commands that make it again."""

    study: str
    data_source: str
    data_fingerprint: str
    steps: tuple[LineageStep, ...]
    commands: tuple[str, ...]


class Finalist(Frozen):
    """A trial at the gate. `accuracy` is on the gate rows of the last look that it took part in, mean of its runs."""

    trial_number: int
    value: float = Field(description="the objective on validation")
    verdict: Literal["chosen", "dropped", "open"]
    why: str
    accuracy: float | None = None
    run_ids: tuple[str, ...] = Field((), description="its runs with fresh seeds")


class GateLook(Frozen):
    """One look at the gate split."""

    number: int
    rows: int
    questions: int
    level: float = Field(description="p-value from which on a finalist is dropped")
    p_values: dict[int, float] = Field(description="of each finalist behind the last one that would be chosen")


class GateReport(Frozen):
    """Which trials are to be promoted, and why. `waiting`: runs that are to be trained before the next look."""

    study: str
    top: int
    waiting: int
    looks: tuple[GateLook, ...]
    finalists: tuple[Finalist, ...]
