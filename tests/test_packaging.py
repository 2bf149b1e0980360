"""The package as its users get it: pins that fit, a wheel with all it needs, the quickstart in a clean environment."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
SHIPPED = (
    "mathverify_sweep/py.typed",
    "mathverify_sweep/_resources/storage/alembic.ini",
    "mathverify_sweep/_resources/storage/migrations/env.py",
    "mathverify_sweep/_resources/storage/schema.sql",
    "mathverify_sweep/_resources/sweeps/quickstart.yaml",
    "mathverify_sweep/_resources/sweeps/llama31_8b_qlora.yaml",
)


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project


def _requirements() -> list[Requirement]:
    project = _project()
    extras = project["optional-dependencies"].values()
    texts = [*project["dependencies"], *(text for extra in extras for text in extra)]
    return [found for found in map(Requirement, texts) if found.name != project["name"]]


def _pins() -> dict[str, str]:
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


# Pins


@pytest.mark.parametrize("requirement", _requirements(), ids=str)
def test_a_dependency_is_pinned_to_a_version_that_it_allows(requirement: Requirement) -> None:
    assert requirement.specifier.contains(_pins()[canonicalize_name(requirement.name)])


@pytest.mark.parametrize(("name", "version"), [("torch", "2.11.0"), ("transformers", "5.17.0")])
def test_the_versions_of_a_gpu_host_that_has_no_package_index_are_allowed(name: str, version: str) -> None:
    found = next(requirement for requirement in _requirements() if requirement.name == name)
    assert found.specifier.contains(version)


def test_torch_is_pinned_to_the_release_with_a_build_for_the_cpu() -> None:
    assert _pins()["torch"] == "2.13.0"


def test_the_control_side_needs_no_training_library() -> None:
    needed = {Requirement(text).name for text in _project()["dependencies"]}
    assert needed.isdisjoint({"torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate"})


# The wheel


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source distribution, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    # No isolation: hatchling is here already, at its pinned version.
    _run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)], folder)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    """The wheel."""
    (found,) = built.glob("*.whl")
    return found


@pytest.mark.slow
def test_a_wheel_ships_migrations_sweep_files_and_the_tiny_model(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in SHIPPED if name not in names] == []
    assert any(re.match(r"mathverify_sweep/_resources/storage/migrations/versions/\w+\.py", name) for name in names)
    assert any(re.match(r"mathverify_sweep/.*/model\.safetensors", name) for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_a_wheel_ships_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    own = ("mathverify_sweep/", f"mathverify_sweep-{wheel.name.split('-')[1]}.dist-info/")
    assert [name for name in names if not name.startswith(own)] == []
    assert [name for name in names if "__pycache__" in name or name.endswith((".sqlite3", ".log"))] == []
    assert wheel.stat().st_size < 12_000_000


@pytest.mark.slow
def test_a_source_distribution_has_what_development_needs(built: Path) -> None:
    (found,) = built.glob("*.tar.gz")
    with tarfile.open(found) as archive:
        names = {name.split("/", maxsplit=1)[-1] for name in archive.getnames()}
    assert {"Makefile", "constraints.txt", "LICENSE", "tests/test_packaging.py", "storage/alembic.ini"} <= names
    assert found.stat().st_size < 30_000_000


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_quickstart_runs_from_an_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    """A clean virtual environment, an empty folder, nothing of this checkout."""
    environment, home = tmp_path / "venv", tmp_path / "home"
    home.mkdir()
    venv.create(environment, with_pip=True)
    binaries = environment / "bin"
    _run([f"{binaries}/python", "-m", "pip", "install", "-qq", "-c", str(CONSTRAINTS), f"{wheel}[worker]"], home)
    _run([f"{binaries}/python", "-m", "pip", "check"], home)
    where = _run([f"{binaries}/python", "-c", "import mathverify_sweep; print(mathverify_sweep.__file__)"], home)
    assert Path(where.strip()).is_relative_to(environment)

    shown = _run([f"{binaries}/mvsweep", "run", "quickstart", "--workers", "2", "--device", "cpu"], home)
    report = home / "runs" / "quickstart" / "report.html"
    assert report.is_file()
    assert "report.html" in shown
    status = json.loads(_run([f"{binaries}/mvsweep", "status", "quickstart", "-f", "json"], home))
    assert len(status["trials"]) >= 12
    assert {trial["state"] for trial in status["trials"]} == {"COMPLETE", "PRUNED"}
    assert "pruned" in {trial["end_reason"] for trial in status["trials"]}
    assert status["best_value"] >= 0.85
    (promotion,) = status["promotions"]
    assert [stage["state"] for stage in promotion["stages"]] == ["COMPLETE"] * 3
    assert len(list((home / "runs" / "quickstart").glob("*/wandb/offline-run-*"))) == len(status["trials"]) + 3
    url = f"sqlite:///{home / 'mvsweep.sqlite3'}"
    assert "quickstart" in _run([f"{binaries}/optuna", "studies", "--storage", url], home)


def _run(command: list[str], folder: Path) -> str:
    """What a command prints, run in `folder` without what this test session has set for Python."""
    ours = ("PYTHON", "VIRTUAL_ENV", "OPTUNA_STORAGE", "MVSWEEP_", "COV_", "PYTEST_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout
