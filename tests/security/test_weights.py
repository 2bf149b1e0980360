"""Claims about models, adapters and checkpoints from elsewhere: what they hold is data, and never runs."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import mathverify_sweep
from mathverify_sweep.data import read
from mathverify_sweep.errors import DataError, ModelError
from mathverify_sweep.specs import BaseModelSpec, RunSpec
from mathverify_sweep.training import adapters, base

CPU = torch.device("cpu")
PACKAGE = Path(mathverify_sweep.__file__).parent
TINY = PACKAGE / "base_models" / "tiny"
PLANTED = """
import pathlib
pathlib.Path({mark!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM
class PlantedConfig(LlamaConfig):
    model_type = "planted"
class Planted(LlamaForCausalLM):
    config_class = PlantedConfig
"""


class Bomb:
    """Runs when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (str(self._mark),))


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """What a planted file would leave, had it run."""
    yield tmp_path / "it-ran"
    assert not (tmp_path / "it-ran").exists()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model folder that may be changed."""
    return Path(shutil.copytree(TINY, tmp_path / "model"))


def spec_of(folder: Path, trusted: bool = False) -> BaseModelSpec:
    return BaseModelSpec(name=str(folder), quantization="none", trust_remote_code=trusted)


def test_the_planted_pickle_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


def test_a_model_of_pickled_weights_is_refused(model: Path, mark: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(ModelError, match="safetensors weights"):
        base.load(spec_of(model), CPU)


def test_a_pickle_that_calls_itself_safetensors_is_refused(model: Path, mark: Path) -> None:
    (model / "model.safetensors").write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(ModelError, match="safetensors weights"):
        base.load(spec_of(model), CPU)


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.safetensors"])
def test_a_pickled_adapter_is_refused(model: Path, mark: Path, tmp_path: Path, spec: RunSpec, name: str) -> None:
    loaded = base.load(spec_of(model), CPU)
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": 16, "peft_type": "LORA"}))
    (folder / name).write_bytes(pickle.dumps(Bomb(mark)))
    run = spec.model_copy(update={"base_model": spec_of(model)})
    with pytest.raises(ModelError, match="start adapter needs"), adapters.attached(loaded, run, folder):
        pass


@pytest.mark.parametrize("name", ["x.parquet", "x.csv", "x.jsonl", "x.pkl", "x.joblib"])
def test_pickled_data_is_refused(mark: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(DataError):
        read.read(str(tmp_path / name))


def planted(model: Path, mark: Path, model_type: str) -> None:
    """Code in a model's folder, and a config that asks for it."""
    config = json.loads((model / "config.json").read_text())
    config |= {
        "model_type": model_type,
        "architectures": ["Planted"],
        "auto_map": {"AutoConfig": "planted.PlantedConfig", "AutoModelForCausalLM": "planted.Planted"},
    }
    (model / "config.json").write_text(json.dumps(config))
    (model / "planted.py").write_text(PLANTED.format(mark=str(mark)))


def test_a_model_that_wants_to_run_its_own_code_is_refused_with_what_to_do(model: Path, mark: Path) -> None:
    planted(model, mark, "planted")
    with pytest.raises(ModelError, match=r"Read that code.*trust_remote_code to true"):
        base.load(spec_of(model), CPU)


def test_a_model_that_needs_no_code_of_its_own_is_loaded_without_it(model: Path, mark: Path) -> None:
    planted(model, mark, "llama")
    assert type(base.load(spec_of(model), CPU).model).__module__.startswith("transformers.")


def test_code_that_the_sweep_file_trusts_is_run(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    planted(model, tmp_path / "trusted-code-ran", "planted")
    assert type(base.load(spec_of(model, trusted=True), CPU).model).__name__ == "Planted"
    assert (tmp_path / "trusted-code-ran").exists()


def calls_of(tree: ast.AST) -> Iterator[tuple[str, set[str]]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            told = {f"{word.arg}={ast.unparse(word.value)}" for word in node.keywords}
            yield ast.unparse(node.func), told


def test_nothing_in_the_package_unpickles_evaluates_or_asks_a_shell() -> None:
    unpickling = {"pickle", "joblib", "dill", "cloudpickle", "marshal", "shelve"}
    for file in PACKAGE.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not unpickling & {name.partition(".")[0] for name in names}, file
        for called, told in calls_of(tree):
            assert called not in ("eval", "exec", "os.system", "os.popen", "yaml.load"), file
            assert "shell=True" not in told, file
            assert "allow_pickle=True" not in told, file
            assert called != "torch.load" or "weights_only=True" in told, file
