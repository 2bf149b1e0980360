"""The manners of the house that a machine can hold: sizes, machine paths, what starts without torch, true documents."""

from __future__ import annotations

import ast
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from mathverify_sweep import sweep_file

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mathverify_sweep"
MODULES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = ("*.md", "docker/*.md", "storage/*.md", "sweeps/**/*.md", "docs/**/*.md")
GROUPS = ("data", "import")  # of commands
DOCUMENTS = sorted(path for pattern in FOLDERS for path in ROOT.glob(pattern))
TRAINING = ("torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate")
# Imported where they are used: who does not use them neither waits for them nor needs them.
LAZY = (*TRAINING, "wandb", "psycopg", "datasets")


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


# Sizes


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_a_file_has_at_most_400_lines_and_a_function_80(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    lines = source.count("\n")
    assert lines <= 400
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 80, f"{node.name} is too long"


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_a_file_opens_with_what_it_is_for(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert not source or ast.get_docstring(ast.parse(source))


# What belongs to one machine


def test_no_file_names_a_path_of_one_machine() -> None:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    pattern = re.compile(rb"(?<![A-Za-z0-9_.])/(work|root|farm)/")
    found = [
        name
        for name in listed.stdout.decode().split("\0")
        if (ROOT / name).is_file() and pattern.search((ROOT / name).read_bytes())
    ]
    assert found == []


# What starts without torch


def _module_names() -> Iterator[str]:
    for path in MODULES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[1] not in ("training", "__main__"):
            yield ".".join(parts).removesuffix(".__init__")


def test_nothing_outside_training_imports_a_heavy_library_at_its_top() -> None:
    """A CLI that prints a leaderboard must not wait ten seconds for torch, nor fail where W&B is not installed."""
    code = (
        "import importlib, sys\n"
        f"for name in {list(_module_names())}:\n"
        "    importlib.import_module(name)\n"
        f"    loaded = [heavy for heavy in {LAZY} if heavy in sys.modules]\n"
        "    assert not loaded, f'{name} imports {loaded}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    failed = done.returncode
    assert not failed, done.stderr


# True documents


@pytest.mark.parametrize("path", sorted((ROOT / "sweeps").rglob("*.yaml")), ids=_name)
def test_every_sweep_file_that_ships_is_valid(path: Path) -> None:
    config = sweep_file.load(path)
    assert config.study
    assert config.space.axes, "a sweep without an axis is no sweep"


def test_sweeps_readme_lists_every_key_with_its_default() -> None:
    readme = ROOT / "sweeps" / "README.md"
    updated = runpy.run_path(str(ROOT / "scripts" / "sweep_keys.py"))["updated"]
    text = readme.read_text(encoding="utf-8")
    assert updated(text) == text, "run `make docs`"


@pytest.mark.parametrize("path", DOCUMENTS, ids=_name)
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8"))
    local = [target for target in targets if not re.match(r"[a-z]+:", target)]
    assert [target for target in local if not (path.parent / target).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=_name)
def test_commands_in_documents_exist_with_their_options(path: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    for command in _commands(path.read_text(encoding="utf-8"), run_only=False):
        words = shlex.split(command, comments=True)
        if words[0] == "make":
            assert [word for word in words[1:] if "=" not in word and word not in targets] == [], command
        if words[0] == "mvsweep":
            options = [word.split("=")[0] for word in words[1:] if re.match(r"--?[a-z]", word)]
            help_text = _help(*_command_of(words[1:]))
            assert [option for option in options if not re.search(rf"(?<![\w-]){option}\b", help_text)] == [], command


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", DOCUMENTS, ids=_name)
def test_commands_that_documents_mark_as_run_do_run(path: Path, tmp_path: Path) -> None:
    """A fence that opens with ```sh run: each `$` line, in order, in a folder that has `sweeps/` and nothing else."""
    commands = list(_commands(path.read_text(encoding="utf-8"), run_only=True))
    if not commands:
        pytest.skip("marks nothing")
    shutil.copytree(ROOT / "sweeps", tmp_path / "sweeps")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command in commands:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"


def _commands(markdown: str, *, run_only: bool) -> Iterator[str]:
    """The lines after `$ ` in ```sh fences, or in ```sh run fences only. A line that ends in a backslash goes on."""
    for info, body in re.findall(r"^```sh\b([^\n]*)\n(.*?)^```", markdown, flags=re.MULTILINE | re.DOTALL):
        if run_only and info.strip() != "run":
            continue
        for line in body.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                yield line.removeprefix("$ ").strip()


def _command_of(words: list[str]) -> list[str]:
    """The command that words begin with: one word, or two where the first names a group."""
    named = [word for word in words if not word.startswith("-")]
    return named[: 2 if named and named[0] in GROUPS else 1]


@cache
def _help(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "mathverify_sweep", *command, "--help"],
        cwd=ROOT, env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"mvsweep {command}: {done.stderr}"
    return done.stdout


def test_commands_are_read_from_sh_fences_only() -> None:
    text = "```sh\n$ make test\noutput\n```\n```\n$ not this\n```\n```sh run\n$ mvsweep check \\\n  x.yaml\n```\n"
    assert [shlex.split(command) for command in _commands(text, run_only=False)] == [
        ["make", "test"],
        ["mvsweep", "check", "x.yaml"],
    ]
    assert len(list(_commands(text, run_only=True))) == 1


# Commands that hide nothing


@pytest.mark.parametrize("name", ["Makefile", ".ci/run"])
def test_a_failing_step_fails_the_command(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "pipefail" in text
    assert not re.search(r"^\t@?-", text, flags=re.MULTILINE), "make would ignore this recipe's failure"
    forgiven = [line for line in text.splitlines() if "|| true" in line and "grep" not in line]
    assert forgiven == []
