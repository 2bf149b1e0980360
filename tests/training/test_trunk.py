"""A cooldown goes on from the trunk as if it had run there itself: adapter, moments, learning rate and rows.

The claim is about bits: piece and cooldown end in the same ones as a `warmup_stable_decay` run that is not cut.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mathverify_sweep.config import PromotionConfig
from mathverify_sweep.specs import RunResult, RunSpec
from mathverify_sweep.states import EndReason
from mathverify_sweep.study import plans
from mathverify_sweep.training.engine import PackedEngine
from mathverify_sweep.training.order import Engine
from mathverify_sweep.training.reference import ReferenceEngine
from tests.training.tiny_fixture import Place, Recorder, trained

RATE = 5e-3
MAX_LENGTH = 34


@pytest.fixture(scope="module", params=["packed", "reference"])
def engine(request: pytest.FixtureRequest) -> Engine:
    return PackedEngine("cpu") if request.param == "packed" else ReferenceEngine("cpu")


@pytest.fixture(scope="module")
def specs(place: Place) -> list[RunSpec]:
    """Two stages of 48 and 84 rows in steps of 8, each cooling down over its last quarter: piece, cooldown, twice.

    With all that has a memory or draws numbers: moments, weight decay, dropout, a warm-up, half of the rows met twice;
    and with rows that do not fit, so that no piece ends where its rows were counted to.
    """
    params = {"learning_rate": RATE, "weight_decay": 0.1, "lora_dropout": 0.2, "warmup_steps": 0.2}
    trial = place.spec(params=params, quantization="nf4", max_length=MAX_LENGTH)
    settings = PromotionConfig(plan="trunk", stages=(48, 84), cooldown_share=0.25, passes=1.7, seed=3)
    first, *others = [stage.spec for stage in plans.plan(trial, 200, settings)]
    return [first, *(spec.model_copy(update={"goes_on_from": "x"}) for spec in others)]


def run(engine: Engine, spec: RunSpec, folder: Path, *before: Path) -> tuple[RunResult, Recorder]:
    recorder = Recorder()
    result = trained(engine, spec, folder, recorder, resume_from=before)
    assert result.end_reason is EndReason.FINISHED, result.message
    return result, recorder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def same(first: Path, second: Path) -> bool:
    one, other = weights(first), weights(second)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_every_cooldown_ends_in_the_bits_of_a_run_that_was_not_cut(
    engine: Engine, specs: list[RunSpec], tmp_path: Path
) -> None:
    pieces = [tmp_path / "piece 0", tmp_path / "piece 1"]
    for number in (0, 1):
        piece, cooldown = specs[2 * number : 2 * number + 2]
        stopped, _ = run(engine, piece, pieces[number], *pieces[:number])
        cooled, said = run(engine, cooldown, tmp_path / f"cooled {number}", pieces[number])
        whole, said_whole = run(engine, cooldown, tmp_path / f"whole {number}")

        assert stopped.rows_seen % 8 == 0
        assert cooled.resumed_from_rows == stopped.rows_seen
        assert whole.left_out_rows > 0
        assert whole.resumed_from_rows == 0
        assert same(tmp_path / f"cooled {number}", tmp_path / f"whole {number}")
        assert not same(tmp_path / f"cooled {number}", pieces[number])
        assert (cooled.value, cooled.log_odds, cooled.optimizer_steps) == (
            whole.value,
            whole.log_odds,
            whole.optimizer_steps,
        )
        assert said.logs == said_whole.logs[-len(said.logs) :]


def test_the_learning_rate_is_constant_behind_the_warm_up_until_the_cooldown_which_ends_near_zero(
    engine: Engine, specs: list[RunSpec], tmp_path: Path
) -> None:
    _, on_trunk = run(engine, specs[0], tmp_path / "piece")
    _, cooling = run(engine, specs[1], tmp_path / "cooled", tmp_path / "piece")
    rates = [rate for _, _, rate in on_trunk.logs]
    warm = int(specs[0].params.warmup_steps)
    assert 1 < warm < len(rates) - 1
    assert rates[:warm] == pytest.approx([RATE * step / warm for step in range(warm)])
    assert rates[warm:] == [RATE] * (len(rates) - warm)
    rates = [rate for _, _, rate in cooling.logs]
    assert len(rates) > 2
    assert rates[0] == pytest.approx(RATE, rel=0.2), "within a step of where it begins to fall"
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < RATE / 2


def test_without_the_trunks_checkpoint_all_of_it_is_trained_and_said(
    engine: Engine, specs: list[RunSpec], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(engine, specs[0], tmp_path / "piece")
    for file in (tmp_path / "piece").rglob("optimizer.pt"):
        file.write_bytes(file.read_bytes()[:-1])
    alone, _ = run(engine, specs[1], tmp_path / "alone", tmp_path / "piece")
    assert alone.resumed_from_rows == 0
    assert "optimizer.pt is not as it was written" in caplog.text
    assert "nothing is left of run x to go on from" in caplog.text


def test_a_trunk_of_another_run_is_not_gone_on_from(engine: Engine, specs: list[RunSpec], tmp_path: Path) -> None:
    run(engine, specs[0], tmp_path / "piece")
    others = {
        "seed": specs[1].model_copy(update={"seed": 4}),
        "rate": specs[1].model_copy(update={"params": specs[1].params.model_copy(update={"learning_rate": 1e-4})}),
        "cut": specs[1].model_copy(update={"blocks": (35,)}),
        "epochs": specs[1].model_copy(update={"epochs": 1.0}),
    }
    for name, spec in others.items():
        result, _ = run(engine, spec, tmp_path / name, tmp_path / "piece")
        assert result.resumed_from_rows == 0, name


def test_a_cooldown_that_is_cut_goes_on_from_its_own_checkpoint(
    engine: Engine, specs: list[RunSpec], tmp_path: Path
) -> None:
    run(engine, specs[0], tmp_path / "piece")
    run(engine, specs[1], tmp_path / "whole", tmp_path / "piece")
    cut = Recorder(interrupt=(2, EndReason.PREEMPTED))
    trained(engine, specs[1], tmp_path / "cut", cut, resume_from=(tmp_path / "piece",))
    after, _ = run(engine, specs[1], tmp_path / "after", tmp_path / "cut", tmp_path / "piece")
    assert after.resumed_from_rows > 0
    assert same(tmp_path / "after", tmp_path / "whole")
