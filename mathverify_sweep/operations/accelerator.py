"""Checks of GPUs, driver, torch and bitsandbytes, each in a process of its own.

A sick driver may hang whoever asks it, in a way that not even a kill ends: it is reported, and not waited for.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from mathverify_sweep.operations.findings import Finding, ok, problem, warning

DRIVER_SECONDS = 10.0
TORCH_SECONDS = 17.0
_FIELDS = ("index", "name", "driver_version", "memory.used", "memory.total", "temperature.gpu")
_HOT_CELSIUS = 88
_USED_SHARE = 0.1


def driver() -> Iterator[Finding]:
    """What nvidia-smi says of each GPU."""
    if shutil.which("nvidia-smi") is None:
        yield warning("gpu", "no nvidia-smi: workers on this machine train on the CPU", "Install NVIDIA's driver")
        return
    query = [f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        code, output = _asked(["nvidia-smi", *query], DRIVER_SECONDS)
    except subprocess.TimeoutExpired:
        fix = "The driver hangs: drain the machine and boot it again"
        yield problem("gpu", f"nvidia-smi did not answer within {DRIVER_SECONDS:g} s", fix)
        return
    lines = [line for line in output.splitlines() if line.strip()]
    if code != 0 or not lines:
        yield problem("gpu", f"nvidia-smi ended with code {code}: {' '.join(output.split())}", "Mend the driver")
        return
    for line in lines:
        yield _gpu(dict(zip(_FIELDS, (field.strip() for field in line.split(",")), strict=True)))


def training() -> Iterator[Finding]:
    """Whether torch starts, and bitsandbytes quantises to NF4 on each device that torch sees."""
    try:
        code, output = _asked([sys.executable, "-m", "mathverify_sweep.training.probe"], TORCH_SECONDS)
    except subprocess.TimeoutExpired:
        fix = "Look at the gpu line; without a GPU the machine may just be busy: try again"
        yield problem("torch", f"torch did not start within {TORCH_SECONDS:g} s", fix)
        return
    last = (output.strip().splitlines() or ["nothing"])[-1]
    if code != 0:
        if "ModuleNotFoundError" in last:
            yield warning("torch", f"{last}: this machine cannot train", "pip install 'mathverify-sweep[worker]'")
        else:
            yield problem("torch", f"it ended with code {code}: {last}", "Install torch for this machine's driver")
        return
    yield from _training(json.loads(last))


def _gpu(gpu: dict[str, str]) -> Finding:
    about = f"gpu {gpu['index']}"
    found = f"{gpu['name']}, driver {gpu['driver_version']}, {gpu['memory.used']} of {gpu['memory.total']} MiB used"
    try:
        used, hot = int(gpu["memory.used"]) / int(gpu["memory.total"]), int(gpu["temperature.gpu"]) >= _HOT_CELSIUS
    except ValueError:  # "[N/A]", "[GPU is lost]"
        return problem(about, f"{found}, {gpu['temperature.gpu']} °C", "The driver cannot read it: look at dmesg")
    if hot:
        return warning(about, f"{found}, {gpu['temperature.gpu']} °C", "It is hot and slows down: look at its cooling")
    if used > _USED_SHARE:
        return warning(about, found, "Somebody uses it: nvidia-smi names the process")
    return ok(about, found)


def _training(said: dict[str, Any]) -> Iterator[Finding]:
    built_for = f"CUDA {said['cuda']}" if said["cuda"] else "the CPU only"
    versions = f"torch {said['torch']} for {built_for}, bitsandbytes {said['bitsandbytes']}"
    if shutil.which("nvidia-smi") and len(said["devices"]) == 1:
        fix = "Install torch for this driver, or look at CUDA_VISIBLE_DEVICES"
        yield warning("torch", f"{versions}; it sees no GPU", fix)
    else:
        yield ok("torch", versions)
    for device in said["devices"]:
        about = f"nf4 {device['name']}"
        if device["trouble"]:
            yield problem(about, device["trouble"], "Install bitsandbytes for this torch and CUDA")
        else:
            yield ok(about, device["found"])


def _asked(command: Sequence[str], seconds: float) -> tuple[int, str]:
    """Exit code and all output. Raises TimeoutExpired, leaving behind what a kill does not end."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # a process within a hung driver does not even end so
            process.communicate(timeout=0.5)
        raise
    return process.returncode, output
