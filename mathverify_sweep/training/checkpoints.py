"""Checkpoints: all that is needed to go on with a run, written whole and proved before it is used.

    <run folder>/checkpoints/<rows seen>/manifest.json   size and SHA-256 of every other file, and of which mathematics
    <run folder>/checkpoints/<rows seen>/...             what the engine and the run's course keep

A folder appears under its name only when all of it is on the disk, so a run that is killed at any instant leaves the
one before. Damaged checkpoints, and those of another engine or of a run with other mathematics, are never gone on from.
A piece of a trunk leaves one at its end, which whatever goes on from it takes for its own: they begin alike.
What they hold is read without running anything: weights as safetensors, the rest as JSON or by
`torch.load(weights_only=True)`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mathverify_sweep import paths
from mathverify_sweep.data import prompts
from mathverify_sweep.specs import Frozen
from mathverify_sweep.training import adapters
from mathverify_sweep.training.order import KEPT_CHECKPOINTS, Order

log = logging.getLogger(__name__)

_FORMAT = 1
_MANIFEST = "manifest.json"


def start_over(order: Order, error: Exception) -> Order:
    """The order without its checkpoints, one of which the engine could not go on from.

    Its files are as they were written, so other versions of the libraries have written them.
    """
    why = str(error).partition(". ")[0]  # torch goes on with advice that nobody should take
    log.warning("the checkpoint cannot be gone on from, starting over: %s: %s", type(error).__name__, why)
    return replace(order, resume_from=())


@dataclass(frozen=True)
class Checkpoint:
    """A folder whose files are all there and as they were written."""

    folder: Path
    rows_seen: int


class Checkpoints:
    """Those that an attempt writes, and the one it goes on from. `engine` names who can read them."""

    def __init__(self, order: Order, engine: str) -> None:
        self._root = paths.checkpoints_folder(order.folder)
        self._engine = engine
        self._order = order
        self._mathematics = mathematics(order)
        self._has_warned = False

    def newest(self) -> Checkpoint | None:
        """The one of the earlier attempts that has seen the most rows; what is wrong with better ones is logged."""
        written = [(int(path.name), path) for folder in self._order.resume_from for path in _readable(folder)]
        for rows_seen, folder in sorted(written, key=lambda found: -found[0]):
            try:
                self._prove(folder, rows_seen)
            except (OSError, ValueError) as error:
                log.warning("checkpoint %s is left aside, an earlier one or the start is used: %s", folder, error)
            else:
                return Checkpoint(folder, rows_seen)
        if self._order.spec.goes_on_from:
            log.warning("nothing is left of run %s to go on from: all is trained anew", self._order.spec.goes_on_from)
        return None

    def write(self, rows_seen: int, fill: Callable[[Path], None]) -> bool:
        """Keep what `fill` writes into the folder that it is given; False when the disk cannot take it: training goes
        on all the same.
        """
        folder = self._root / str(rows_seen)
        partial = self._root / f"{rows_seen}.partial"
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            fill(partial)
            self._seal(partial, rows_seen)
            partial.rename(folder)
            _sync(self._root)
            for old in paths.checkpoints(self._order.folder)[:-KEPT_CHECKPOINTS]:
                shutil.rmtree(old)
            return True
        # The ways in which Python, safetensors and torch say that a file cannot be written. What is wrong with more
        # than the disk shows again at the next step.
        except (OSError, SafetensorError, RuntimeError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            if not self._has_warned:
                log.warning("no checkpoint in %s, training goes on without (is the disk full?): %s", folder, error)
            self._has_warned = True
            return False

    def _seal(self, folder: Path, rows_seen: int) -> None:
        """The manifest, last; then all of it on the disk."""
        found = {name: _File(size=path.stat().st_size, sha256=_sha256(path)) for name, path in _files(folder).items()}
        spec = self._order.spec
        digest = trunk_mathematics(self._order, rows_seen) if spec.leaves_state else self._mathematics
        manifest = _Manifest(format=_FORMAT, engine=self._engine, rows_seen=rows_seen, mathematics=digest, files=found)
        (folder / _MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
        for path in [*(path for path in folder.rglob("*")), folder]:
            _sync(path)

    def _prove(self, folder: Path, rows_seen: int) -> None:
        """Raises OSError or ValueError when this is not a whole checkpoint of this run's mathematics."""
        manifest = _Manifest.model_validate_json((folder / _MANIFEST).read_bytes())
        good = {self._mathematics, trunk_mathematics(self._order, rows_seen)}
        is_ours = (manifest.format, manifest.engine, manifest.rows_seen) == (_FORMAT, self._engine, rows_seen)
        if not is_ours or manifest.mathematics not in good:
            raise ValueError("it belongs to another engine, version, or run")
        found = _files(folder)
        if found.keys() != manifest.files.keys():
            raise ValueError(f"its manifest names other files: {sorted(found.keys() ^ manifest.files.keys())}")
        for name, path in found.items():
            if manifest.files[name] != _File(size=path.stat().st_size, sha256=_sha256(path)):
                raise ValueError(f"{name} is not as it was written")


