"""The packed engine against TRL and Unsloth: samples a second, memory and loss, on the same rows, base and device.

    python -m benchmarks.engine                                           the built-in model on a CPU
    python -m benchmarks.engine --device cuda:0 --base FOLDER --data FILE --rows 1024 --packed 1x32 16x8,16,32 \
        --ranks 16 32 64
    python -m benchmarks.shapes llama_8b /tmp/llama_8b --data FILE        random weights of that shape
    python -m benchmarks.engine --device cuda:0 --base /tmp/llama_8b --data FILE --template steps --rows 192 \
        --packed 1x32 4x4 --unsloth FOLDER_OF_ITS_PACKAGES

TRL is the stock SFTTrainer with PEFT and completion-only loss, in the three ways in which people run it, and the best
of them in several processes at once, or the next best where memory is too short for that. Unsloth is its model under
that trainer, in the way it advertises and in the fastest one; its packages are its own, since it asks for older ones.
Every measurement is a process of its own, and what chooses and records kernels does not count: the packed engine's runs
are trained twice and timed the second time, the others' first step is left out. The rivals train one run of effective
batch 32 and the first rank. Prints a table; `--json FILE` writes all of it with versions, device and commit. What fails
is a line of the table, too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from typing import Any

TRL = {
    "TRL 2 x 16, checkpointing": (2, 16, True),
    "TRL 4 x 8, checkpointing": (4, 8, True),
    "TRL 8 x 4": (8, 4, False),
}
UNSLOTH = {
    "Unsloth 4 x 8, its checkpointing": (4, 8, True),
    "Unsloth 8 x 4": (8, 4, False),
}
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes")


def main() -> None:
    """Measure all, print the table, write the file."""
    options = _options()
    if options.measure:
        print(json.dumps(_measure(options)))
        return
    print(f"{'':44}{'samples/s':>10}{'judged/s':>10}{'memory, GB':>12}{'last loss':>11}{'took, s':>9}", flush=True)
    results = [_in_processes(f"packed {runs}") for runs in options.packed]
    results += [_in_processes(name) for name in UNSLOTH if options.unsloth and name in options.rivals]
    trl = [_in_processes(name) for name in TRL if name in options.rivals]
    results += trl
    by_rate = sorted(trl, key=_rate_of, reverse=True)
    for rival in by_rate if options.concurrent > 1 else ():
        results.append(_in_processes(rival["name"], processes=options.concurrent))
        if "error" not in results[-1]:
            break
    for name, rivals in {"TRL": TRL, "Unsloth": UNSLOTH}.items():
        best = max((_rate_of(result) for result in results if result["name"] in rivals), default=0.0)
        if best:
            ratios = [f"{result['name']}: {_rate_of(result) / best:.2f}" for result in results]
            print(f"\nTimes the best configuration of {name}: " + ", ".join(ratios))
    if options.json:
        options.json.write_text(
            json.dumps({**_circumstances(options), "results": results}, indent=1, default=str), encoding="utf-8"
        )


def _rate_of(result: dict[str, Any]) -> float:
    return float(result.get("samples_per_second", 0.0))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="builtin:tiny", help="hub name or folder of the base model")
    parser.add_argument("--quantization", default="nf4", choices=("nf4", "none"))
    parser.add_argument("--device", default="cpu", help="cpu or cuda:0")
    parser.add_argument("--data", default="generated", help="a file with the columns of a sweep, or `generated`")
    parser.add_argument("--rows", type=int, default=320, help="training rows of each run")
    parser.add_argument("--template", default="plain", help="prompt template")
    parser.add_argument("--ranks", type=int, nargs="+", default=[32], help="of the runs, in turn")
    parser.add_argument("--unsloth", type=Path, help="folder of Unsloth's packages, to measure it too")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument(
        "--packed", nargs="+", default=["1x32", "4x8"], help="runs at once and their effective batches, as in 8x16,32"
    )
    parser.add_argument("--rivals", nargs="+", default=[*UNSLOTH, *TRL], metavar="NAME", help="all unless named")
    parser.add_argument("--concurrent", type=int, default=2, help="processes of the best TRL configuration at once")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    return parser.parse_args()


def _in_processes(name: str, processes: int = 1) -> dict[str, Any]:
    """One measurement, printed; of several processes at once their rates and memory add up. Or an `error`."""
    command = [sys.executable, "-m", "benchmarks.engine", *sys.argv[1:], "--measure", name]
    environment = dict(os.environ)
    if name in UNSLOTH:
        environment["PYTHONPATH"] = f"{_options().unsloth}:{environment.get('PYTHONPATH', '')}"
    began = time.monotonic()
    made = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    started = [subprocess.Popen(command, **made) for _ in range(processes)]
    with ThreadPoolExecutor(processes) as readers:
        told = list(readers.map(subprocess.Popen.communicate, started))
    shown = name if processes == 1 else f"{processes} processes of {name}"
    failed = [errors for process, (_, errors) in zip(started, told, strict=True) if process.returncode]
    if failed:
        last = failed[0].strip().splitlines()[-1:] or ["no message"]
        print(failed[0][-2_000:], file=sys.stderr)
        print(f"{shown:44}  {len(failed)} of {processes} failed", flush=True)
        return {"name": shown, "error": last[0]}
    results = [json.loads(lines.strip().splitlines()[-1]) for lines, _ in told]
    rate, memory, samples, loss = (
        sum(result[key] for result in results)
        for key in ("samples_per_second", "peak_memory_bytes", "samples", "last_loss")
    )
    judged = results[0].get("judged_per_second") or ""
    seconds = time.monotonic() - began
    print(f"{shown:44}{rate:10.1f}{judged:>10}{memory / 1e9:12.1f}{loss / processes:11.4f}{seconds:9.0f}", flush=True)
    return {
        "name": shown,
        "samples_per_second": rate,
        "peak_memory_bytes": memory,
        "last_loss": loss / processes,
        "samples": samples,
        "judged_per_second": judged or None,
    }


def _circumstances(options: argparse.Namespace) -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    device = platform.processor() or platform.machine()
    if options.device != "cpu":
        import torch

        device = torch.cuda.get_device_name()
    asked = {key: value for key, value in vars(options).items() if key not in ("json", "measure")}
    versions = {name: version(name) for name in PACKAGES}
    when = datetime.now(UTC).isoformat(timespec="seconds")
    return {"commit": commit, "date": when, "device": device, "versions": versions, "options": asked}


# One measurement, in a process of its own


class Clock:
    """When optimizer steps were taken, how many rows each had, and the losses that were told. A reporter, too."""

    def __init__(self, steps: list[tuple[float, int]], rows: int) -> None:
        self._steps, self._rows = steps, rows
        self.losses: list[float] = []

    def step(self) -> None:
        self._steps.append((time.perf_counter(), self._rows))

    def report(self, rows_seen: int, value: float) -> Any:  # noqa: ARG002
        raise AssertionError("there are no rungs")

    def log(self, rows_seen: int, loss: float, learning_rate: float) -> None:  # noqa: ARG002
        self.losses.append(loss)

    def interrupted(self) -> None:
        self.step()


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    name: str = options.measure
    if name == "texts":
        return {"texts": _texts(options)}
    if name in UNSLOTH:
        return _unsloth(options, *UNSLOTH[name])
    from mathverify_sweep.training import device

    steps: list[tuple[float, int]] = []
    judged = None
    if name in TRL:
        losses = _trl(options, *TRL[name], steps)
    else:
        losses, judged = _packed(options, name.removeprefix("packed "), steps)
    return {
        **_rate(steps, len(losses)),
        "last_loss": sum(losses) / len(losses),
        "peak_memory_bytes": device.peak_memory(device.find(options.device)),
        "judged_per_second": judged,
    }


def _rate(steps: list[tuple[float, int]], runs: int) -> dict[str, Any]:
    """Of steps with their times and rows. The first of each run is where the clock starts."""
    seconds, samples = steps[-1][0] - steps[runs - 1][0], sum(rows for _, rows in steps[runs:])
    return {"samples_per_second": samples / seconds, "samples": samples}


def spec_of(options: argparse.Namespace, seed: int, effective_batch: int = 32, validation_rows: int = 10) -> Any:
    """A run of these options; `seed` also says which rank is its."""
    from mathverify_sweep.data import dataset
    from mathverify_sweep.specs import BaseModelSpec, DataSpec, RunSpec, TrainParams

    data = DataSpec(source=options.data, generated_rows=max(12_000, 2 * options.rows), validation_rows=validation_rows)
    params = TrainParams(
        lora_r=options.ranks[seed % len(options.ranks)],
        effective_batch_size=effective_batch,
        prompt_template=options.template,
    )
    return RunSpec(
        study_name="benchmark",
        trial_number=seed,
        base_model=BaseModelSpec(name=options.base, quantization=options.quantization),
        data=data,
        data_fingerprint=dataset.load(data).fingerprint,
        params=params,
        train_rows=options.rows,
        max_length=options.max_length,
        seed=seed,
    )


def _packed(options: argparse.Namespace, asked: str, steps: list[tuple[float, int]]) -> tuple[list[float], float]:
    """The last losses of runs side by side, and how many rows a second are judged. `asked` is as in 8x16,32."""
    from mathverify_sweep.paths import adapter_folder
    from mathverify_sweep.training.engine import PackedEngine

    runs, _, batches = asked.partition("x")
    engine = PackedEngine(options.device, int(runs))
    in_turn = cycle(map(int, batches.split(",")))
    specs = [spec_of(options, seed, batch) for seed, batch in zip(range(int(runs)), in_turn, strict=False)]
    with tempfile.TemporaryDirectory() as folder:
        adapter = adapter_folder(Path(folder) / "0")
        together(engine, specs, [], Path(folder))  # shapes of passes are recorded when they are met
        judge = spec_of(options, 0, validation_rows=1_000)
        engine.score(judge, adapter, "validation")
        began = time.perf_counter()
        judged = len(engine.score(judge, adapter, "validation"))
        rate = judged / (time.perf_counter() - began)
    with tempfile.TemporaryDirectory() as folder:
        return together(engine, specs, steps, Path(folder)), round(rate, 1)


def together(engine: Any, specs: list[Any], steps: list[tuple[float, int]], folder: Path) -> list[float]:
    """All of these runs in the engine, to their ends, each in a folder of its number; their last losses."""
    from mathverify_sweep.training.order import Order

    clocks = [Clock(steps, spec.params.effective_batch_size) for spec in specs]
    for number, (spec, clock) in enumerate(zip(specs, clocks, strict=True)):
        engine.start(str(number), Order(spec, folder / str(number)), clock)
    ended: list[Any] = []
    while len(ended) < len(specs):
        ended += engine.step()
    failed = [result.message for _, result in ended if result.end_reason != "finished"]
    if failed:
        raise SystemExit(failed[0])
    return [clock.losses[-1] for clock in clocks]


def _texts(options: argparse.Namespace) -> list[str]:
    """The rows of the first run in its order, prompt and verdict, for a process with packages of its own."""
    from mathverify_sweep.training import device
    from mathverify_sweep.training.material import Library

    material = Library(device.find(options.device)).material(spec_of(options, 0))
    decode = material.base.tokenizer.decode
    return [decode([*row.prompt_ids, material.base.answers[row.is_correct]]) for row in material.train.rows]


def _unsloth(options: argparse.Namespace, batch: int, accumulated: int, checkpointing: bool) -> dict[str, Any]:
    """As its users run it: its model under the trainer of the TRL that it asks for, loss on the whole text."""
    command = [sys.executable, "-m", "benchmarks.engine", *sys.argv[1:-1], "texts"]
    own = {**os.environ, "PYTHONPATH": os.environ["PYTHONPATH"].partition(":")[2]}
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=own).stdout
    texts = json.loads(told.strip().splitlines()[-1])["texts"]
    os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"
    from unsloth import FastLanguageModel  # noqa: I001 - it changes those that follow
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = FastLanguageModel.from_pretrained(
        options.base, max_seq_length=options.max_length, dtype=torch.bfloat16, load_in_4bit=True
    )
    rank = options.ranks[0]
    model = FastLanguageModel.get_peft_model(
        model,
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        bias="none",
        use_rslora=True,
        use_gradient_checkpointing="unsloth" if checkpointing else False,
    )
    steps: list[tuple[float, int]] = []

    class Steps(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            torch.cuda.synchronize()
            steps.append((time.perf_counter(), batch * accumulated))

    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulated,
            bf16=True,
            learning_rate=2e-4,
            lr_scheduler_type="cosine",
            max_length=options.max_length,
            dataset_text_field="text",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = SFTTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_dict({"text": texts}),
            processing_class=tokenizer,
            callbacks=[Steps()],
        )
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {**_rate(steps, 1), "last_loss": losses[-1], "peak_memory_bytes": torch.cuda.max_memory_allocated()}


def _trl(
    options: argparse.Namespace, batch: int, accumulated: int, checkpointing: bool, steps: list[tuple[float, int]]
) -> list[float]:
    """The last loss of the stock trainer."""
    os.environ["CI"] = "1"  # stock TRL sends no telemetry then
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PrinterCallback, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from mathverify_sweep.training import device
    from mathverify_sweep.training.material import Library

    spec = spec_of(options, 0)
    material = Library(device.find(options.device)).material(spec)
    base = material.base
    table: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for row in material.train.rows:
        verdict = base.answers[row.is_correct]
        table["input_ids"].append([*row.prompt_ids, verdict])
        table["labels"].append([-100] * len(row.prompt_ids) + [verdict])
    clock = Clock(steps, batch * accumulated)

    class Steps(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.step()

    on_cpu = options.device == "cpu"
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder,
            num_train_epochs=1,
            train_sampling_strategy="sequential",  # the same rows in the same order
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulated,
            learning_rate=spec.params.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=spec.params.warmup_steps,
            bf16=not on_cpu,
            use_cpu=on_cpu,
            dataloader_pin_memory=not on_cpu,
            gradient_checkpointing=checkpointing,
            max_length=None,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        lora = LoraConfig(
            r=spec.params.lora_r,
            lora_alpha=int(spec.params.alpha),
            use_rslora=True,
            target_modules=list(spec.base_model.lora_target_modules),
            task_type="CAUSAL_LM",
        )
        trainer = SFTTrainer(
            model=base.model,
            args=arguments,
            train_dataset=Dataset.from_dict(table),
            processing_class=base.tokenizer,
            peft_config=lora,
            callbacks=[Steps()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return [[entry["loss"] for entry in trainer.state.log_history if "loss" in entry][-1]]


if __name__ == "__main__":
    main()
