"""Checks of this machine: Python and packages, memory, room on disks, clocks. Imports nothing heavy."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from mathverify_sweep import __version__
from mathverify_sweep.operations.findings import Finding, ok, problem, warning

PACKAGE = "mathverify-sweep"
_GIB = 2**30
_MEMINFO = Path("/proc/meminfo")
LITTLE_MEMORY, TOO_LITTLE_MEMORY = 4 * _GIB, 1 * _GIB
"""The tiny base model trains in less than 1 GiB; an 8-billion one passes through memory on its way to the GPU."""
LITTLE_DISK, TOO_LITTLE_DISK = 10 * _GIB, 1 * _GIB
SLOW_DISK_SECONDS = 0.5
"""For 4 kB to be safe on the disk; outbox and checkpoints wait for that."""
SAMPLE_SECONDS = 1.0
_SHOWN = ("optuna", "sqlalchemy", "psycopg", "wandb", "torch", "transformers", "trl", "peft", "bitsandbytes")


def python() -> Iterator[Finding]:
    """Python and every package against the lower bounds that mathverify-sweep was installed with."""
    try:
        about = metadata.metadata(PACKAGE)
    except metadata.PackageNotFoundError:
        found = f"{platform.python_version()}, {sys.executable}; {PACKAGE} {__version__} from a folder"
        yield warning("python", found, "pip install it: only then are versions checked")
        return
    needed, found = about["Requires-Python"], platform.python_version()
    if not SpecifierSet(needed).contains(found):
        yield problem("python", f"{found}, needs {needed}", "Install a newer Python and make the environment again")
    else:
        yield ok("python", f"{found}, {sys.executable}; {PACKAGE} {__version__}")
    requirements = [Requirement(text) for text in about.get_all("Requires-Dist") or ()]
    yield _packages("packages", [found for found in requirements if _is_needed(found, "")], needed=True)
    yield _packages("worker", [found for found in requirements if _is_needed(found, "worker")], needed=False)


def memory() -> Iterator[Finding]:
    """What can still be taken, the limit of a container included."""
    if not _MEMINFO.exists():
        yield ok("memory", "not looked at: this system has no /proc/meminfo")
        return
    available, total, why = _memory()
    found = f"{available / _GIB:.1f} of {total / _GIB:.1f} GiB available{why}"
    fix = "End other processes, or give the job more memory"
    if available < TOO_LITTLE_MEMORY:
        yield problem("memory", found, fix)
    elif available < LITTLE_MEMORY:
        yield warning("memory", found, fix)
    else:
        yield ok("memory", found)


def disk(about: str, folder: Path) -> Iterator[Finding]:
    """Whether the folder, or the one it will be made in, takes files, and how many more."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.is_dir())
    try:
        seconds = _seconds_to_write(there)
    except OSError as error:
        yield problem(about, f"{there} cannot be written: {error.strerror}", "Give a folder that you may write")
        return
    free = shutil.disk_usage(there).free
    found = f"{free / _GIB:.1f} GiB free at {there}, a write is safe after {1000 * seconds:.0f} ms"
    inodes = os.statvfs(there)
    if free < TOO_LITTLE_DISK or (inodes.f_files > 0 and inodes.f_favail < 1000):
        yield problem(about, f"{found}, {inodes.f_favail} more files", "Free some room: what cannot be written is lost")
    elif free < LITTLE_DISK:
        yield warning(about, found, "Free some room: adapters, checkpoints and the database grow")
    elif seconds > SLOW_DISK_SECONDS:
        yield warning(about, found, "Use a faster disk: each report waits until it is safe")
    else:
        yield ok(about, found)


def clock() -> Iterator[Finding]:
    """Whether the monotonic clock, by which leases expire, and the wall clock go equally fast."""
    wall, monotonic = time.time(), time.monotonic()
    time.sleep(SAMPLE_SECONDS)
    apart = (time.time() - wall) - (time.monotonic() - monotonic)
    found = f"wall and monotonic clock {1000 * abs(apart):.0f} ms apart after {SAMPLE_SECONDS:g} s"
    if abs(apart) > 0.1 * SAMPLE_SECONDS:
        yield warning("clock", found, "The time is being set: look at chrony or ntpd. Leases do not depend on it")
    else:
        yield ok("clock", found)


def _is_needed(requirement: Requirement, extra: str) -> bool:
    if requirement.marker is None:
        return extra == ""
    plain = {name: str(value) for name, value in default_environment().items()} | {"extra": ""}
    always = requirement.marker.evaluate(plain)
    return always if extra == "" else not always and requirement.marker.evaluate(plain | {"extra": extra})


def _packages(about: str, requirements: list[Requirement], *, needed: bool) -> Finding:
    installed = {found.name: _version(found.name) for found in requirements}
    missing = [name for name, version in installed.items() if version is None]
    old = [
        f"{found.name} {installed[found.name]} (needs {found.specifier})"
        for found in requirements
        if (version := installed[found.name]) is not None and not found.specifier.contains(version, prereleases=True)
    ]
    install = "pip install 'mathverify-sweep[worker]'"
    if not needed and len(missing) == len(installed):
        return warning(about, "no training packages: this machine can control studies, not train", install)
    if missing or old:
        return problem(about, ", ".join([*(f"{name} is missing" for name in missing), *old]), install)
    shown = ", ".join(f"{name} {installed[name]}" for name in installed if name in _SHOWN)
    return ok(about, f"none of {len(installed)} is too old: {shown}")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _memory() -> tuple[int, int, str]:
    """Bytes available, bytes in all, and where that number is from if not from the machine."""
    fields = {}
    for line in _MEMINFO.read_text(encoding="ascii").splitlines():
        name, _, rest = line.partition(":")
        fields[name] = int(rest.split()[0]) * 1024
    available, total = fields["MemAvailable"], fields["MemTotal"]
    limit, used = _number("/sys/fs/cgroup/memory.max"), _number("/sys/fs/cgroup/memory.current")
    if limit is not None and used is not None and limit - used < available:
        return max(0, limit - used), limit, " to this container"
    return available, total, ""


def _number(file: str) -> int | None:
    try:
        return int(Path(file).read_text(encoding="ascii"))
    except (OSError, ValueError):  # there is none, or it is `max`
        return None


def _seconds_to_write(folder: Path) -> float:
    started = time.monotonic()
    with tempfile.TemporaryFile(dir=folder, prefix="mvsweep-doctor-") as file:
        file.write(b"\0" * 4096)
        file.flush()
        os.fsync(file.fileno())
    return time.monotonic() - started
