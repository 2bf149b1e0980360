"""What crosses a process border: the input of a run, what it says while it trains, and its result.

All of it is frozen and goes to JSON and back (`model_dump_json`, `model_validate_json`). Knows no SQL, no Optuna, no
torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from mathverify_sweep import redaction
from mathverify_sweep.states import EndReason

Quantization = Literal["nf4", "int8", "none"]
Scheduler = Literal["linear", "cosine", "cosine_with_restarts", "constant_with_warmup", "warmup_stable_decay"]
Optimizer = Literal["adamw_torch", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit", "lion_8bit"]
Objective = Literal["validation_accuracy", "validation_log_loss", "validation_auc", "pass_at_1"]
Task = Literal["verification", "solving"]
Split = Literal["train", "validation", "test", "gate"]
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Frozen(BaseModel):
    """A value: immutable, no unknown fields, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class BaseModelSpec(Frozen):
    """The frozen model under the adapters."""

    name: str = Field(
        "builtin:tiny", description="hub name, local folder, or `builtin:tiny`, the model that ships with the package"
    )
    revision: str | None = Field(None, description="branch, tag or commit of a hub model")
    quantization: Quantization = Field("nf4", description="`nf4` (4 bit), `int8`, or `none`")
    bnb_4bit_use_double_quant: bool = Field(True, description="quantise the NF4 scales too")
    compute_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="dtype of the matmuls; `auto` is bfloat16 on a GPU and float32 on a CPU"
    )
    adapter_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="dtype of the adapter and its optimizer state; in bfloat16 small updates are lost"
    )
    lora_target_modules: tuple[str, ...] = Field(ALL_LINEAR, description="linear layers that get an adapter")
    trust_remote_code: bool = Field(
        False, description="run Python code that comes with the model; set `revision` to a commit that you have read"
    )


class ColumnsSpec(Frozen):
    """Which column of the data holds what."""

    question: str = Field("question", description="column of the question")
    answer: str = Field("answer", description="column of the final answer")
    solution: str = Field("solution", description="column of the worked solution")
    is_correct: str = Field("is_correct", description="column of the label: true/false, yes/no, 1/0")


class DataKeys(Frozen):
    """Rows, and how they are split, as a sweep file says it."""

    source: str = Field("generated", description="`generated`, a parquet/CSV/JSONL file, or a hub data set name")
    revision: str | None = Field(None, description="branch, tag or commit of a hub data set")
    generated_rows: int = Field(20_000, ge=100, description="rows to generate when the source is `generated`")
    columns: ColumnsSpec = Field(default_factory=ColumnsSpec, description="column names, where they differ from ours")
    split_column: str | None = Field(
        None, description="column that holds train/validation/test/gate; without it rows are split by question"
    )
    validation_share: float = Field(0.1, gt=0, lt=0.5, description="share of the questions for validation")
    test_share: float = Field(
        0.1, ge=0, lt=0.5, description="share of the questions for the test, read once at the end"
    )
    gate_share: float = Field(0.05, ge=0, lt=0.5, description="share of the questions for choosing among finalists")
    validation_rows: int | None = Field(None, ge=1, description="validation rows to keep; all when absent")
    balance: bool = Field(False, description="drop training rows of the larger class until both have the same number")
    seed: int = Field(0, ge=0, description="seed of the split and of the order in which training subsets nest")


class DataSpec(DataKeys):
    """Rows for a task. Machines that resolve one DataSpec to other rows have other fingerprints."""

    task: Task = "verification"


class TrainParams(Frozen):
    """The axes of a study: one value each, as one run uses them. Spellings from TRL, PEFT and transformers."""

    lora_r: int = Field(16, ge=1, le=1024, description="LoRA rank")
    lora_alpha: float | None = Field(None, gt=0, description="LoRA alpha; absent: `lora_alpha_ratio` times the rank")
    lora_alpha_ratio: float = Field(
        2.0, gt=0, description="alpha as a multiple of the rank, used when `lora_alpha` is absent"
    )
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapter's input")
    use_rslora: bool = Field(True, description="scale by alpha/sqrt(r) instead of alpha/r")
    learning_rate: float = Field(2e-4, gt=0, description="peak learning rate")
    lr_scheduler_type: Scheduler = Field("cosine", description="learning-rate schedule")
    lr_num_cycles: int = Field(2, ge=1, le=100, description="restarts of `cosine_with_restarts` (1 is plain cosine)")
    lr_decay_share: float = Field(
        0.2, gt=0, le=1, description="share of the steps that `warmup_stable_decay` decays over"
    )
    effective_batch_size: int = Field(
        32, ge=1, le=4096, description="rows per optimizer step, whatever the micro-batch"
    )
    max_steps: int = Field(
        0,
        ge=0,
        description="optimizer steps of a trial, which then sees so many effective batches of data.train_rows at most "
        "(0: all of them, once)",
    )
    warmup_steps: float = Field(
        0.05, ge=0, description="below 1 a share of all optimizer steps, from 1 on a number of steps"
    )
    weight_decay: float = Field(0.0, ge=0, le=1, description="decoupled weight decay (0 makes AdamW plain Adam)")
    max_grad_norm: float = Field(1.0, ge=0, description="gradient norm to clip at (0: no clipping)")
    optim: Optimizer = Field("adamw_torch", description="optimizer")
    prompt_template: str = Field(
        "plain", description="a built-in prompt template, or one from the sweep file's `prompts`"
    )
    prompt_loss_weight: float = Field(
        0.0, ge=0, le=1, description="loss weight of the prompt's tokens; the verdict's token weighs 1"
    )

    @property
    def alpha(self) -> float:
        """LoRA alpha as it is used, absolute."""
        return self.lora_alpha if self.lora_alpha is not None else self.lora_alpha_ratio * self.lora_r


class RunSpec(Frozen):
    """All that one run needs, fully resolved. A trial has `stage` None; a promotion stage has its number from 1 on."""

    study_name: str
    trial_number: int = Field(ge=0)
    stage: int | None = Field(None, ge=1)
    base_model: BaseModelSpec
    data: DataSpec
    data_fingerprint: str
    prompt_texts: dict[str, str] = Field(default_factory=dict, description="user templates by name")
    params: TrainParams
    train_rows: int = Field(ge=1, description="the first this many of the nested training order")
    skip_rows: int = Field(0, ge=0, description="of these, the first so many are left out")
    replay_rows: int = Field(0, ge=0, description="of those left out, so many are met again, drawn by the seed")
    epochs: float = Field(1.0, gt=0, description="how often each row is met, in another order every time")
    blocks: tuple[int, ...] = Field(
        (),
        description="rows of the nested order at which it is cut, ascending: rows are shuffled between two cuts only, "
        "so that a longer run begins as a shorter one with the same cuts",
    )
    max_length: int = Field(1024, ge=16, description="tokens of one row; longer solutions are cut in their middle")
    objective: Objective = "validation_accuracy"
    rungs: tuple[int, ...] = Field(
        (), description="rows seen at which the run reports, ascending, all below train_rows"
    )
    rung_rows: int | None = Field(
        None, ge=1, description="validation rows read at a rung; all when absent, as at the end"
    )
    start_from: tuple[str, ...] = Field(
        (), description="run ids of earlier stages: start from the best adapter among them, if any"
    )
    goes_on_from: str | None = Field(
        None,
        description="run id of a shorter run that begins as this one: go on from where it stopped, if that is left",
    )
    leaves_state: bool = Field(
        False, description="end with a whole effective batch, and leave a checkpoint for the runs that go on from it"
    )
    goes_back: bool = Field(
        False, description="start from the last of `start_from`, but from the best one if the last is known to be worse"
    )
    slices: tuple[int, ...] = Field(
        (), description="rows of the nested order at which slices end, ascending: the run's accuracy is read on each"
    )
    slice_rows: int = Field(0, ge=0, description="training rows of a slice that it is read on")
    least_gain: float | None = Field(
        None, description="accuracy that the stage before must be able to have brought, or this one is not trained"
    )
    micro_batch_tokens: int | None = Field(
        None, ge=16, description="padded tokens in one forward pass; absent: chosen for the device"
    )
    gradient_checkpointing: bool = False
    max_new_tokens: int = Field(256, ge=1, description="solving: tokens of a solution that is generated, at most")
    seed: int = Field(0, ge=0, description="adapter initialisation, dropout and data order")

    @property
    def rows_to_meet(self) -> int:
        """Rows from the first step to the last, each as often as it is met; rows that do not fit are still in it."""
        return max(1, round(self.epochs * (self.train_rows - self.skip_rows + self.replay_rows)))


class PlannedStage(Frozen):
    """A stage of a promotion and what it builds on: numbers of stages of the same plan, counted from 0.

    The numbers become the run ids of `spec.start_from` and `spec.goes_on_from` when the plan is recorded.
    """

    spec: RunSpec
    after: int | None = Field(None, description="the stage that must have ended well before this one starts")
    start_from: tuple[int, ...] = ()
    goes_on_from: int | None = None


def _storable(text: object) -> object:
    """Text of any origin as JSON and both databases take it, without secrets, and no longer than anybody reads."""
    if not isinstance(text, str):
        return text
    clean = redaction.mask(text).replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")
    if len(clean) <= MAX_MESSAGE:
        return clean
    half = MAX_MESSAGE // 2 - 50  # with the line between them it is short enough to be read again as it is
    return f"{clean[:half]}\n… {len(clean) - 2 * half:,} characters left out …\n{clean[-half:]}"


MAX_MESSAGE = 20_000
"""Characters of a result's message; of a longer one, its beginning and its end."""
Message = Annotated[str, BeforeValidator(_storable)]


class Metrics(Frozen):
    """Figures of one model on one split. The positive class is `True` (the solution is correct).

    Of rows to be solved all are correct: accuracy is pass@1, and the figures from `precision` on would say nothing.
    They keep their defaults then, and are left out wherever the figures go as JSON.
    """

    task: Task = "verification"
    rows: int
    accuracy: float
    accuracy_low: float = Field(description="lower end of the 95 % interval, clustered by question")
    accuracy_high: float
    precision: float = 0.0
    recall: float = 0.0
    f1: float = 0.0
    log_loss: float = 0.0
    auc: float = 0.0
    true_positives: int = 0
    false_positives: int = 0
    true_negatives: int = 0
    false_negatives: int = 0
    threshold: float = Field(0.0, description="on the log-odds, fitted on validation")
    accuracy_at_threshold: float = 0.0

    @property
    def has_classes(self) -> bool:
        """Whether there are verdicts; of a run that solves there are none."""
        return self.task == "verification"

    @model_serializer(mode="wrap")
    def _with_what_says_something(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        told: dict[str, Any] = dump(self)
        return told if self.has_classes else {name: figure for name, figure in told.items() if name not in OF_VERDICTS}


OF_VERDICTS = frozenset(name for name, field in Metrics.model_fields.items() if not field.is_required()) - {"task"}
"""Figures that only a run that judges has."""


class SliceFigures(Frozen):
    """Accuracy at log-odds 0 on training rows `first_row` to `end_row`, a sample of them, and on the rows of validation
    that stand for them; None where there are none.
    """

    first_row: int
    end_row: int
    met_rows: int
    met_accuracy: float | None
    held_back_rows: int
    held_back_accuracy: float | None


class RunResult(Frozen):
    """How a run ended. `metrics`, `log_odds` and `adapter` are there when it got to the end."""

    end_reason: EndReason
    message: Message = ""
    value: float | None = Field(None, description="the objective on the validation split")
    metrics: Metrics | None = None
    log_odds: tuple[float, ...] = Field(
        (), description="log P(True) - log P(False) per validation row, in the split's order"
    )
    slices: tuple[SliceFigures, ...] = Field((), description="of a stage: what it knows of each slice up to its own")
    rows_seen: int = 0
    resumed_from_rows: int = Field(0, description="rows seen at the checkpoint that this attempt went on from")
    optimizer_steps: int = 0
    micro_batch_tokens: int = Field(0, description="padded tokens in one forward pass, as used")
    left_out_rows: int = Field(0, description="training rows left out because they do not fit max_length even when cut")
    rows_digest: str | None = Field(
        None, description="SHA-256 of the training rows' tokens and labels, in the order in which they were met"
    )
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    peak_memory_bytes: int = 0
    started_from: str | None = Field(None, description="run id whose adapter this run started from")
    adapter: str | None = Field(None, description="folder of the trained adapter, relative to the output folder")
