"""A sweep file, typed: every key with its default, meaning and unit. `sweep_file.py` reads one.

A file states only what differs from the defaults below. Knows no SQL, no Optuna, no torch.
"""

from __future__ import annotations

from datetime import datetime
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from mathverify_sweep import search_space
from mathverify_sweep.search_space import SearchSpace
from mathverify_sweep.specs import (
    BaseModelSpec,
    DataKeys,
    DataSpec,
    Frozen,
    Objective,
    Quantization,
    RunSpec,
    Task,
    TrainParams,
)


def _stage_size(value: object) -> object:
    is_rows = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    is_share = isinstance(value, float) and 0 < value <= 1
    if value == "all" or is_rows or is_share:
        return value
    raise ValueError("a stage is a number of rows, a share above 0 and up to 1.0, or `all`")


GOING_BACK = ("sequential", "replay", "rounds")
"""Plans whose stages begin with the last adapter: `cumulative` begins with the best one anyway."""

StageSize = Annotated[int | float | str, BeforeValidator(_stage_size)]


class DataConfig(DataKeys):
    """`DataKeys`, and how many training rows a trial sees."""

    train_rows: int = Field(10_000, ge=1, description="training rows of a trial: the first ones of the nested order")


class TrainingConfig(Frozen):
    """What all runs of the study share."""

    max_length: int = Field(1024, ge=16, description="tokens of one row; longer solutions are cut in their middle")
    rung_rows: int | None = Field(1_000, ge=1, description="validation rows read at a rung; null for all")
    micro_batch_tokens: int | None = Field(
        None, ge=16, description="padded tokens in one forward pass; absent: chosen for the device"
    )
    gradient_checkpointing: bool = Field(False, description="save memory, pay half the speed")
    max_new_tokens: int = Field(
        256,
        ge=1,
        description="solving: tokens of a generated solution, at most; an unfinished one mostly fails",
    )
    seed: int = Field(0, ge=0, description="adapter initialisation, dropout and data order of every run")


class SamplerConfig(Frozen):
    """What proposes trials."""

    type: Literal["tpe", "random", "quasi_random", "grid"] = Field(
        "tpe",
        description="`tpe` (multivariate, grouped for conditional axes), `random`, `quasi_random` (Sobol) or `grid`",
    )
    seed: int = Field(0, ge=0, description="seed of the proposals")
    n_startup_trials: int = Field(10, ge=1, description="random trials before `tpe` models anything")


class PrunerConfig(Frozen):
    """What ends weak trials early. Steps are rows seen."""

    type: Literal["asha", "hyperband", "median", "none"] = Field(
        "asha", description="`asha` (successive halving), `hyperband`, `median`, or `none`"
    )
    min_rows: int | None = Field(
        None,
        ge=1,
        description="rows seen at the first rung; an eighth of data.train_rows when absent. `none`: report every so "
        "many rows, and prune nothing; no reports when absent",
    )
    reduction_factor: int = Field(
        2, ge=2, description="`asha`, `hyperband`: each rung is this many times the one before, and keeps this fraction"
    )
    n_startup_trials: int = Field(4, ge=0, description="`median`: complete trials before anything is pruned")


class BudgetConfig(Frozen):
    """When the study ends, counted over all workers."""

    trials: int | None = Field(None, ge=1, description="trials; absent: 31, or the whole grid")
    gpu_hours: float | None = Field(
        None, gt=0, description="no new trial once the runs have used this many device-hours"
    )
    deadline: datetime | None = Field(None, description="no new trial after this time (ISO 8601, with a zone)")


class RoundConfig(Frozen):
    """One stage of the plan `rounds`: its length, and what it changes of its trial."""

    rows: StageSize | None = Field(
        None, description="one epoch over the first rows: a number, a share up to 1.0, or `all`"
    )
    steps: int | None = Field(
        None, ge=1, description="instead of `rows`: optimizer steps over the next rows, behind those of earlier rounds"
    )
    effective_batch_size: int | None = Field(None, ge=1, le=4096, description="absent: the trial's")
    learning_rate: float | None = Field(None, gt=0, description="absent: the trial's")
    quantization: Quantization | None = Field(None, description="precision of the base model; absent: the study's")
    compute_dtype: Literal["auto", "float32", "bfloat16"] | None = Field(
        None, description="dtype of the matmuls; absent: the study's"
    )

    @model_validator(mode="after")
    def _has_one_length(self) -> RoundConfig:
        if (self.rows is None) == (self.steps is None):
            raise ValueError("a round has `rows` or `steps`, one of the two")
        return self


