"""Which workers are held against what was measured: those of the study, on such a device, with the same options."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mathverify_sweep import paths
from mathverify_sweep.rates import Rates
from mathverify_sweep.worker import measuring
from mathverify_sweep.worker.devices import Device
from mathverify_sweep.worker.engine import EngineOptions
from mathverify_sweep.worker.measuring import Bench, Found
from tests.example_study import config

RATES = Rates(slots=1, alone=10.0, together=10.0, judged=500.0, run_seconds=2.0, first_seconds=5.0, validation_rows=900)
GPU = Device("cuda:0", "gpu 0 (NVIDIA H100)", model="NVIDIA H100")
CPU = Device("cpu", "cpu", {"OMP_NUM_THREADS": "1"})


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for device in (GPU, CPU):
        found = Found(RATES, "packed", None, "", 1.0, 1, 1)
        measuring.remember(config(), "f", Bench(device, EngineOptions(), 1, ()), found)


def known(device: Device, fingerprint: str = "f", options: EngineOptions | None = None) -> Rates | None:
    return measuring.known(config(), fingerprint, device, options or EngineOptions())


def test_another_gpu_of_the_kind_is_as_fast() -> None:
    assert known(GPU) == known(replace(GPU, label="gpu 3 (NVIDIA H100)")) == RATES
    assert known(replace(GPU, model="NVIDIA H200")) is None


def test_a_cpu_is_as_fast_as_its_threads() -> None:
    assert known(CPU) == RATES
    assert known(replace(CPU, environment={"OMP_NUM_THREADS": "2"})) is None


def test_other_data_options_or_settings_are_not_known() -> None:
    assert known(GPU, "other rows") is None
    assert known(GPU, options=EngineOptions("reference")) is None
    assert known(GPU, options=EngineOptions(slots=2)) is None
    wider = config(search_space={"lora_r": 256})
    assert measuring.known(wider, "f", GPU, EngineOptions()) is None
    longer = config(budget={"trials": 99}, promotion={"stages": [1_000]})
    assert measuring.known(longer, "f", GPU, EngineOptions()) == RATES, "how much is done does not make it slower"


def test_a_cache_that_is_damaged_or_of_another_version_is_none() -> None:
    paths.rates_file().write_text(paths.rates_file().read_text().replace("alone", "single"))
    assert known(GPU) is None
    paths.rates_file().write_text("{ half a fi")
    assert known(GPU) is None