class _File(Frozen):
    """What a file of a checkpoint must be."""

    size: int
    sha256: str


class _Manifest(Frozen):
    """What a checkpoint must be."""

    format: int
    engine: str
    rows_seen: int
    mathematics: str
    files: dict[str, _File]


def mathematics(order: Order) -> str:
    """A digest of all that decides the weights after so many rows, and of nothing that only decides how fast.

    Not of the study's name, the rungs or the micro-batch: an attempt with a smaller one goes on from a larger one's.
    Nor of `max_steps`, which `train_rows` has in it.
    Raises ModelError when the start adapter is not there.
    """
    spec = order.spec
    selected = {"skip_rows", "replay_rows", "epochs", "blocks", "leaves_state"}
    decisive = spec.model_dump(mode="json", include={"train_rows"})
    # Where they are as they always were, so are the digests.
    decisive |= spec.model_dump(mode="json", include=selected, exclude_defaults=True)
    return _digest(order, decisive, spec.params.model_dump(mode="json", exclude={"max_steps"}))


def trunk_mathematics(order: Order, rows_seen: int) -> str:
    """The same of a run whose learning rate has been constant so far, apart from its warm-up: where its schedule ends
    has decided nothing yet, nor have rows behind the block that it is in.
    """
    spec = order.spec
    cuts = (*spec.blocks, spec.train_rows)
    begun = next((n for n, cut in enumerate(cuts, 1) if spec.epochs * cut >= rows_seen), len(cuts))
    open_still = {"lr_scheduler_type", "lr_decay_share", "lr_num_cycles", "max_steps"}
    params = spec.params.model_dump(mode="json", exclude=open_still)
    return _digest(order, {"trunk": cuts[:begun], "epochs": spec.epochs}, params)


def _digest(order: Order, decisive: dict[str, Any], params: dict[str, Any]) -> str:
    spec = order.spec
    decisive = decisive | {
        **spec.model_dump(mode="json", include={"base_model", "max_length", "seed"}),
        "params": params,
        "data_fingerprint": spec.data_fingerprint,
        "prompt": prompts.find(spec.params.prompt_template, spec.prompt_texts, spec.data.task),
        "start_adapter": adapters.digest(order.start_adapter) if order.start_adapter else None,
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _readable(folder: Path) -> list[Path]:
    """The checkpoints of an attempt: none when it is on another machine, or cannot be read."""
    try:
        return paths.checkpoints(folder)
    except OSError as error:
        log.warning("checkpoints in %s are left aside: %s", paths.checkpoints_folder(folder), error)
        return []


def _files(folder: Path) -> dict[str, Path]:
    """All files but the manifest, by their names within the folder. Refuses links: they lead out of it."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not path.is_dir()}
    if links := sorted(name for name, path in found.items() if path.is_symlink() or not path.is_file()):
        raise ValueError(f"a checkpoint holds plain files, this one has {links}")
    found.pop(_MANIFEST, None)
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
