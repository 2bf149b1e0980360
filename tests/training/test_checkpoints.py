"""Checkpoints on a disk: whole or not there, proved before they are used, and no reason to end a run."""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mathverify_sweep.specs import RunSpec
from mathverify_sweep.training.checkpoints import Checkpoint, Checkpoints, mathematics
from mathverify_sweep.training.order import Order


def fill(text: str = "weights") -> Callable[[Path], None]:
    """Writes two files, one of them in a folder."""

    def write(folder: Path) -> None:
        (folder / "adapter").mkdir()
        (folder / "adapter" / "weights").write_text(text)
        (folder / "state.json").write_text("{}")

    return write


def written(spec: RunSpec, folder: Path, *rows: int) -> list[Path]:
    """Checkpoints after so many rows, in a run's folder."""
    checkpoints = Checkpoints(Order(spec, folder), "test")
    for seen in rows:
        checkpoints.write(seen, fill(f"weights after {seen}"))
    return [folder / "checkpoints" / str(seen) for seen in rows]


def names(folder: Path) -> list[str]:
    """What lies among a run's checkpoints."""
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def newest(spec: RunSpec, *folders: Path, engine: str = "test") -> Checkpoint | None:
    return Checkpoints(Order(spec, folders[0].parent / "next", resume_from=folders), engine).newest()


def rewrite_manifest(folder: Path, **changes: Any) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))


def test_what_was_written_is_found_again(spec: RunSpec, tmp_path: Path) -> None:
    [folder] = written(spec, tmp_path / "run", 8)
    assert newest(spec, tmp_path / "run") == Checkpoint(folder, 8)
    assert (folder / "adapter" / "weights").read_text() == "weights after 8"


def test_the_last_two_are_kept(spec: RunSpec, tmp_path: Path) -> None:
    written(spec, tmp_path / "run", 8, 16, 24, 104)
    assert names(tmp_path / "run") == ["104", "24"]


def test_the_one_that_has_seen_most_is_gone_on_from_whichever_attempt_wrote_it(spec: RunSpec, tmp_path: Path) -> None:
    [_, far] = written(spec, tmp_path / "first", 80, 96)
    written(spec, tmp_path / "second", 8)
    assert newest(spec, tmp_path / "second", tmp_path / "first", tmp_path / "never") == Checkpoint(far, 96)


class Killed(BaseException):
    """Nothing is tidied up after it."""


def test_a_writer_that_is_killed_leaves_the_one_before(spec: RunSpec, tmp_path: Path) -> None:
    [before] = written(spec, tmp_path / "run", 8)

    def die(folder: Path) -> None:
        fill()(folder)
        raise Killed

    with pytest.raises(Killed):
        Checkpoints(Order(spec, tmp_path / "run"), "test").write(16, die)
    assert names(tmp_path / "run") == ["16.partial", "8"]
    assert newest(spec, tmp_path / "run") == Checkpoint(before, 8)


def cut_short(folder: Path) -> None:
    os.truncate(folder / "adapter" / "weights", 3)


def flip_a_bit(folder: Path) -> None:
    weights = folder / "adapter" / "weights"
    data = weights.read_bytes()
    weights.write_bytes(bytes([data[0] ^ 1]) + data[1:])


def lose_a_file(folder: Path) -> None:
    (folder / "state.json").unlink()


def add_a_file(folder: Path) -> None:
    (folder / "optimizer.bin").write_text("")


def link_a_file(folder: Path) -> None:
    (folder / "state.json").rename(folder.parent / "elsewhere")
    (folder / "state.json").symlink_to(folder.parent / "elsewhere")


def cut_the_manifest(folder: Path) -> None:
    os.truncate(folder / "manifest.json", 40)


def lose_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def rename_it(folder: Path) -> None:
    shutil.move(folder, folder.with_name("999"))


def make_it_of_a_later_version(folder: Path) -> None:
    rewrite_manifest(folder, format=2)