class PromotionConfig(Frozen):
    """How the best trials become long runs."""

    plan: Literal["cumulative", "sequential", "replay", "scratch", "trunk", "rounds"] = Field(
        "cumulative",
        description="`cumulative`: each stage trains over the first rows, more every stage, from the best adapter so "
        "far; `sequential`: over the rows that are new, from the last adapter; `replay`: over the new rows and some of "
        "the old; `scratch`: one run over the largest stage; `trunk`: one run at a constant learning rate, from which "
        "a short cooldown branches off at every stage; `rounds`: as listed in `rounds`",
    )
    stages: tuple[StageSize, ...] = Field(
        (20_000, 40_000, 60_000, "all"),
        min_length=1,
        description="training rows of each stage: a number, a share up to 1.0, or `all`",
    )
    rounds: tuple[RoundConfig, ...] = Field((), description="`rounds`: the stages, one by one")
    replay_share: float = Field(
        0.25, gt=0, le=1, description="`replay`: share of the old rows that a stage meets again"
    )
    cooldown_share: float = Field(
        0.15, gt=0, lt=1, description="`trunk`: share of a stage's rows over which its learning rate falls to 0"
    )
    passes: float | None = Field(
        None,
        gt=0,
        description="rows that all stages meet together, as a multiple of the largest stage: plans with the same "
        "number take the same number of steps; absent: every stage is one epoch",
    )
    seed: int | None = Field(None, ge=0, description="seed of the promoted runs; absent: training.seed")
    least_gain: float | None = Field(
        None,
        gt=-1,
        lt=1,
        description="stop when the 95 % interval of what a stage brought in accuracy lies below this (0.005 is half a "
        "point); absent: train all stages",
    )
    go_back: bool = Field(
        False,
        description="`sequential`, `replay`, `rounds`: take a stage back when the 95 % interval of what it brought "
        "lies below 0: the next one begins with the best adapter so far",
    )
    slice_rows: int = Field(
        200, ge=0, description="training rows of each slice that every stage is read on, to see what it has forgotten"
    )
    top: int = Field(1, ge=1, description="trials that `mvsweep run` promotes")

    @model_validator(mode="after")
    def _fits_its_plan(self) -> PromotionConfig:
        if (self.plan == "rounds") != bool(self.rounds):
            raise ValueError("the plan `rounds` and a list of rounds go together")
        if self.rounds and self.passes is not None:
            raise ValueError("rounds have their own lengths, so `passes` does not go with them")
        if self.go_back and self.plan not in GOING_BACK:
            raise ValueError(
                f"`go_back` is of the plans {', '.join(GOING_BACK)}: {self.plan} has no last stage to leave"
            )
        if self.go_back and self.least_gain is not None:
            raise ValueError("`least_gain` stops where `go_back` goes on from the best stage: one of the two")
        return self

    @property
    def key(self) -> str:
        """What of it decides the stages, as JSON: a trial is promoted once for each key."""
        used = {"plan", "rounds" if self.rounds else "stages"}
        used |= {"replay": {"replay_share"}, "trunk": {"cooldown_share"}}.get(self.plan, set())
        used |= {name for name in ("passes", "seed", "least_gain") if getattr(self, name) is not None}
        used |= {"go_back"} if self.go_back else set()
        return self.model_dump_json(include=used)


class GateConfig(Frozen):
    """How `mvsweep gate` chooses among trials that validation cannot tell apart."""

    finalists: int = Field(4, ge=2, description="trials that are trained again at most, the best on validation first")
    looks: int = Field(3, ge=1, description="looks at the gate split at most; each takes one more run of each finalist")
    alpha: float = Field(
        0.05, gt=0, lt=0.5, description="chance, over all looks, of dropping a finalist that is as good as the others"
    )


