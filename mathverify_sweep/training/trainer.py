"""One epoch of TRL's SFTTrainer over rows in a given order, with our loss. Says what every optimizer step was like.

The loss of an effective batch is sum(weight * cross entropy) / sum(weight) over all of it: what is learnt, a verdict's
token or those of a solution, weighs 1, a prompt's tokens weigh `prompt_loss_weight`. The trainer meets one effective
batch at a time and `training_step` cuts it into micro-batches whose losses simply add up, so nothing depends on how it
is cut and nothing is divided twice. The last effective batch may be smaller; it is a step of its own.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from mathverify_sweep.data.encode import EncodedRow
from mathverify_sweep.paths import adapter_folder
from mathverify_sweep.specs import RunSpec, TrainParams
from mathverify_sweep.training import adapters, head
from mathverify_sweep.training.base import BaseModel
from mathverify_sweep.training.batches import micro_batches, total_weight
from mathverify_sweep.training.course import Step
from mathverify_sweep.training.evaluate import last_positions, padded

IGNORED = -100


@dataclass(frozen=True)
class Epoch:
    """Rows in the order in which they are met, padded tokens in one micro-batch, and the run's folder.

    `resumed`: a folder that an earlier trainer of these rows was saved to, whose adapter is on the model by now.
    """

    rows: Sequence[EncodedRow]
    micro_batch_tokens: int
    folder: Path
    resumed: Path | None = None


AfterStep = Callable[[Step, Callable[[Path], None]], None]
"""Gets the step, and what saves the trainer as it is after it into a folder."""


def train(base: BaseModel, model: PeftModel, spec: RunSpec, epoch: Epoch, after_step: AfterStep) -> None:
    """Trains the adapter on the model. `after_step` may raise to stop."""
    arguments = _arguments(base, spec, epoch)
    with adapters.kept_in_their_dtype(model):
        trainer = VerdictTrainer(
            base=base,
            reads_all=spec.params.prompt_loss_weight > 0 or any(row.learnt > 1 for row in epoch.rows),
            model=model,
            args=arguments,
            processing_class=base.tokenizer,
            # The trainer handles the rows' numbers only: a table of token ids would have to be written and read back.
            train_dataset=Dataset.from_dict({"row": range(len(epoch.rows))}),
            data_collator=_Collator(base, spec, epoch),
        )
    trainer.add_callback(
        _Steps(spec.params.effective_batch_size, len(epoch.rows), lambda step: after_step(step, trainer.save_to))
    )
    trainer.remove_callback(PrinterCallback)
    with warnings.catch_warnings():
        # bitsandbytes, of the paged optimizers: without a GPU there is nothing to page from.
        warnings.filterwarnings("ignore", "Paged optimizers are not supported on CPU", UserWarning)
        trainer.train(resume_from_checkpoint=str(epoch.resumed) if epoch.resumed else None)


class VerdictTrainer(SFTTrainer):
    """SFTTrainer with the weighted loss and with micro-batches of its own."""

    loss_is_scaled_for_ga = True  # type: ignore[assignment]  # so the trainer divides by no number of micro-batches

    def __init__(self, *, base: BaseModel, reads_all: bool, **rest: Any) -> None:
        self._base = base
        self._reads_all = reads_all
        super().__init__(**rest)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward for each micro-batch of one effective batch; returns the batch's loss."""
        loss = torch.zeros((), device=self._base.device)
        for micro_batch in inputs["micro_batches"]:
            loss += super().training_step(model, micro_batch, num_items_in_batch)  # type: ignore[no-untyped-call]
        return loss

    def compute_loss(self, model: nn.Module, inputs: Any, *_: Any, **__: Any) -> Tensor:
        """This micro-batch's part of the effective batch's loss: its weights already are shares of the whole."""
        read = self._all_log_probs if self._reads_all else self._verdict_log_probs
        with self._base.autocast():
            log_probs = read(model, inputs)
        weights: Tensor = inputs["weights"]
        return -(log_probs * weights).sum()

    def save_to(self, folder: Path) -> None:
        """The adapter, and what `train` reads when it resumes: optimizer, schedule, random numbers, rows seen."""
        assert isinstance(self.model, PeftModel)
        adapters.save(self.model, adapter_folder(folder))
        self._save_optimizer_and_scheduler(str(folder))
        self._save_rng_state(str(folder))
        self.state.save_to_json(str(folder / TRAINER_STATE_NAME))

    def _load_from_checkpoint(self, *_: Any, **__: Any) -> None:
        """The adapter is on the model already: PEFT's loader would change its dtype."""

    def _verdict_log_probs(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        with head.reading(model, inputs["positions"]):
            logits: Tensor = model(input_ids=inputs["input_ids"], use_cache=False).logits
        return logits.float().log_softmax(-1).gather(-1, inputs["targets"][:, None])[:, 0]

    def _all_log_probs(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """By TRL's fused head, which does not keep a logit for every position and word."""
        labels = torch.full_like(inputs["input_ids"], IGNORED)
        labels.view(-1)[inputs["positions"]] = inputs["targets"]
        outputs = model(input_ids=inputs["input_ids"], shift_labels=labels, fused_lm_head=True, use_cache=False)
        log_probs: Tensor = outputs.log_probs
        return log_probs.view(-1)[inputs["positions"]]

    def _send_telemetry(self) -> None:
        """TRL tells its authors about each trainer over the network; a sweep makes hundreds."""


class _Collator:
    """Numbers of rows (one effective batch) to tensors, cut into micro-batches."""

    def __init__(self, base: BaseModel, spec: RunSpec, epoch: Epoch) -> None:
        assert isinstance(base.tokenizer.pad_token_id, int)
        self._rows, self._token_budget = epoch.rows, epoch.micro_batch_tokens
        self._answers = base.answers
        self._pad_id = base.tokenizer.pad_token_id
        self._prompt_weight = spec.params.prompt_loss_weight

    def __call__(self, numbers: Sequence[dict[str, int]]) -> dict[str, list[dict[str, Tensor]]]:
        rows = [self._rows[number["row"]] for number in numbers]
        whole = total_weight(rows, self._prompt_weight)
        cut = micro_batches([len(row.prompt_ids) for row in rows], self._token_budget)
        return {"micro_batches": [self._tensors([rows[i] for i in batch], whole) for batch in cut]}

    def _tensors(self, rows: Sequence[EncodedRow], whole: float) -> dict[str, Tensor]:
        ids = padded(rows, self._pad_id)
        positions = last_positions(rows, ids.shape[1])
        targets = torch.tensor([row.last(self._answers) for row in rows])
        weights = torch.full((len(rows),), 1.0 / whole)
        within = [weighed for i, row in enumerate(rows) for weighed in self._within(row, i * ids.shape[1])]
        if within:
            before = torch.tensor([position for position, _ in within])
            positions = torch.cat([positions, before])
            targets = torch.cat([targets, ids.view(-1)[before + 1]])
            weights = torch.cat([weights, torch.tensor([weight / whole for _, weight in within])])
        return {"input_ids": ids, "positions": positions, "targets": targets, "weights": weights}

    def _within(self, row: EncodedRow, start: int) -> list[tuple[int, float]]:
        """Places of a row that begins at `start` behind which another of its tokens is asked for, each with what that
        weighs."""
        count = len(row.prompt_ids)
        learnt = count - row.learnt
        prompt = [(start + at, self._prompt_weight) for at in range(min(learnt, count - 1))]
        solution = [(start + at, 1.0) for at in range(learnt, count - 1)]
        return [*(prompt if self._prompt_weight > 0 else []), *solution]


class _Steps(TrainerCallback):
    """Hands every optimizer step on."""

    def __init__(self, batch_size: int, rows: int, after_step: Callable[[Step], None]) -> None:
        self._batch_size, self._rows, self._after_step = batch_size, rows, after_step

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:  # noqa: ARG002
        """The trainer logs each step (`logging_steps=1`), and once more, without a loss, when it is done."""
        logs = kwargs["logs"]
        state.log_history.clear()  # nobody reads it, and every checkpoint would hold all of it
        if "loss" in logs:
            rows_seen = min(state.global_step * self._batch_size, self._rows)
            self._after_step(Step(state.global_step, rows_seen, logs["loss"], logs["grad_norm"], logs["learning_rate"]))


def _arguments(base: BaseModel, spec: RunSpec, epoch: Epoch) -> SFTConfig:
    params = spec.params
    steps = math.ceil(len(epoch.rows) / params.effective_batch_size)
    # transformers 5.23 has a new name for it and warns about the old one, 5.17 has the old one only.
    renamed = "activation_checkpointing" in {field.name for field in fields(SFTConfig)}
    checkpointing: dict[str, Any] = {
        "activation_checkpointing" if renamed else "gradient_checkpointing": spec.gradient_checkpointing
    }
    return SFTConfig(
        output_dir=str(epoch.folder),  # nothing is written there, but the trainer wants one
        num_train_epochs=1,
        per_device_train_batch_size=params.effective_batch_size,
        train_sampling_strategy="sequential",
        seed=spec.seed,
        learning_rate=params.learning_rate,
        lr_scheduler_type=params.lr_scheduler_type,
        lr_scheduler_kwargs=_scheduler_arguments(params, steps),
        warmup_steps=params.warmup_steps,
        weight_decay=params.weight_decay,
        max_grad_norm=params.max_grad_norm,
        optim=params.optim,
        bf16=False,  # the base model's own autocast does it, in training and evaluation alike
        use_cpu=base.device.type == "cpu",
        dataloader_pin_memory=base.device.type == "cuda",
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **checkpointing,
    )


def _scheduler_arguments(params: TrainParams, steps: int) -> dict[str, Any]:
    if params.lr_scheduler_type == "cosine_with_restarts":
        return {"num_cycles": params.lr_num_cycles}
    if params.lr_scheduler_type == "warmup_stable_decay":
        warmup = params.warmup_steps if params.warmup_steps >= 1 else params.warmup_steps * steps
        return {"num_decay_steps": max(1, min(round(params.lr_decay_share * steps), steps - math.ceil(warmup)))}
    return {}
