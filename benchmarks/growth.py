"""How the packed engine's speed and memory grow: with the runs at once, their rank, and the tokens of a pass.

    python -m benchmarks.growth                                           the built-in model on a CPU
    python -m benchmarks.growth --device cuda:0 --base FOLDER --data FILE --runs 1 2 4 8 16 32 --ranks 8 16 32 64 128 \\
        --budgets 2048 4096 8192 16384 32768

One process, one base model. Samples a second are those of the optimizer steps that all runs take side by side, when the
same runs have been trained once before; memory is the most that was allocated meanwhile, the base included. Budgets
are measured as a worker measures them, by one run whose made-up rows fill a pass. Prints three tables.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine import Clock, spec_of
from mathverify_sweep.training import device
from mathverify_sweep.training.engine import PackedEngine
from mathverify_sweep.training.material import Library
from mathverify_sweep.training.order import Order
from mathverify_sweep.training.packed import measure, plan
from mathverify_sweep.training.packed.model import PackedModel


def main() -> None:
    """Measure all, a table each."""
    options = _options()
    where = device.find(options.device)
    _runs_and_ranks(options, where)
    device.free_memory(where)
    _budgets(options, where)


def _runs_and_ranks(options: argparse.Namespace, where: torch.device) -> None:
    engine = PackedEngine(options.device, max(options.runs), options.token_budget)

    def rate(runs: int, rank: int) -> float:
        return _side_by_side(engine, [_spec(options, rank, number) for number in range(runs)])

    _table(f"runs of rank {options.rank}", options.runs, lambda runs: rate(runs, options.rank), where)
    _table(
        f"rank of {options.runs_of_ranks} runs", options.ranks, lambda rank: rate(options.runs_of_ranks, rank), where
    )


def _budgets(options: argparse.Namespace, where: torch.device) -> None:
    library, spec = Library(where), _spec(options, options.rank, 0)
    rows = library.material(spec).train.rows
    tokens_a_row = sum(len(row.prompt_ids) for row in rows) / len(rows)
    loaded = library.base(spec.base_model)
    planned = plan.make(loaded, spec)
    model = PackedModel(loaded, planned)
    budgets = [tokens for tokens in options.budgets if options.max_length <= tokens <= planned.most_tokens]
    _table("tokens of a pass", budgets, lambda n: measure.rates(model, spec, [n])[n] / tokens_a_row, where)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="builtin:tiny", help="hub name or folder of the base model")
    parser.add_argument("--quantization", default="nf4", choices=("nf4", "none"))
    parser.add_argument("--device", default="cpu", help="cpu or cuda:0")
    parser.add_argument("--data", default="generated", help="a file with the columns of a sweep, or `generated`")
    parser.add_argument("--template", default="plain", help="prompt template")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--effective-batch", type=int, default=16, help="of every run")
    parser.add_argument("--steps", type=int, default=10, help="optimizer steps of each run that are measured")
    parser.add_argument("--rank", type=int, default=32, help="where runs grow")
    parser.add_argument("--runs-of-ranks", type=int, default=2, help="at once, where ranks grow")
    parser.add_argument("--runs", type=int, nargs="+", default=[1, 2, 4], help="at once")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--budgets", type=int, nargs="+", default=[1_024, 2_048, 4_096], help="tokens")
    parser.add_argument("--token-budget", type=int, help="where runs and ranks grow; measured unless given")
    return parser.parse_args()


def _spec(options: argparse.Namespace, rank: int, number: int) -> Any:
    asked = argparse.Namespace(**{**vars(options), "ranks": [rank], "rows": options.effective_batch * options.steps})
    return spec_of(asked, number, options.effective_batch)


def _side_by_side(engine: PackedEngine, specs: Sequence[Any]) -> float:
    """Samples a second from the first step of the last run to the first end."""
    _until_an_end(engine, specs)  # shapes of passes are recorded when they are met
    steps = _until_an_end(engine, specs)
    began = steps[len(specs) - 1][0]
    return sum(rows for when, rows in steps if when > began) / (steps[-1][0] - began)


def _batch(spec: Any) -> int:
    batch: int = spec.params.effective_batch_size
    return batch


def _until_an_end(engine: PackedEngine, specs: Sequence[Any]) -> list[tuple[float, int]]:
    """When steps were taken until the first of these runs ended, and their rows. All are trained to their ends."""
    steps: list[tuple[float, int]] = []
    until: list[tuple[float, int]] = []
    ended: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, spec in enumerate(specs):
            engine.start(str(number), Order(spec, Path(folder) / str(number)), Clock(steps, _batch(spec)))
        while len(ended) < len(specs):
            before = list(steps)
            ended += engine.step()
            if ended and not until:
                until = before
    failed = [result.message for _, result in ended if result.end_reason != "finished"]
    if failed:
        raise SystemExit(failed[0])
    return until


def _table(what: str, values: Sequence[int], rate: Callable[[int], float], where: torch.device) -> None:
    print(f"\n| {what} | samples/s | peak GB |\n|---|---|---|", flush=True)
    for value in values:
        device.reset_peak_memory(where)
        try:
            measured = f"{rate(value):.1f}"
        except RuntimeError as error:
            if not device.is_out_of_memory(error):
                raise
            measured = "out of memory"
        print(f"| {value} | {measured} | {device.peak_memory(where) / 1e9:.1f} |", flush=True)


if __name__ == "__main__":
    main()