class TrackingConfig(Frozen):
    """Weights & Biases."""

    wandb: Literal["offline", "online", "disabled"] = Field(
        "offline", description="`offline` (sync later), `online`, or `disabled`"
    )
    project: str = Field("mathverify-sweep", min_length=1, description="W&B project")
    entity: str | None = Field(None, description="W&B team or user")


class SweepConfig(Frozen):
    """A sweep file."""

    study: str = Field(
        min_length=1, max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="name of the study"
    )
    task: Task = Field(
        "verification",
        description="`verification`: judge a worked solution, True or False; `solving`: write one that arrives at the "
        "answer",
    )
    objective: Objective = Field("validation_accuracy", description="what trials are ranked by")
    base_model: BaseModelSpec = Field(
        default_factory=lambda: BaseModelSpec(), description="the frozen model under the adapters"
    )
    data: DataConfig = Field(default_factory=lambda: DataConfig(), description="rows and splits")
    prompts: dict[str, str] = Field(
        default_factory=dict, description="your prompt templates: name to text, or to a file beside this one"
    )
    search_space: dict[str, Any] = Field(default_factory=dict, description="axes: fixed value, choices, or range")
    enqueue: tuple[dict[str, Any], ...] = Field((), description="settings to try first")
    training: TrainingConfig = Field(default_factory=lambda: TrainingConfig(), description="what all runs share")
    sampler: SamplerConfig = Field(default_factory=lambda: SamplerConfig(), description="what proposes trials")
    pruner: PrunerConfig = Field(default_factory=lambda: PrunerConfig(), description="what ends weak trials early")
    budget: BudgetConfig = Field(default_factory=lambda: BudgetConfig(), description="when the study ends")
    promotion: PromotionConfig = Field(
        default_factory=lambda: PromotionConfig(), description="how the best trials become long runs"
    )
    gate: GateConfig = Field(default_factory=lambda: GateConfig(), description="how finalists are told apart")
    tracking: TrackingConfig = Field(default_factory=lambda: TrackingConfig(), description="Weights & Biases")

    @cached_property
    def space(self) -> SearchSpace:
        """The parsed search space."""
        return search_space.parse(self.search_space)[0]

    @property
    def trials(self) -> int:
        """Trials of the study: as stated, or the whole grid, or 31."""
        grid = self.space.grid_size if self.sampler.type == "grid" else None
        return self.budget.trials or grid or 31

    @property
    def rungs(self) -> tuple[int, ...]:
        """Rows seen at which a trial reports, below data.train_rows: geometric, or even where nothing is halved."""
        rows, first = self.data.train_rows, self.first_rung
        if self.pruner.type == "none" and self.pruner.min_rows is None:
            return ()
        if self.pruner.type in ("median", "none"):
            return tuple(range(first, rows, first))
        found = []
        while first < rows:
            found.append(first)
            first *= self.pruner.reduction_factor
        return tuple(found)

    @property
    def first_rung(self) -> int:
        """Rows seen at the first rung."""
        return self.pruner.min_rows or max(1, self.data.train_rows // 8)

    @property
    def data_spec(self) -> DataSpec:
        """The data without the size of a trial."""
        return DataSpec(task=self.task, **self.data.model_dump(exclude={"train_rows"}))

    def trial_spec(self, trial_number: int, params: TrainParams, data_fingerprint: str) -> RunSpec:
        """The fully resolved input of a trial."""
        rows = min(self.data.train_rows, params.max_steps * params.effective_batch_size or self.data.train_rows)
        return RunSpec(
            study_name=self.study,
            trial_number=trial_number,
            base_model=self.base_model,
            data=self.data_spec,
            data_fingerprint=data_fingerprint,
            prompt_texts=self.prompts,
            params=params,
            train_rows=rows,
            objective=self.objective,
            rungs=tuple(rung for rung in self.rungs if rung < rows),
            **self.training.model_dump(),
        )
