"""The README of an exported model: what it is, how it is asked with plain transformers, what it was made from.

Its Python is run by a test, from a folder that `export` has written.
"""

from __future__ import annotations

from collections.abc import Mapping

from mathverify_sweep.reports.models import Exported
from mathverify_sweep.specs import Metrics, Split
from mathverify_sweep.verifiers.verifier import Model

_ADAPTER = """\
quantized = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=verifier["bnb_4bit_use_double_quant"],
    bnb_4bit_compute_dtype=getattr(torch, verifier["dtype"]),
)
base = AutoModelForCausalLM.from_pretrained(
    verifier["base_model"],
    revision=verifier["revision"] or "main",
    dtype=getattr(torch, verifier["dtype"]),
    quantization_config={quantization},
)
model = PeftModel.from_pretrained(base, ".").eval()"""

_MERGED = 'model = AutoModelForCausalLM.from_pretrained(".", dtype=getattr(torch, verifier["dtype"])).eval()'

_QUANTIZATION = {"nf4": "quantized", "int8": "BitsAndBytesConfig(load_in_8bit=True)", "none": "None"}

_USE = '''\
```python
import json
from pathlib import Path

import torch
{imports}

verifier = json.loads(Path("verifier.json").read_text())
tokenizer = AutoTokenizer.from_pretrained(".")
{load}


def log_odds(question: str, answer: str, solution: str) -> float:
    """log P(True) - log P(False); the verdict is True from `verifier["threshold"]` on."""
    prompt = verifier["prompt_template"].format(question=question, answer=answer, solution=solution)
    ids = verifier["begin_ids"] + tokenizer(prompt, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        seen = model(torch.tensor([ids], device=model.device), output_hidden_states=True).hidden_states[-1][0, -1]
    head = model.get_output_embeddings().weight  # read in float32: logits in bfloat16 tie and flip near the threshold
    logits = head[[verifier["true_id"], verifier["false_id"]]].detach().float() @ seen.float()
    if cap := verifier["soft_cap"]:
        logits = cap * torch.tanh(logits / cap)
    return float(logits[0] - logits[1])
```'''


def text(model: Model, exported: Exported, figures: Mapping[Split, Metrics], lineage: str) -> str:
    """The card, as Markdown. `figures` are those of the exported run, `lineage` is how it came to be."""
    spec, run = model.spec, model.run
    what = "merged model" if exported.merged else "LoRA adapter"
    stage = f", stage {run.stage}" if run.stage else ""
    parts = [
        f"---\nlibrary_name: {'transformers' if exported.merged else 'peft'}\nbase_model: {spec.base_model.name}\n"
        "tags: [math, verification, lora]\n---\n",
        f"# {spec.study_name}: trial {spec.trial_number}{stage}\n",
        f"A {what} that decides whether a worked solution to a math problem is correct. Its answer is one token, "
        "` True` or ` False`.\n",
        f"## Use\n\n{_use(model, exported)}\n\nA prompt of `max_length` tokens or more was cut in the middle of its "
        "solution in training; this function does not cut.\n",
        f"## Figures\n\n{_figures(figures)}\n\nThe threshold, {model.metrics.threshold:.4f}, was fitted on "
        "validation. Intervals are 95 %, clustered by question.\n",
        _flips(exported),
        f"## Settings\n\n```json\n{spec.params.model_dump_json(indent=1)}\n```\n",
        f"## Lineage\n\n```\n{lineage}\n```\n",
    ]
    return "\n".join(part for part in parts if part)


def _use(model: Model, exported: Exported) -> str:
    names = ["AutoModelForCausalLM", "AutoTokenizer"]
    if exported.merged:
        return _USE.format(imports=f"from transformers import {', '.join(names)}", load=_MERGED)
    kind = model.spec.base_model.quantization
    load = _ADAPTER.format(quantization=_QUANTIZATION[kind])
    if kind == "nf4":
        names.append("BitsAndBytesConfig")
    else:
        load = load[load.index("base =") :]
        names += ["BitsAndBytesConfig"] if kind == "int8" else []
    imports = f"from peft import PeftModel\nfrom transformers import {', '.join(names)}"
    return _USE.format(imports=imports, load=load)


def _figures(figures: Mapping[Split, Metrics]) -> str:
    lines = ["| split | rows | accuracy | 95 % | at the threshold | log-loss | AUC |", "|---|---|---|---|---|---|---|"]
    for split, found in figures.items():
        interval = f"{found.accuracy_low:.4f} – {found.accuracy_high:.4f}"
        lines.append(
            f"| {split} | {found.rows:,} | {found.accuracy:.4f} | {interval} | {found.accuracy_at_threshold:.4f} | "
            f"{found.log_loss:.4f} | {found.auc:.4f} |"
        )
    return "\n".join(lines)


def _flips(exported: Exported) -> str:
    if not exported.merged:
        return ""
    return (
        f"## Merging\n\nThe adapter was merged into the dequantised weights of the base that it was trained on, and "
        f"stored in {exported.dtype}. Of {exported.rows:,} validation rows, {exported.flipped} got another verdict "
        f"than from the adapter; log-odds moved by {exported.largest_shift:.4f} at most, accuracy by "
        f"{exported.accuracy_change:+.4f}.\n"
    )
