"""A checkpoint of a model's shape with random weights: speed does not hang on what the weights are.

    python -m benchmarks.shapes llama_8b /tmp/llama_8b --data FILE

With a tokenizer of 16,000 entries made from the rows of FILE, or of generated ones, so that texts have about as many
tokens as under the real one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from mathverify_sweep.data import dataset, prompts
from mathverify_sweep.specs import DataSpec

SHAPES = {
    "llama_8b": LlamaConfig(
        vocab_size=128_256,
        hidden_size=4_096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8_192,
        tie_word_embeddings=False,
    ),
    "smollm2_135m": LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1_536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8_192,
        tie_word_embeddings=True,
    ),
    "small": LlamaConfig(
        vocab_size=16_000,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2_048,
        tie_word_embeddings=True,
    ),
}
"""Hidden, feed-forward and vocabulary sizes, layers and heads of the published models; `small` is for trying it out."""


def main() -> None:
    """Write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", default="generated", help="a file with the columns of a sweep, or `generated`")
    options = parser.parse_args()
    config = SHAPES[options.shape]
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 0, 1, 2
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(options.folder)
    _tokenizer(options.data, options.folder).save_pretrained(options.folder)


def _tokenizer(source: str, folder: Path) -> PreTrainedTokenizerFast:
    rows = dataset.load(DataSpec(source=source, generated_rows=4_000)).train[:4_000]
    texts = [prompts.render(text, row) + verdict for row in rows for text in _TEXTS for verdict in prompts.VERDICTS]
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=16_000, special_tokens=["<s>", "</s>", "<pad>"])
    bpe.save(str(folder / "tokenizer.json"))
    return PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


_TEXTS = tuple(prompts.TEMPLATES.values())

if __name__ == "__main__":
    main()
