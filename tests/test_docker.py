"""The images and the compose file, as far as they can be held without a Docker engine.

An image's files are copied to an empty folder as its `COPY` lines say, and its `pip install` lines are run there in a
new virtual environment.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import venv
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parent.parent
DOCKER = ROOT / "docker"
IMAGES = ("control", "worker")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The compose file."""
    loaded: dict[str, Any] = YAML(typ="safe", pure=True).load(DOCKER / "compose.yaml")
    return loaded


def _instructions(image: str) -> list[tuple[str, str]]:
    """The (instruction, rest) pairs of an image's Dockerfile, comments out and continued lines joined."""
    lines = (DOCKER / f"{image}.Dockerfile").read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#")).replace("\\\n", " ")
    pairs = [line.split(maxsplit=1) for line in text.splitlines() if line]
    return [(name, " ".join(rest.split())) for name, rest in pairs]


def _copies(image: str) -> list[tuple[list[str], str]]:
    """The (sources, target) of each COPY."""
    words = [shlex.split(rest) for name, rest in _instructions(image) if name == "COPY"]
    return [(sources, target) for *sources, target in words]


# The compose file


def test_the_services_are_a_database_a_dashboard_and_a_worker(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {"postgres", "dashboard", "worker"}
    for name in ("dashboard", "worker"):
        build = compose["services"][name]["build"]
        assert (DOCKER / build["context"] / build["dockerfile"]).is_file()


def test_nothing_starts_before_the_database_answers(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert "pg_isready" in services["postgres"]["healthcheck"]["test"][1]
    for name in ("dashboard", "worker"):
        assert services[name]["depends_on"] == {"postgres": {"condition": "service_healthy"}}


def test_the_dashboards_health_is_asked_where_it_listens(compose: dict[str, Any]) -> None:
    dashboard = compose["services"]["dashboard"]
    port = dashboard["command"][dashboard["command"].index("--port") + 1]
    assert f"127.0.0.1:{port}/" in dashboard["healthcheck"]["test"][-1]
    assert dashboard["ports"] == [f"127.0.0.1:{port}:{port}"]


def test_ports_are_open_to_this_machine_only(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert len(ports) == 2
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_passwords_and_keys_come_from_the_environment(compose: dict[str, Any]) -> None:
    required = re.compile(r"\$\{MVSWEEP_DB_PASSWORD:\?[^}]+\}")
    assert required.fullmatch(compose["services"]["postgres"]["environment"]["POSTGRES_PASSWORD"])
    for name in ("dashboard", "worker"):
        settings = compose["services"][name]["environment"]
        assert required.search(settings["OPTUNA_STORAGE"])
        assert [settings[key] for key in ("HF_TOKEN", "WANDB_API_KEY")] == ["${HF_TOKEN:-}", "${WANDB_API_KEY:-}"]


def test_studies_adapters_and_models_outlive_their_containers(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert services["postgres"]["volumes"] == ["database:/var/lib/postgresql/data"]
    for name in ("dashboard", "worker"):
        assert {"output:/output", "hub-cache:/cache/huggingface"} <= set(services[name]["volumes"])
    named = {volume.split(":")[0] for service in services.values() for volume in service["volumes"]}
    assert {name for name in named if not name.startswith(".")} == set(compose["volumes"])


def test_a_worker_gets_the_gpus_and_time_to_hand_its_run_back(compose: dict[str, Any]) -> None:
    worker = compose["services"]["worker"]
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert worker["stop_grace_period"] == "2m"


@pytest.mark.parametrize("service", ["dashboard", "worker"])
def test_a_service_calls_a_command_that_mvsweep_has(service: str, compose: dict[str, Any]) -> None:
    from typer.main import get_command

    from mathverify_sweep.cli import app

    name, *rest = compose["services"][service]["command"]
    command = get_command(app).commands[name]  # type: ignore[attr-defined]  # an app of several commands is a group
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in rest if word.startswith("--")} <= known


def test_the_worker_starts_on_a_sweep_file_that_is_mounted(compose: dict[str, Any]) -> None:
    worker = compose["services"]["worker"]
    default = re.search(r":-/sweeps/([^}]+)\}", worker["command"][1])
    assert default is not None
    assert (ROOT / "sweeps" / default[1]).is_file()
    assert "../sweeps:/sweeps:ro" in worker["volumes"]


# The images


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_runs_as_a_user_that_may_write_its_volumes(image: str) -> None:
    found = _instructions(image)
    assert ("USER", "mvsweep") in found
    made = next(rest for name, rest in found if "useradd" in rest)
    assert "install -d -o mvsweep /output /cache/huggingface" in made
    assert [rest for name, rest in found if name == "VOLUME"] == ['["/output", "/cache/huggingface"]']
    assert "HF_HOME=/cache/huggingface" in " ".join(rest for name, rest in found if name == "ENV")


@pytest.mark.parametrize("image", IMAGES)
def test_a_base_image_is_named_with_its_version(image: str) -> None:
    (base,) = [rest for name, rest in _instructions(image) if name == "FROM"]
    assert re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*", base)


@pytest.mark.parametrize("image", IMAGES)
def test_what_an_image_copies_is_there_and_sent_to_the_builder(image: str) -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    sent = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = {source for sources, _ in _copies(image) for source in sources}
    assert copied == sent
    assert [source for source in copied if not (ROOT / source).exists()] == []


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("image", "has_torch"), [("control", False), ("worker", True)])
def test_the_install_steps_of_an_image_run(image: str, has_torch: bool, tmp_path: Path) -> None:
    environment, app = tmp_path / "venv", tmp_path / "app"
    venv.create(environment, with_pip=True)
    for sources, target in _copies(image):
        for source in sources:
            _copy(ROOT / source, app / target)
    steps = [rest for name, rest in _instructions(image) if name == "RUN" and "pip install" in rest]
    assert len(steps) == 1
    for step in steps:
        _run(["bash", "-euo", "pipefail", "-c", step], app, environment)
    elsewhere = tmp_path / "output"
    elsewhere.mkdir()
    assert "leaderboard" in _run(["mvsweep", "--help"], elsewhere, environment)
    assert "learning_rate" in _run(["mvsweep", "check", "quickstart"], elsewhere, environment)
    code = "import importlib.util as u, sys; sys.exit(u.find_spec('torch') is " + (
        "None)" if has_torch else "not None)"
    )
    _run(["python", "-c", code], elsewhere, environment)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


def _run(command: list[str], folder: Path, environment: Path) -> str:
    """What a command prints, run in `folder` with the programs of a virtual environment first."""
    ours = ("PYTHON", "VIRTUAL_ENV", "OPTUNA_STORAGE", "MVSWEEP_")
    variables = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    variables["PATH"] = f"{environment / 'bin'}{os.pathsep}{variables['PATH']}"
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout
