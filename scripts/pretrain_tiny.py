"""Makes the tiny base model of the quickstart, from nothing: `python scripts/pretrain_tiny.py`

Writes config, weights and tokenizer into the package. Reads scripts/pretraining_text.py, and no other data. A minute
on a recent GPU, hours on a CPU, where `--steps 20` shows that it works. Does not quantise, and fine-tunes nothing.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from pretraining_text import documents  # noqa: E402

from mathverify_sweep.data.synthetic import generate  # noqa: E402

HIDDEN, LAYERS, FEED_FORWARD, HEADS = 128, 5, 320, 4
"""Multiples of 64, because NF4 packs blocks of 64 weights. With four layers most fine-tunes learned nothing."""

LENGTH = 64
"""Tokens of a training line: one document, cut or padded."""

DOCUMENTS, PER_SEED = 300_000, 5_000
STEPS, BATCH, WARMUP = 5_000, 512, 200
LEARNING_RATE, WEIGHT_DECAY = 3e-3, 0.05
SEED, TEXT_SEED = 0, 0

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
PAD_ID, BOS_ID, EOS_ID = 0, 1, 2
NUMBERS = range(201)
PROMPT_WORDS = "Question: 1\nSolution: 1\nAnswer: 1\nVerdict: True False"


def main() -> None:
    options = parse_options()
    started = time.monotonic()
    tokenizer = build_tokenizer()
    lines = torch.from_numpy(read_documents(tokenizer))
    print(f"{len(lines):,} documents after {time.monotonic() - started:.0f} s", flush=True)
    model = new_model(tokenizer.get_vocab_size(), options.seed)
    pretrain(model, lines, options, started)
    model.save_pretrained(options.out)
    wrapped(tokenizer).save_pretrained(options.out)
    print(f"{model.num_parameters():,} parameters in {options.out}, after {time.monotonic() - started:.0f} s")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "mathverify_sweep" / "base_models" / "tiny")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=SEED, help="of the first weights and of the order of the documents")
    return parser.parse_args()


def build_tokenizer() -> Tokenizer:
    """A token for each word of the stories and each number up to 200, with the space before it; bytes for all else."""
    split = pre_tokenizers.Split(Regex(r"\n\p{L}+| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]|\s+"), "isolated")
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    splitter = pre_tokenizers.Sequence([split, in_bytes])
    texts = [
        *itertools.islice(documents(TEXT_SEED), 30_000),
        *(f" {row.question}" for row in generate(30_000, TEXT_SEED)),
    ]
    texts += [PROMPT_WORDS, *(f" {number}" for number in NUMBERS)]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word for text in texts for word, _ in splitter.pre_tokenize_str(text)} - set(alphabet)
    vocabulary = {token: index for index, token in enumerate([PAD, BOS, EOS, *alphabet, *sorted(words)])}

    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([PAD, BOS, EOS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, BOS_ID)]
    )
    return tokenizer


def wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def read_documents(tokenizer: Tokenizer) -> NDArray[np.int16]:
    """Shape (DOCUMENTS, LENGTH + 1), padded with PAD_ID. The same whatever the number of processes."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes below are the parallelism
    seeds = range(TEXT_SEED, TEXT_SEED + DOCUMENTS // PER_SEED)
    with multiprocessing.Pool(initializer=start_reader, initargs=(tokenizer.to_str(),)) as pool:
        return np.concatenate(pool.map(encoded_documents, seeds, chunksize=1))


reader: Tokenizer
"""The tokenizer of a reading process, which is given it once."""


def start_reader(tokenizer: str) -> None:
    global reader
    reader = Tokenizer.from_str(tokenizer)


def encoded_documents(seed: int) -> NDArray[np.int16]:
    lines = np.zeros((PER_SEED, LENGTH + 1), np.int16)
    texts = list(itertools.islice(documents(seed), PER_SEED))
    for line, encoding in zip(lines, reader.encode_batch(texts), strict=True):
        ids = [*encoding.ids, EOS_ID][: LENGTH + 1]
        line[: len(ids)] = ids
    return lines


def new_model(vocabulary: int, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=-(-vocabulary // 64) * 64,
            hidden_size=HIDDEN,
            num_hidden_layers=LAYERS,
            intermediate_size=FEED_FORWARD,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            pad_token_id=PAD_ID,
            bos_token_id=BOS_ID,
            eos_token_id=EOS_ID,
        )
    )


def pretrain(model: LlamaForCausalLM, lines: torch.Tensor, options: argparse.Namespace, started: float) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    model.to(device)  # type: ignore[arg-type]
    lines = lines.to(device)
    chance = torch.Generator(device).manual_seed(options.seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), LEARNING_RATE, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / WARMUP) * (1 - step / options.steps)
    )

    def loss_of(batch: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits = model(input_ids=batch[:, :-1]).logits
        return functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten(), ignore_index=PAD_ID)

    loss_of = torch.compile(loss_of) if device == "cuda" else loss_of
    for step in range(options.steps):
        chosen = torch.randint(len(lines), (BATCH,), device=device, generator=chance)
        loss = loss_of(lines[chosen].long())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 500 == 0 or step == options.steps - 1:
            print(f"step {step}: loss {loss.item():.3f}, after {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
