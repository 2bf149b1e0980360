"""Serves Optuna's side of a database to workers over gRPC.

It is neither encrypted nor does it ask who calls: whoever reaches its port can change every study of the database.
"""

from __future__ import annotations

import functools
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, get_storage, run_grpc_proxy_server

from mathverify_sweep.errors import StorageUnavailable
from mathverify_sweep.store.turns import one_at_a_time
from mathverify_sweep.study import proxy, storage

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

_THREADS = 4
"""Calls that are answered at once. The engine's two connections and Python's lock leave no more work for others."""


def serve(engine: Engine, host: str, port: int) -> None:
    """Serve until interrupted."""
    proxy.require_grpc()
    with one_at_a_time(engine):  # on an empty database whoever creates a study makes Optuna's tables too
        opened = storage.open_storage(engine)
    backend = _Told(get_storage(opened), engine)
    with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
        pool = ThreadPoolExecutor(_THREADS)
        run_grpc_proxy_server(cast(BaseStorage, backend), host=host, port=port, thread_pool=pool)


class _Told:
    """A storage that says why it failed; the errors that Optuna gives a meaning pass as they are."""

    def __init__(self, backend: BaseStorage, engine: Engine) -> None:
        self._backend, self._engine = backend, engine

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._backend, name)

        @functools.wraps(call)
        def told(*arguments: Any, **named: Any) -> Any:
            try:
                with storage.storage_errors(self._engine):
                    return call(*arguments, **named)
            except StorageUnavailable as error:
                raise StorageUnavailable(f"{proxy.AWAY} {error}") from None

        return told
