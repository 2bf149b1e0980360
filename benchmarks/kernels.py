"""The packed engine's kernels beside PyTorch's on one GPU, in several tiles each.

    python -m benchmarks.kernels

Attention over rows of 100 to 700 tokens, and adapters of several runs on each kind of layer, of the shapes of
SmolLM2-135M and Llama-3.1-8B. A cell says how many milliseconds, how many times those of PyTorch, and the largest
difference to float32 relative to its largest number. Kernels are compiled by several processes first; what measures is
a process of its own, which is started again behind whatever ends it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

COMPILERS = 14
REPEATS = 10
AHEAD = 30_000_000
"""Cycles of a GPU, some 15 ms: so long it is kept waiting, that launches from Python do not count."""


def main() -> None:
    """Compile, measure, print."""
    if len(sys.argv) > 1:
        mode, first = sys.argv[1], int(sys.argv[2])
        _compile(first, int(sys.argv[3])) if mode == "compile" else _measure(first)
        return
    began = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.kernels"]
    count = min(COMPILERS, os.cpu_count() or 1)
    silent: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    children = [subprocess.Popen([*command, "compile", str(i), str(count)], **silent) for i in range(count)]
    for child in children:
        child.wait()
    print(f"kernels compiled: {time.perf_counter() - began:.0f} s", flush=True)
    results = _results(command)
    _show(results)
    print(f"\n{len(results)} measurements: {time.perf_counter() - began:.0f} s")


def _results(command: list[str]) -> list[dict[str, Any]]:
    """Of each measurement what it told, or the last words of the process that it ended."""
    results: list[dict[str, Any]] = []
    left = [("start", "", "")]
    while left:
        with (
            tempfile.TemporaryFile("w+") as errors,
            subprocess.Popen(
                [*command, "measure", str(len(results))], stdout=subprocess.PIPE, stderr=errors, text=True
            ) as child,
        ):
            assert child.stdout is not None
            done = 0
            for line in child.stdout:
                if not line.startswith("{"):  # libraries have things to say too
                    continue
                told = json.loads(line)
                if "left" in told:
                    left = told["left"]
                    print(told["device"], flush=True)
                else:
                    results.append(told)
                    done += 1
            child.wait()
            errors.seek(0)
            words = errors.read().strip().splitlines()
        if done == 0 and left:
            table, line, way = left[0]
            results.append({"table": table, "line": line, "way": way, "failed": words[-1] if words else "no word"})
            done = 1
        left = left[done:]
    return results


def _show(results: list[dict[str, Any]]) -> None:
    for table in dict.fromkeys(result["table"] for result in results):
        cells = {(result["line"], result["way"]): result for result in results if result["table"] == table}
        ways = list(dict.fromkeys(way for _, way in cells))
        print(f"\n{table:34}" + "".join(f"{way:>24}" for way in ways))
        for line in dict.fromkeys(line for line, _ in cells):
            first = cells.get((line, "PyTorch"), {}).get("ms")
            print(f"  {line:32}" + "".join(f"{_cell(cells.get((line, way)), first):>24}" for way in ways))
    for result in results:
        if "failed" in result:
            print(f"failed: {result['table']}, {result['line']}, {result['way']}: {result['failed']}")


def _cell(result: dict[str, Any] | None, first: float | None) -> str:
    if result is None:
        return ""
    if "failed" in result:
        return "failed"
    ratio = f"{result['ms'] / first:6.2f}" if first else ""
    return f"{result['ms']:.3f}{ratio}{result['error']:9.1e}"


def _compile(first: int, step: int) -> None:
    """Every so-maniest kernel, on little data."""
    from benchmarks.kernel_jobs import jobs

    for job in [job for job in jobs(small=True) if job.way != "PyTorch"][first::step]:
        try:
            job.prepare()[0]()
        except Exception as error:  # noqa: BLE001 - it is told where it is measured
            print(error, file=sys.stderr)


def _measure(first: int) -> None:
    """One line of JSON for each job from this one on. Ends at what leaves the GPU of no use to this process."""
    import torch

    from benchmarks.kernel_jobs import jobs

    left = jobs(small=False)[first:]
    device = f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    print(json.dumps({"left": [(job.table, job.line, job.way) for job in left], "device": device}), flush=True)
    for job in left:
        told: dict[str, Any] = {"table": job.table, "line": job.line, "way": job.way}
        try:
            timed, error = job.prepare()
            told["error"] = error(timed())
            told["ms"] = _milliseconds(timed)
        except Exception as problem:  # noqa: BLE001 - the others are measured all the same
            told["failed"] = (str(problem).strip().splitlines() or [type(problem).__name__])[-1][:150]
        print(json.dumps(told), flush=True)
        if "failed" in told:
            torch.cuda.synchronize()


def _milliseconds(timed: Callable[[], object]) -> float:
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    timed()
    torch.cuda.synchronize()
    torch.cuda._sleep(AHEAD)
    start.record()
    for _ in range(REPEATS):
        timed()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end) / REPEATS)


if __name__ == "__main__":
    main()
