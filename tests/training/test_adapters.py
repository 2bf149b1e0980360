"""A run's adapter on its way to the disk: as PEFT writes it, and on a full disk it waits for room."""

from __future__ import annotations

import errno
import json
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file

from mathverify_sweep.training import adapters, base
from tests.training.tiny_fixture import Place


class Model:
    """Saves itself once the disk has room."""

    def __init__(self, *refusals: Exception) -> None:
        self.refusals = list(refusals)

    def save_pretrained(self, folder: str, *, save_embedding_layers: bool) -> None:
        assert not save_embedding_layers
        Path(folder).mkdir()
        (Path(folder) / "adapter_config.json").write_text("{")
        if self.refusals:
            raise self.refusals.pop(0)
        (Path(folder) / "adapter_config.json").write_text("{}")


def test_an_adapter_waits_until_the_disk_has_room(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    in_words = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    waited: list[float] = []

    model, folder = cast(PeftModel, Model(full, in_words)), tmp_path / "adapter"
    adapters.keep(partial(adapters.save, model, folder), folder, waited.append)

    assert len(waited) == 2
    assert (tmp_path / "adapter" / "adapter_config.json").read_text() == "{}"


@pytest.mark.parametrize("params", [{}, {"use_rslora": False, "lora_alpha": 3.0, "lora_dropout": 0.1}], ids=str)
def test_an_adapter_on_no_model_is_saved_as_peft_saves_it(tmp_path: Path, params: dict[str, Any]) -> None:
    place = Place(tmp_path)
    spec = place.spec(params=params, quantization="nf4")
    loaded = base.load(spec.base_model, torch.device("cpu"))
    with adapters.attached(loaded, spec, None) as attached:
        adapters.save(attached, tmp_path / "peft")
    adapters.save_values(loaded, spec, adapters.values(loaded, spec, None), tmp_path / "ours")
    peft, ours = (json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("peft", "ours"))
    targets = peft.pop("target_modules"), ours.pop("target_modules")
    assert peft == ours
    assert set(targets[0]) == set(targets[1])
    theirs, mine = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("peft", "ours"))
    assert theirs.keys() == mine.keys()
    assert all(torch.equal(tensor, mine[name]) for name, tensor in theirs.items())


def test_other_trouble_with_an_adapter_is_not_waited_for(tmp_path: Path) -> None:
    model, folder = cast(PeftModel, Model(PermissionError("no"))), tmp_path / "adapter"
    with pytest.raises(PermissionError):
        adapters.keep(partial(adapters.save, model, folder), folder, lambda _: pytest.fail("it waited"))
