"""Processes of one script that start at once: it says `ready`, waits for a line, and answers in JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def answers_of(processes: int, script: Path, *arguments: str) -> list[Any]:
    """What the scripts said, having started at once."""
    command = [sys.executable, str(script), *arguments]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started = [subprocess.Popen(command, text=True, **pipes) for _ in range(processes)]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    said = []
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in started:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "")
        said.append(json.loads(out))
    return said
