"""A run's adapter on a full disk: it waits for room."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import cast

import pytest
from peft import PeftModel
from safetensors import SafetensorError

from mathverify_sweep.training import adapters


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

    adapters.keep(cast(PeftModel, Model(full, in_words)), tmp_path / "adapter", waited.append)

    assert len(waited) == 2
    assert (tmp_path / "adapter" / "adapter_config.json").read_text() == "{}"


def test_other_trouble_with_an_adapter_is_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(PermissionError):
        adapters.keep(
            cast(PeftModel, Model(PermissionError("no"))), tmp_path / "adapter", lambda _: pytest.fail("it waited")
        )
