"""Serves optuna-dashboard on our database, with the trials' notes and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from optuna.artifacts import FileSystemArtifactStore
from optuna_dashboard import run_server

from mathverify_sweep import paths
from mathverify_sweep.store.turns import one_at_a_time
from mathverify_sweep.study.storage import close_storage, open_storage

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine


def serve(engine: Engine, output: Path, host: str, port: int) -> None:
    """Serve until interrupted. `output` holds the pictures."""
    pictures = paths.artifacts_folder(output)
    pictures.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(engine):  # on an empty database whoever creates a study makes Optuna's tables too
        storage = open_storage(engine)
    try:
        run_server(storage, host=host, port=port, artifact_store=FileSystemArtifactStore(str(pictures)))
    finally:
        close_storage(storage)
