"""What code this process runs: its commit, its packages and their versions. For a result that is to be made again."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

from mathverify_sweep import __version__

_PACKAGE = "mathverify-sweep"
_GIT_SECONDS = 10.0


@cache
def described() -> str:
    """As JSON, the same text for the same code: version, commit, whether files differ from it, Python, all packages;
    and the threads of a CPU's matmuls, which decide the last bits of a sum.

    The commit is that of the checkout that the package lies in, or the one that pip installed it from; without either
    it is null.
    """
    commit, is_changed = _checkout()
    found = {
        "version": __version__,
        "commit": commit or _installed_from(),
        "changed": is_changed,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": threads(os.environ),
        "packages": {found.name: found.version for found in metadata.distributions() if found.name},
    }
    return json.dumps(found, sort_keys=True)


def threads(variables: Mapping[str, str]) -> int:
    """Of the matmuls on a CPU, in a process with these variables."""
    return int(variables.get("OMP_NUM_THREADS") or os.cpu_count() or 1)


def _checkout() -> tuple[str | None, bool]:
    folder = Path(__file__).resolve().parent
    if not (folder.parent / ".git").exists():
        return None, False
    commit = _git(folder, "rev-parse", "HEAD")
    return commit, bool(commit and _git(folder, "status", "--porcelain", "--untracked-files=no"))


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_GIT_SECONDS)
    except (OSError, subprocess.SubprocessError):  # no git, or a checkout of somebody else
        return None
    return done.stdout.strip()


def _installed_from() -> str | None:
    """What pip wrote down of an installation from a repository (PEP 610)."""
    try:
        told = json.loads(metadata.distribution(_PACKAGE).read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        return None
    commit = told.get("vcs_info", {}).get("commit_id")
    return str(commit) if commit else None
