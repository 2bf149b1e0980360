"""An output folder at a URL: a stage that one host leaves in its middle is finished by another, to the same bits."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from mathverify_sweep.store import runs
from mathverify_sweep.store.database import connect
from tests.flows.commands import SWEEP, Shell, ended

ONE_TRIAL = (
    SWEEP.replace("generated_rows: 1_500, train_rows: 256", "generated_rows: 3_000, train_rows: 64")
    .replace("trials: 4", "trials: 1")
    .replace("stages: [256, 0.5, all]", "stages: [64, 1_200]")
)


def on_host(name: str, folder: Path, output: str, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A shell whose cache no other host has; the database is one that all reach."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / name))
    monkeypatch.setenv("MVSWEEP_OUTPUT", output)
    return Shell(folder, f"sqlite:///{folder / 'mvsweep.sqlite3'}")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_one_host_leaves_in_its_middle_another_finishes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters = []
    for way in ("whole", "cut"):
        folder = tmp_path / way
        url = f"file://{folder}/store/runs"
        Shell.at(folder, "", ONE_TRIAL)
        ann = on_host("ann", folder, url, monkeypatch)
        ann.run("create", "flow.yaml")
        ended(ann.worker("--until-idle"))
        ann.run("promote", "flow")
        if way == "cut":
            worker = ann.worker("--checkpoint-seconds", "1")
            ann.wait_until(lambda report: any(run.stage == 2 and run.rows_seen > 200 for run in report.running))
            worker.send_signal(signal.SIGTERM)
            ended(worker, 1)
            assert any((folder / "store").rglob("checkpoints/*.manifest"))
        bob = on_host("bob", folder, url, monkeypatch)
        ended(bob.worker("--until-idle"))
        assert not any((folder / "store").rglob("checkpoints/*")), "nobody needs them any more"

        last = runs.runs(connect(bob.storage), "flow")[-1]
        assert last.result is not None
        assert (last.result.resumed_from_rows > 0) == (way == "cut")
        adapters.append(
            (folder / "store" / "runs" / str(last.result.adapter) / "adapter_model.safetensors").read_bytes()
        )
        carl = on_host("carl", folder, url, monkeypatch)
        assert json.loads(carl.json("evaluate", last.run_id, "--split", "test"))["rows"] > 100
    assert adapters[0] == adapters[1]