DAMAGES = (
    cut_short,
    flip_a_bit,
    lose_a_file,
    add_a_file,
    link_a_file,
    cut_the_manifest,
    lose_the_manifest,
    rename_it,
    make_it_of_a_later_version,
)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_one_is_left_aside_and_the_one_before_it_used(
    spec: RunSpec, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    before, last = written(spec, tmp_path / "run", 8, 16)
    damage(last)
    assert newest(spec, tmp_path / "run") == Checkpoint(before, 8)
    [warning] = caplog.records
    assert "is left aside" in warning.message
    damage(before) if damage is not rename_it else shutil.rmtree(before)
    assert newest(spec, tmp_path / "run") is None


def test_attempts_whose_folders_cannot_be_read_are_passed_over(
    spec: RunSpec, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    [folder] = written(spec, tmp_path / "first", 8)
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "checkpoints").write_text("no folder")
    assert newest(spec, tmp_path / "second", tmp_path / "first") == Checkpoint(folder, 8)
    assert "second/checkpoints are left aside" in caplog.text


def test_another_engines_is_not_gone_on_from(spec: RunSpec, tmp_path: Path) -> None:
    written(spec, tmp_path / "run", 8)
    assert newest(spec, tmp_path / "run", engine="another") is None


def adapter(folder: Path, value: float) -> Path:
    folder.mkdir()
    save_file({"a": torch.full((2,), value)}, folder / "adapter_model.safetensors")
    return folder


def test_what_decides_the_weights_decides_which_checkpoints_fit(spec: RunSpec, tmp_path: Path) -> None:
    params = spec.params
    other_prompt = {"params": params.model_copy(update={"prompt_template": "own"})}
    changes: list[dict[str, Any]] = [
        {"params": params.model_copy(update={"learning_rate": 1e-5})},
        {"base_model": spec.base_model.model_copy(update={"quantization": "int8"})},
        {"data_fingerprint": "0" * 64},
        {"train_rows": spec.train_rows + 1},
        {"max_length": 77},
        {"seed": spec.seed + 1},
        {**other_prompt, "prompt_texts": {"own": "{question} {solution} {answer} Verdict:"}},
        {**other_prompt, "prompt_texts": {"own": "{question} {solution} {answer} True?"}},
    ]
    orders = [Order(spec, tmp_path), *(Order(spec.model_copy(update=change), tmp_path) for change in changes)]
    orders += [Order(spec, tmp_path, adapter(tmp_path / str(value), value)) for value in (0.0, 1.0)]
    assert len({mathematics(order) for order in orders}) == len(orders)


def test_what_decides_the_speed_or_the_name_does_not(spec: RunSpec, tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {"micro_batch_tokens": 64},
        {"rungs": (8,)},
        {"study_name": "another"},
        {"trial_number": 9},
        {"gradient_checkpointing": True},
    ]
    orders = [Order(spec, tmp_path), *(Order(spec.model_copy(update=change), tmp_path / "b") for change in changes)]
    assert len({mathematics(order) for order in orders}) == 1
    moved = [Order(spec, tmp_path, adapter(tmp_path / name, 1.0)) for name in ("here", "there")]
    assert mathematics(moved[0]) == mathematics(moved[1])


@contextmanager
def small_files(limit: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes: the system refuses the write, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def by_python(folder: Path) -> None:
    (folder / "weights").write_bytes(bytes(100_000))


def by_safetensors(folder: Path) -> None:
    save_file({"a": torch.zeros(25_000)}, folder / "weights")


def by_torch(folder: Path) -> None:
    torch.save({"a": torch.zeros(25_000)}, folder / "weights")


@pytest.mark.parametrize("write", [by_python, by_safetensors, by_torch], ids=lambda write: write.__name__)
def test_a_disk_that_takes_no_more_costs_a_checkpoint_not_the_run(
    spec: RunSpec, tmp_path: Path, caplog: pytest.LogCaptureFixture, write: Callable[[Path], None]
) -> None:
    [before] = written(spec, tmp_path / "run", 8)
    checkpoints = Checkpoints(Order(spec, tmp_path / "run"), "test")
    with small_files(50_000):
        checkpoints.write(16, write)
        checkpoints.write(24, write)
    [warning] = caplog.records
    assert warning.levelno == logging.WARNING
    assert "training goes on without (is the disk full?)" in warning.message
    assert names(tmp_path / "run") == ["8"]
    checkpoints.write(32, write)
    assert names(tmp_path / "run") == ["32", "8"]
    assert newest(spec, tmp_path / "run") != Checkpoint(before, 8)


def test_a_folder_that_cannot_be_made_costs_a_checkpoint_not_the_run(spec: RunSpec, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    Checkpoints(Order(spec, tmp_path), "test").write(8, fill())
    assert (tmp_path / "checkpoints").read_text() == "in the way"
