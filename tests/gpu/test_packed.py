"""The packed engine on a GPU: bfloat16 on NF4, kernels for rows of all lengths, grouped adapters, real memory limits.

Skipped where there is no GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mathverify_sweep.data import dataset
from mathverify_sweep.states import EndReason
from mathverify_sweep.training.engine import PackedEngine
from mathverify_sweep.training.judge import Judge, Trained
from mathverify_sweep.training.order import Order
from mathverify_sweep.training.packed import graphs
from mathverify_sweep.training.packed.model import PackedModel
from mathverify_sweep.training.reference import ReferenceEngine
from tests.training.packed.company import Numbers, adapter_of, largest_difference, numbers, together
from tests.training.tiny_fixture import Place, Recorder, trained

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() != 1, reason="needs one visible CUDA device"),
    # bitsandbytes, of a base as small as the tests'
    pytest.mark.filterwarnings("ignore:inner dimension .* is not aligned for fast kernel:UserWarning"),
]

OPTIMIZERS = ("adamw_torch", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit", "lion_8bit")
KINDS: list[dict[str, Any]] = [
    {"lora_r": 20, "lora_dropout": 0.2},
    {"lora_r": 4, "prompt_loss_weight": 0.2},
    {"lora_r": 12, "lora_alpha": 3.0, "use_rslora": False, "effective_batch_size": 2},
    {"lora_r": 64, "weight_decay": 0.1, "max_grad_norm": 0.05},
    {"lora_r": 8, "lr_scheduler_type": "linear"},
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def engine() -> PackedEngine:
    return PackedEngine("cuda:0", slots=8, token_budget=2_048)


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_every_optimizer_learns_in_bfloat16_on_nf4(
    place: Place, engine: PackedEngine, tmp_path: Path, optim: str
) -> None:
    params = {"optim": optim, "lora_r": 64, "learning_rate": 3e-4 if optim == "lion_8bit" else 3e-3}
    recorder, before = Recorder(), torch.cuda.memory_allocated()
    result = trained(engine, place.spec(params=params, quantization="nf4", train_rows=120), tmp_path, recorder)
    assert sum(recorder.losses[-3:]) / 3 < 0.6 * recorder.losses[0]
    assert before < result.peak_memory_bytes < before + 2**30
    assert all(tensor.dtype is torch.float32 for tensor in adapter_of(tmp_path).values())


@pytest.mark.parametrize("params", [{}, {"prompt_loss_weight": 0.3}], ids=["verdicts", "prompts too"])
def test_float32_on_a_gpu_is_float32_on_a_cpu(
    place: Place, engine: PackedEngine, tmp_path: Path, params: dict[str, Any]
) -> None:
    spec = place.spec(params=params, base_model={"compute_dtype": "float32"}, micro_batch_tokens=128)
    ours, theirs = Recorder(), Recorder()
    there = trained(engine, spec, tmp_path / "gpu", ours)
    here = trained(PackedEngine("cpu"), spec, tmp_path / "cpu", theirs)
    assert ours.losses == pytest.approx(theirs.losses, abs=1e-3)
    assert there.log_odds == pytest.approx(here.log_odds, abs=1e-2)


@pytest.mark.parametrize("params", KINDS, ids=str)
def test_in_bfloat16_it_stays_as_near_to_trl_as_trl_to_float32(
    place: Place, engine: PackedEngine, tmp_path: Path, params: dict[str, Any]
) -> None:
    params = {**params, "lora_dropout": 0.0, "learning_rate": 3e-3}
    spec = place.spec(params=params, quantization="nf4")
    exact = place.spec(params=params, quantization="nf4", base_model={"compute_dtype": "float32"})
    ours, theirs, expected = Recorder(), Recorder(), Recorder()
    trained(engine, spec, tmp_path / "packed", ours)
    trained(ReferenceEngine("cuda:0"), spec, tmp_path / "trl", theirs)
    trained(ReferenceEngine("cuda:0"), exact, tmp_path / "exact", expected)
    assert apart(ours, expected) <= 2 * apart(theirs, expected) + 0.01
    assert apart(ours, theirs) <= 2 * apart(theirs, expected) + 0.01


def apart(one: Recorder, other: Recorder) -> float:
    """Root mean square of the differences of two runs' losses, relative to their size."""
    pairs = list(zip(one.losses, other.losses, strict=True))
    return (sum(((a - b) / b) ** 2 for a, b in pairs) / len(pairs)) ** 0.5


