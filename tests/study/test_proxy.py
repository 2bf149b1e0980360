"""Claims about Optuna behind its gRPC proxy: the same answers, and trouble called by the same names."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import grpc
import pytest
from sqlalchemy.engine import Engine

from mathverify_sweep.config import SweepConfig
from mathverify_sweep.errors import ConfigError, StorageUnavailable, StudyError
from mathverify_sweep.specs import RunResult
from mathverify_sweep.states import EndReason, RunState, Verdict
from mathverify_sweep.store.database import connect
from mathverify_sweep.study import proxy, study
from tests.own_server import own_server

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CONFIG = SweepConfig.model_validate(
    {
        "study": "s",
        "search_space": {"learning_rate": {"low": 1e-5, "high": 1e-1, "log": True}},
        "data": {"train_rows": 800},
        "enqueue": [{"learning_rate": 0.001}, {"learning_rate": 0.002}],
    }
)
SERVER = """
import sys
from mathverify_sweep.store.database import connect
from mathverify_sweep.study import proxy_server
proxy_server.serve(connect(sys.argv[1]), "127.0.0.1", int(sys.argv[2]))
"""


@contextmanager
def proxied(url: str) -> Iterator[str]:
    """The address of a proxy process for the database."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"127.0.0.1:{port}"
    process = subprocess.Popen([sys.executable, "-c", SERVER, url, str(port)])
    try:
        with grpc.insecure_channel(address) as channel:
            grpc.channel_ready_future(channel).result(timeout=30)
        yield address
    finally:
        process.kill()
        process.wait()


def url_of(engine: Engine) -> str:
    return engine.url.render_as_string(hide_password=False)


def test_a_study_behind_the_proxy_answers_as_one_that_is_not(engine: Engine) -> None:
    study.create(engine, CONFIG, "f", NOW)
    with (
        proxied(url_of(engine)) as address,
        study.open_study(engine, "s", address) as far,
        study.open_study(engine, "s") as near,
    ):
        asked = [far.ask(), near.ask(), far.ask()]
        assert [trial.params.learning_rate for trial in asked if trial][:2] == [0.001, 0.002]
        assert far.report(0, 100, 0.5) is Verdict.CONTINUE
        far.tell(0, RunResult(end_reason=EndReason.FINISHED, value=0.5))
        far.tell(0, RunResult(end_reason=EndReason.FINISHED, value=0.9))
        assert far.trials()[0] == near.trials()[0]
        assert (near.trials()[0].state, near.trials()[0].value) == (RunState.COMPLETE, 0.5)
        assert far.reconcile(0.0, 0.0) == [1, 2]
        with pytest.raises(StudyError, match="no trial 7"):
            far.report(7, 100, 0.5)


def test_a_proxy_that_is_away_is_a_database_that_is_away(engine: Engine) -> None:
    study.create(engine, CONFIG, "f", NOW)
    with proxied(url_of(engine)) as address:
        far = study.open_study(engine, "s", address)
    for call in (far.ask, far.trials, lambda: far.reconcile(0.0, 0.0)):
        with pytest.raises(StorageUnavailable, match=r"proxy does not answer.*mvsweep proxy"):
            call()
    far.close()


def test_a_database_that_is_away_behind_the_proxy_is_away_and_comes_back() -> None:
    with own_server() as server:
        engine = connect(server.url)
        study.create(engine, CONFIG, "f", NOW)
        with proxied(server.url) as address, study.open_study(engine, "s", address) as far:
            server.stop()
            with pytest.raises(StorageUnavailable, match="proxy cannot reach the database"):
                far.ask()
            server.start()
            assert far.ask() is not None
        engine.dispose()


def test_a_proxy_that_never_answers_is_away_after_the_deadline(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    monkeypatch.setattr(proxy, "DEADLINE_SECONDS", 0.2)
    study.create(engine, CONFIG, "f", NOW)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(StorageUnavailable):
        study.open_study(engine, "s", f"127.0.0.1:{silent.getsockname()[1]}")


@pytest.mark.parametrize("address", ["", "13000", "host:", ":13000", "host:port", "host:70000", "host:-1"])
def test_an_address_names_host_and_port(address: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        proxy.connect(address)
