"""A study with finished runs of a random Llama under NF4, trained for real: what the tests of verifiers share."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sqlalchemy.engine import Engine

from mathverify_sweep import environment, paths
from mathverify_sweep.config import SweepConfig
from mathverify_sweep.store import provenance, runs, studies
from mathverify_sweep.store.database import connect, upgrade
from mathverify_sweep.store.runs import RunRecord, WorkerIdentity
from mathverify_sweep.training.judge import Judge
from mathverify_sweep.training.reference import ReferenceEngine
from tests.training.tiny_fixture import Place, Recorder, trained

NOW = datetime(2026, 3, 2, tzinfo=UTC)


@dataclass(frozen=True)
class Shop:
    """A database, its output folder, and what its runs were trained on."""

    url: str
    database: Engine
    output: Path
    place: Place
    engine: ReferenceEngine
    judge: Judge

    def finished(self, number: int, **changes: Any) -> RunRecord:
        """A trial, trained to its end and written down as a worker does."""
        spec = self.place.spec(trial_number=number, quantization="nf4", **changes)
        run_id = runs.enqueue(self.database, spec, NOW)
        code = provenance.environment_id(environment.described())
        provenance.record_environment(self.database, environment.described())
        worker = WorkerIdentity.of_this_process("cpu", 60.0, code)
        claim = runs.claim_waiting(self.database, spec.study_name, worker, NOW)
        assert claim is not None
        assert claim.run_id == run_id
        folder = paths.run_folder(self.output, spec.study_name, run_id, claim.lease_token)
        result = trained(self.engine, spec, folder, Recorder())
        adapter = paths.adapter_folder(folder).relative_to(self.output)
        assert result.metrics is not None
        # A model that knows little is best at saying one thing only; here both verdicts are wanted, and no row on the
        # threshold, where the last digit of what it is read as would decide.
        middle = len(result.log_odds) // 2
        threshold = float(np.mean(sorted(result.log_odds)[middle - 1 : middle + 1]))
        judged = result.metrics.model_copy(update={"threshold": threshold})
        result = result.model_copy(update={"adapter": str(adapter), "metrics": judged})
        assert runs.finish(self.database, claim, result, NOW)
        return runs.get(self.database, run_id)


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("shop")
    (folder / "place").mkdir()
    place = Place(folder / "place")
    url = f"sqlite:///{folder / 'shop.sqlite3'}"
    database = connect(url)
    upgrade(database)
    config = SweepConfig.model_validate({"study": "tests", "data": place.data.model_dump(exclude={"columns", "task"})})
    record = studies.StudyRecord("tests", config.model_dump_json(), place.fingerprint, None, None, NOW)
    studies.create(database, record)
    return Shop(url, database, folder / "runs", place, ReferenceEngine("cpu"), Judge("cpu"))


@pytest.fixture(scope="session")
def trio(shop: Shop) -> list[RunRecord]:
    """Three trials that say quite different things."""
    rates = (2e-2, 1e-2, 3e-2)
    return [shop.finished(n, params={"learning_rate": rate}, seed=n) for n, rate in enumerate(rates)]