def test_company_moves_a_run_by_rounding_only(place: Place, engine: PackedEngine, tmp_path: Path) -> None:
    """Ranks of three paddings, dropout and weighted prompts in one stream, adapters in grouped matmuls."""
    specs = [place.spec(params=kind, quantization="nf4", seed=i) for i, kind in enumerate(KINDS)]
    by_itself = [numbers(engine, spec, tmp_path / f"alone-{i}") for i, spec in enumerate(specs)]
    recorders = {str(i): Recorder() for i in range(len(specs))}
    results = together(engine, {str(i): Order(spec, tmp_path / str(i)) for i, spec in enumerate(specs)}, recorders)
    for i, alone in enumerate(by_itself):
        shared = Numbers.of(recorders[str(i)], results[str(i)], tmp_path / str(i))
        assert [loss for *_, loss, _ in shared.logs] == pytest.approx([loss for *_, loss, _ in alone.logs], rel=0.02)
        assert largest_difference(shared.adapter, alone.adapter) < 5e-3


def test_the_same_company_gives_the_same_bits(place: Place, tmp_path: Path) -> None:
    told = []
    for attempt in ("first", "again"):
        engine = PackedEngine("cuda:0", slots=8, token_budget=2_048)
        recorders = {str(i): Recorder() for i in range(len(KINDS))}
        orders = {
            str(i): Order(place.spec(params=kind, quantization="nf4", seed=i), tmp_path / attempt / str(i))
            for i, kind in enumerate(KINDS)
        }
        together(engine, orders, recorders)
        told.append([recorder.logs for recorder in recorders.values()])
    assert told[0] == told[1]


def test_a_neighbour_that_is_no_number_reaches_nobody(place: Place, engine: PackedEngine, tmp_path: Path) -> None:
    spec = place.spec(quantization="nf4", params={"learning_rate": 3e-3})
    wild = place.spec(params={"learning_rate": 1e30, "max_grad_norm": 0.0}, quantization="nf4")
    results = together(engine, {"mine": Order(spec, tmp_path / "mine"), "wild": Order(wild, tmp_path / "wild")})
    assert (results["mine"].end_reason, results["wild"].end_reason) == (EndReason.FINISHED, EndReason.DIVERGED)


def test_a_cut_run_ends_in_the_same_bits(place: Place, engine: PackedEngine, tmp_path: Path) -> None:
    spec = place.spec(quantization="nf4", params={"optim": "paged_adamw_8bit", "lora_r": 64, "lora_dropout": 0.1})
    uncut = numbers(engine, spec, tmp_path / "uncut")
    trained(engine, spec, tmp_path / "cut", Recorder(interrupt=(4, EndReason.PREEMPTED)))
    after = Recorder()
    trained(engine, spec, tmp_path / "next", after, resume_from=(tmp_path / "cut",))
    assert after.logs == uncut.logs[4:]
    assert largest_difference(adapter_of(tmp_path / "next"), uncut.adapter) == 0


def test_evaluation_is_that_of_the_reference_engine(place: Place, engine: PackedEngine, tmp_path: Path) -> None:
    spec = place.spec(quantization="nf4", params={"learning_rate": 3e-3})
    trained(engine, spec, tmp_path, Recorder())
    for adapter in (None, tmp_path / "adapter"):
        expected = ReferenceEngine("cuda:0").score(spec, adapter, "validation")
        assert engine.score(spec, adapter, "validation") == pytest.approx(expected, abs=0.2)


def test_memory_that_runs_out_makes_passes_smaller_and_all_runs_go_on(place: Place, tmp_path: Path) -> None:
    """Passes of 64 rows in each of four runs, in memory that is made to end in the middle of the first full one."""
    engine = PackedEngine("cuda:0", slots=4, token_budget=100_000)
    trained(engine, place.spec(quantization="nf4", train_rows=4), tmp_path / "warm", Recorder())
    params = {"effective_batch_size": 64}
    specs = [place.spec(quantization="nf4", seed=i, train_rows=128, params=params) for i in range(4)]
    for i, spec in enumerate(specs):
        engine.start(str(i), Order(spec, tmp_path / str(i)), Recorder())
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    results = {}
    try:
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**23) / total)
        while len(results) < 4:
            results.update(engine.step())
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert {result.end_reason for result in results.values()} == {EndReason.FINISHED}
    assert max(result.micro_batch_tokens for result in results.values()) < 100_000


