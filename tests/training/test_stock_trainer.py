"""What our trainer changes about TRL's: nothing, where TRL's can do the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from trl import SFTConfig, SFTTrainer

from mathverify_sweep.data import dataset, prompts
from mathverify_sweep.data.encode import answer_ids, encode
from mathverify_sweep.specs import ALL_LINEAR, RunSpec
from mathverify_sweep.training.batches import training_order
from mathverify_sweep.training.reference import ReferenceEngine
from tests.training.tiny_fixture import Place, Recorder, trained


def stock_run(spec: RunSpec, folder: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """SFTTrainer as it comes: 4 x 2 rows a step, labels where the loss is wanted, PEFT by its own argument."""
    tokenizer = AutoTokenizer.from_pretrained(spec.base_model.name)
    model = AutoModelForCausalLM.from_pretrained(spec.base_model.name, dtype=torch.float32)
    rows = dataset.load(spec.data).train[: spec.train_rows]
    encoded = encode(rows, prompts.TEMPLATES["plain"], tokenizer, spec.max_length).rows
    table: dict[str, list[Any]] = {"input_ids": [], "labels": []}
    for row in training_order(encoded, spec):
        verdict = answer_ids(tokenizer)[row.is_correct]
        prompt_labels = row.prompt_ids if spec.params.prompt_loss_weight == 1 else [-100] * len(row.prompt_ids)
        table["input_ids"].append([*row.prompt_ids, verdict])
        table["labels"].append([*prompt_labels, verdict])
    arguments = SFTConfig(
        output_dir=str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        train_sampling_strategy="sequential",
        learning_rate=spec.params.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=spec.params.warmup_steps,
        optim="adamw_torch",
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=spec.seed,
    )
    lora = LoraConfig(
        r=spec.params.lora_r, lora_alpha=8, use_rslora=True, target_modules=list(ALL_LINEAR), task_type="CAUSAL_LM"
    )
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict(table),
        processing_class=tokenizer,
        peft_config=lora,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.model.save_pretrained(folder, save_embedding_layers=False)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, load_file(folder / "adapter_model.safetensors")


@pytest.mark.filterwarnings("ignore:.(is_)?gradient_checkpointing. is deprecated:FutureWarning")  # TRL and PEFT say so
@pytest.mark.parametrize("weight", [0.0, 1.0], ids=["completion only", "all tokens"])
def test_a_run_is_what_stock_trl_does(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weight: float
) -> None:
    monkeypatch.setenv("CI", "1")  # stock TRL sends no telemetry then
    spec = place.spec(params={"prompt_loss_weight": weight}, train_rows=48, micro_batch_tokens=128)
    recorder = Recorder()
    trained(ReferenceEngine("cpu"), spec, tmp_path / "ours", recorder)
    losses, adapter = stock_run(spec, tmp_path / "stock")
    ours = load_file(tmp_path / "ours" / "adapter" / "adapter_model.safetensors")
    assert recorder.losses == pytest.approx(losses, abs=1e-5)
    assert max((ours[name] - adapter[name]).abs().max().item() for name in adapter) < 1e-5
