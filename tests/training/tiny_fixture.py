"""A random Llama of 100k parameters, sums to judge, and a reporter that remembers: what the training tests share.

Random, not the built-in model: these tests are about arithmetic, and their model is quicker.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mathverify_sweep.data import dataset, prompts
from mathverify_sweep.specs import BaseModelSpec, DataSpec, RunResult, RunSpec, TrainParams
from mathverify_sweep.states import EndReason, Verdict
from mathverify_sweep.training.order import Engine, Order


class Recorder:
    """Remembers what a run says. Prunes at the rung it is given, or interrupts after some steps."""

    def __init__(self, prune_at: int | None = None, interrupt: tuple[int, EndReason] | None = None) -> None:
        self.prune_at = prune_at
        self.interrupt = interrupt
        self.steps = 0
        self.reports: list[tuple[int, float]] = []
        self.logs: list[tuple[int, float, float]] = []

    def report(self, rows_seen: int, value: float) -> Verdict:
        self.reports.append((rows_seen, value))
        return Verdict.PRUNE if rows_seen == self.prune_at else Verdict.CONTINUE

    def log(self, rows_seen: int, loss: float, learning_rate: float) -> None:
        self.logs.append((rows_seen, loss, learning_rate))

    def interrupted(self) -> EndReason | None:
        self.steps += 1
        return self.interrupt[1] if self.interrupt and self.steps >= self.interrupt[0] else None

    @property
    def losses(self) -> list[float]:
        return [loss for _, loss, _ in self.logs]


def trained(
    engine: Engine, spec: RunSpec, folder: Path, recorder: Recorder, start_adapter: Path | None = None, **rest: Any
) -> RunResult:
    """One run, alone in the engine, to its end. `rest` is of the order."""
    engine.start("run", Order(spec, folder, start_adapter, **rest), recorder)
    ended = engine.step()
    while not ended:
        ended = engine.step()
    [(run_id, result)] = ended
    assert run_id == "run"
    sys.stdout.write(result.message)  # so that a failing test shows why a run ended
    return result


def crash(result: RunResult) -> str:
    """What a run that must have crashed says of it."""
    assert result.end_reason is EndReason.CRASHED
    return result.message


def write_tokenizer(folder: Path, texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE that knows the texts' words, a beginning-of-text token included."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=320, special_tokens=["<s>", "</s>", "<pad>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_model(folder: Path) -> None:
    """The weights, larger than at a usual start so that the logits of the rows differ."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.1,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def write_rows(path: Path, count: int = 300) -> None:
    """Sums of one to four terms, right or wrong by one. Rows of quite different lengths."""
    dice = random.Random(0)
    lines = []
    for _ in range(count):
        terms = [dice.randint(1, 99) for _ in range(dice.randint(1, 4))]
        right = dice.random() < 0.5
        answer = str(sum(terms) + (0 if right else dice.choice((-1, 1))))
        told = " + ".join(map(str, terms))
        row = {"question": f"What is {told}?", "answer": answer, "solution": f"{told} = {answer}.", "is_correct": right}
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


class Place:
    """A folder with the base model and the rows, and specs that use them."""

    def __init__(self, folder: Path) -> None:
        self.base = folder / "base"
        rows = folder / "rows.jsonl"
        write_rows(rows)
        self.data = DataSpec(source=str(rows), validation_share=0.2, test_share=0.1)
        loaded = dataset.load(self.data)
        self.fingerprint = loaded.fingerprint
        template = prompts.TEMPLATES["plain"]
        write_tokenizer(
            self.base, [prompts.render(template, row) + v for row in loaded.train for v in prompts.VERDICTS]
        )
        write_model(self.base)

    def spec(self, *, params: dict[str, Any] | None = None, quantization: str = "none", **changes: Any) -> RunSpec:
        """A run of 60 rows in steps of 8, with changes."""
        base_model = changes.pop("base_model", {})
        defaults: dict[str, Any] = {
            "study_name": "tests",
            "trial_number": 0,
            "base_model": BaseModelSpec(**{"name": str(self.base), "quantization": quantization, **base_model}),
            "data": self.data,
            "data_fingerprint": self.fingerprint,
            "params": TrainParams(**{"effective_batch_size": 8, "lora_r": 4, "learning_rate": 5e-4, **(params or {})}),
            "train_rows": 60,
            "max_length": 128,
        }
        return RunSpec(**{**defaults, **changes})