def test_a_recorded_pass_is_the_pass_itself(
    place: Place, engine: PackedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padded to the next shape, runs without tokens among them: the same losses and adapters but for rounding."""
    specs = [place.spec(params=kind, quantization="nf4", seed=i) for i, kind in enumerate(KINDS[2:])]
    replays: list[int] = []
    replay = graphs._Recorded.replay
    monkeypatch.setattr(graphs._Recorded, "replay", lambda *args: replays.append(1) or replay(*args))
    told: dict[str, dict[str, Recorder]] = {}
    for way in ("recorded", "launched"):
        recorders = told[way] = {str(i): Recorder() for i in range(len(specs))}
        orders = {str(i): Order(spec, tmp_path / way / str(i)) for i, spec in enumerate(specs)}
        together(engine, orders, recorders)
        assert replays
        monkeypatch.setattr(graphs.Graphs, "train", lambda *_: None)
    for i in range(len(specs)):
        recorded, launched = (told[way][str(i)].losses for way in ("recorded", "launched"))
        assert recorded == pytest.approx(launched, rel=0.02)
        adapters = [adapter_of(tmp_path / way / str(i)) for way in ("recorded", "launched")]
        assert largest_difference(*adapters) < 5e-3


def test_rows_judged_by_a_recorded_pass_get_the_odds_of_a_launched_one(
    place: Place, engine: PackedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = place.spec(quantization="nf4", params={"learning_rate": 3e-3})
    trained(engine, spec, tmp_path, Recorder())
    replays: list[int] = []
    replay = graphs._Recorded.replay
    monkeypatch.setattr(graphs._Recorded, "replay", lambda *args: replays.append(1) or replay(*args))
    recorded = engine.score(spec, tmp_path / "adapter", "validation")
    assert replays
    monkeypatch.setattr(graphs.Graphs, "judge", lambda *_: None)
    launched = engine.score(spec, tmp_path / "adapter", "validation")
    assert recorded == pytest.approx(launched, abs=0.05)
    assert max(recorded) - min(recorded) > 0.5, "odds that are all alike would pass as well"


def test_dropout_keeps_its_share_and_draws_the_same_again() -> None:
    from mathverify_sweep.training.packed.kernels import dropped

    matrix = torch.ones(2_000, 1_500, device="cuda", dtype=torch.bfloat16)
    seeds = torch.full((2_000,), 2**45 + 7, device="cuda")
    kept = torch.full((2_000,), 0.75, device="cuda")
    kept[1_000:] = 1.0
    places = torch.arange(2_000, dtype=torch.int32, device="cuda") % 1_000
    once = dropped(seeds, kept, places, matrix, 3)
    assert torch.equal(once, dropped(seeds, kept, places, matrix, 3))
    assert not torch.equal(once, dropped(seeds, kept, places, matrix, 4))
    assert torch.equal(once[1_000:], matrix[1_000:])
    assert float((once[:1_000] > 0).float().mean()) == pytest.approx(0.75, abs=2e-3)
    assert float(once[:1_000].float().mean()) == pytest.approx(1.0, abs=5e-3)


def test_a_token_budget_is_measured_once_and_remembered(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    spec = place.spec(quantization="nf4", train_rows=8)
    first = trained(PackedEngine("cuda:0"), spec, tmp_path / "a", Recorder()).micro_batch_tokens
    passes: list[int] = []
    train = PackedModel.train
    monkeypatch.setattr(PackedModel, "train", lambda model, shares: passes.append(1) or train(model, shares))
    assert trained(PackedEngine("cuda:0"), spec, tmp_path / "b", Recorder()).micro_batch_tokens == first >= 128
    assert len(passes) == 1


def test_adapters_judged_in_one_pass_say_what_each_says_alone(
    place: Place, engine: PackedEngine, tmp_path: Path
) -> None:
    """Ranks of three paddings, by recorded passes; the base model's own noise of bfloat16 is a few hundredths."""
    members = []
    for i, kind in enumerate(KINDS):
        spec = place.spec(params={**kind, "learning_rate": 3e-3}, quantization="nf4", seed=i)
        trained(engine, spec, tmp_path / str(i), Recorder())
        members.append(Trained(spec, tmp_path / str(i) / "adapter"))
    rows = dataset.load(place.data).validation
    judge = Judge("cuda:0")
    for said, member in zip(judge.reader(members)(rows), members, strict=True):
        assert said == pytest.approx(judge.reader([member])(rows)[0], abs=0.2)
