"""Rows stay encoded: more of them are only added."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mathverify_sweep.data.encode import Encoded
from mathverify_sweep.training import material
from mathverify_sweep.training.material import Library
from tests.training.tiny_fixture import Place


def test_rows_are_encoded_once_however_many_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path)
    spec = place.spec(max_length=28)
    asked: list[int] = []
    encode = material.encode

    def counting(rows: object, *others: object) -> Encoded:
        asked.append(len(rows))  # type: ignore[arg-type]
        return encode(rows, *others)  # type: ignore[arg-type]

    whole = Library(torch.device("cpu")).rows(spec, "train", 90)
    assert 0 < whole.left_out < 90, "some rows must not fit, or their counting is not seen"
    monkeypatch.setattr(material, "encode", counting)
    library = Library(torch.device("cpu"))
    parts = [library.rows(spec, "train", count) for count in (30, 90, 60, 90)]
    assert asked == [30, 60]
    assert parts[1] == parts[3] == whole
    assert parts[2].rows == tuple(row for row in whole.rows if row.index < 60)
    assert [len(part.rows) + part.left_out for part in parts] == [30, 90, 60, 90]
