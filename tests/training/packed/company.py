"""Runs side by side in one packed engine, and what a run leaves behind, to compare to the bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from mathverify_sweep.specs import RunResult, RunSpec
from mathverify_sweep.training.engine import PackedEngine
from mathverify_sweep.training.order import Order
from tests.training.tiny_fixture import Recorder


@dataclass(frozen=True)
class Numbers:
    """All that a run's arithmetic decides."""

    logs: list[tuple[int, float, float]]
    reports: list[tuple[int, float]]
    log_odds: tuple[float, ...]
    adapter: dict[str, torch.Tensor]

    @classmethod
    def of(cls, recorder: Recorder, result: RunResult, folder: Path) -> Numbers:
        return cls(recorder.logs, recorder.reports, result.log_odds, adapter_of(folder))

    def same_bits(self, other: Numbers) -> bool:
        told = (self.logs, self.reports, self.log_odds) == (other.logs, other.reports, other.log_odds)
        return told and largest_difference(self.adapter, other.adapter) == 0


def together(
    engine: PackedEngine, orders: Mapping[str, Order], recorders: Mapping[str, Recorder] | None = None
) -> dict[str, RunResult]:
    """All of them to their ends; those that find no slot at first take one as soon as there is one."""
    waiting = dict(orders)
    results: dict[str, RunResult] = {}
    while waiting or len(results) < len(orders):
        while waiting and engine.free_slots():
            run_id = next(iter(waiting))
            engine.start(run_id, waiting.pop(run_id), (recorders or {}).get(run_id) or Recorder())
        results.update(engine.step())
    return results


def numbers(
    engine: PackedEngine,
    spec: RunSpec,
    folder: Path,
    neighbours: Mapping[str, Order] | None = None,
    *,
    last: bool = False,
) -> Numbers:
    """Of a run in the first slot, or in the last, beside the neighbours."""
    recorder = Recorder()
    mine = {"mine": Order(spec, folder)}
    orders = {**(neighbours or {}), **mine} if last else {**mine, **(neighbours or {})}
    results = together(engine, orders, {"mine": recorder})
    return Numbers.of(recorder, results["mine"], folder)


def adapter_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def largest_difference(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)
