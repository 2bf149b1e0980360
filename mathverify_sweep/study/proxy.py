"""Optuna's gRPC proxy: one process talks to the database for all workers, so that Optuna costs them no connection.

The worker's side; `proxy_server` is the other. Needs the extra `proxy` (grpcio), imported only where it is used.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, cast

from optuna.exceptions import ExperimentalWarning
from optuna.storages import GrpcStorageProxy

from mathverify_sweep.errors import ConfigError, StorageError, StorageUnavailable

DEADLINE_SECONDS = 60.0
"""How long a worker waits for one answer; a proxy whose host is gone gives none."""
AWAY = "the database is away:"
"""How our server begins what it says of a database that is away: gRPC passes on nothing but words."""


def connect(address: str) -> GrpcStorageProxy:
    """Optuna's storage behind the proxy at HOST:PORT; nothing is sent yet."""
    require_grpc()
    import grpc

    host, port = _parse(address)
    with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
        proxy = GrpcStorageProxy(host=host, port=port)
    # Optuna sets no deadline and lets nobody set one: the same channel, with one.
    channel = grpc.intercept_channel(proxy._channel, _deadline(grpc))
    proxy._stub = type(proxy._stub)(channel)
    proxy._cache = type(proxy._cache)(proxy._stub)
    return proxy


def storage_error(error: Exception) -> StorageError | None:
    """What a failed call of the proxy is called here; None for an error that is not gRPC's."""
    grpc = sys.modules.get("grpc")
    if grpc is None or not isinstance(error, grpc.RpcError):
        return None
    code, details = cast(Any, error).code(), " ".join(str(cast(Any, error).details()).split())
    away = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
    if code in away:
        return StorageUnavailable(f"Optuna's proxy does not answer: {details}. Start it with `mvsweep proxy`.")
    _, told, reason = details.partition(AWAY)
    if told:
        return StorageUnavailable(f"Optuna's proxy cannot reach the database: {reason.strip()}")
    return StorageError(f"Optuna's proxy refused: {details}")


def require_grpc() -> None:
    """Raise StorageError with what to install when gRPC is not there."""
    # Its engine is started by fork and exec at once: gRPC's own care for forks only prints warnings.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        import grpc  # noqa: F401 - asked for here, to say what to do
    except ImportError:
        raise StorageError("Optuna's proxy needs gRPC. Install mathverify-sweep[proxy].") from None


def _deadline(grpc: Any) -> Any:
    class Deadline(grpc.UnaryUnaryClientInterceptor):  # type: ignore[misc]  # grpcio has no types
        def intercept_unary_unary(self, call: Callable[..., Any], details: Any, request: Any) -> Any:
            return call(details._replace(timeout=DEADLINE_SECONDS), request)

    return Deadline()


def _parse(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError("--optuna-proxy", [f"names a proxy as HOST:PORT, got {address!r}. Write 127.0.0.1:13000."])
    return host, int(port)
