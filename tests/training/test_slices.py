"""A stage is read on each slice up to its own: on rows that were trained on, and on its part of validation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mathverify_sweep.data import dataset
from mathverify_sweep.training.engine import PackedEngine
from mathverify_sweep.training.judge import Judge, Trained
from mathverify_sweep.training.order import Engine
from mathverify_sweep.training.reference import ReferenceEngine
from tests.training.tiny_fixture import Place, Recorder, trained


@pytest.mark.parametrize("engine", [ReferenceEngine, PackedEngine])
def test_accuracy_on_a_slice_is_that_of_the_adapter_on_its_first_rows(
    place: Place, tmp_path: Path, engine: type[Engine]
) -> None:
    spec = place.spec(
        train_rows=60, skip_rows=40, slices=(20, 40, 60), slice_rows=12, params={"learning_rate": 2e-2}, epochs=3
    )
    result = trained(engine("cpu"), spec, tmp_path, Recorder())  # type: ignore[call-arg]
    data = dataset.load(place.data)
    score = Judge("cpu").reader([Trained(spec, tmp_path / "adapter")])
    assert [(found.first_row, found.end_row, found.met_rows) for found in result.slices] == [
        (0, 20, 12),
        (20, 40, 12),
        (40, 60, 12),
    ]
    for found in result.slices:
        rows = data.train[found.first_row : found.first_row + 12]
        right = [(odds >= 0) == row.is_correct for odds, row in zip(score(rows)[0], rows, strict=True)]
        assert found.met_accuracy == pytest.approx(np.mean(right), abs=1.5 / 12), "one row may tie"
    assert sum(found.held_back_rows for found in result.slices) == len(data.validation) * 60 // len(data.train)
    assert all(0 <= (found.held_back_accuracy or 0) <= 1 for found in result.slices)


def test_slices_that_cover_all_rows_share_out_all_of_validation(place: Place, tmp_path: Path) -> None:
    data = dataset.load(place.data)
    ends = (len(data.train) // 3, len(data.train))
    spec = place.spec(train_rows=len(data.train), slices=ends, slice_rows=4)
    result = trained(PackedEngine("cpu"), spec, tmp_path, Recorder())
    held_back = [(found.held_back_rows, found.held_back_accuracy or 0.0) for found in result.slices]
    assert sum(rows for rows, _ in held_back) == len(data.validation)
    assert result.metrics is not None
    whole = sum(rows * accuracy for rows, accuracy in held_back) / len(data.validation)
    assert whole == pytest.approx(result.metrics.accuracy)


def test_a_trial_is_read_on_no_slice(place: Place, tmp_path: Path) -> None:
    assert trained(PackedEngine("cpu"), place.spec(train_rows=8), tmp_path, Recorder()).slices == ()
