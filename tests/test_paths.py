"""File names: hostile study names stay inside the output folder, and resources are found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mathverify_sweep import paths

HOSTILE = [
    "",
    ".",
    "..",
    "../../etc/passwd",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "C:\\x",
    "x\0y",
    "a\nb",
    "-rf",
    "~root",
    "$(reboot)",
    "'; DROP TABLE mv_runs; --",
    "con",
    "NUL.txt",
    "dot.",
    ".hidden",
    "ünïcode",
    "\ud800",
    "x" * 5000,
]


@pytest.mark.parametrize("name", ["quickstart", "llama31_8b_qlora", "v1.2-final", "A"])
def test_a_harmless_study_name_is_its_folder(name: str) -> None:
    assert paths.study_folder(Path("out"), name) == Path("out") / name


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_study_name_becomes_one_harmless_folder(name: str, tmp_path: Path) -> None:
    folder = paths.study_folder(tmp_path, name)
    folder.mkdir()
    assert folder.resolve().parent == tmp_path.resolve()
    assert folder.name[0] not in "-.~"
    assert len(folder.name) <= 60


def test_no_two_study_names_share_a_folder() -> None:
    assert len({paths.safe_name(name) for name in HOSTILE}) == len(HOSTILE)
    assert paths.safe_name("a b") != paths.safe_name("a-b") != paths.safe_name("a/b")


def test_a_runs_files_lie_in_a_folder_that_carries_its_token() -> None:
    folder = paths.run_folder(Path("out"), "s", "7f3a", "beef")
    assert folder == Path("out/s/7f3a-beef")
    assert paths.adapter_folder(folder) == folder / "adapter"
    assert paths.wandb_folder(folder) == folder / "wandb"
    assert paths.report_file(Path("out"), "s") == Path("out/s/report.html")


def test_the_migrations_are_found_in_a_checkout() -> None:
    assert (paths.migrations_folder() / "env.py").is_file()
    assert (paths.storage_folder() / "schema.sql").is_file()


def test_resources_are_found_in_an_installed_package(tmp_path: Path) -> None:
    package = tmp_path / "mathverify_sweep"
    for name in ("storage", "sweeps"):
        (package / "_resources" / name).mkdir(parents=True)
    for module in ("__init__.py", "paths.py"):
        (package / module).write_bytes((Path(paths.__file__).parent / module).read_bytes())
    code = "from mathverify_sweep import paths; print(paths.storage_folder(), paths.sweeps_folder())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={}, capture_output=True, text=True, check=True
    )
    resources = package.resolve() / "_resources"
    assert done.stdout.split() == [str(resources / "storage"), str(resources / "sweeps")]


def test_a_missing_resource_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "_PACKAGE", tmp_path / "mathverify_sweep")
    with pytest.raises(FileNotFoundError, match=r"`sweeps` ships with .* Install the package again"):
        paths.sweeps_folder()
