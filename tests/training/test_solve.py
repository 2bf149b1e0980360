"""Claims about solving: what is trained on, what both engines make of it, and what generation comes to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mathverify_sweep.data import dataset
from mathverify_sweep.data.encode import encode_solving
from mathverify_sweep.data.prompts import SOLVING
from mathverify_sweep.data.solving import written
from mathverify_sweep.specs import RunResult, RunSpec
from mathverify_sweep.states import EndReason
from mathverify_sweep.training import solve
from mathverify_sweep.training.engine import PackedEngine
from mathverify_sweep.training.judge import Judge, Trained
from mathverify_sweep.training.material import Library
from mathverify_sweep.training.reference import ReferenceEngine
from tests.training.packed.company import adapter_of, largest_difference
from tests.training.tiny_fixture import Place, Recorder, trained

CPU = torch.device("cpu")
HOW = solve.Writing(longest=8)


def solving(place: Place, **changes: object) -> RunSpec:
    data = place.data.model_copy(update={"task": "solving"})
    fingerprint = dataset.load(data).fingerprint
    spec = place.spec(data=data, data_fingerprint=fingerprint, objective="pass_at_1", max_new_tokens=8)
    return spec.model_copy(update=changes)


def test_a_solution_and_its_end_are_learnt_and_nothing_of_the_prompt(place: Place) -> None:
    spec = solving(place)
    material = Library(CPU).material(spec)
    tokenizer = material.base.tokenizer
    data = Library(CPU).data(spec.data, spec.data_fingerprint)
    (row,) = encode_solving(data.train[:1], SOLVING["plain"], tokenizer, 128, tokenizer.eos_token_id).rows
    learnt = row.prompt_ids[len(row.prompt_ids) - row.learnt + 1 :]
    assert tokenizer.decode(learnt) == written(data.train[0])
    assert row.last((5, 6)) == tokenizer.eos_token_id
    asked = material.validation.rows[0]
    assert tokenizer.decode(asked.prompt_ids).endswith("Solution:")
    assert material.answers is not None
    assert len(material.answers) == len(material.labels) == len(data.validation)


def test_what_is_generated_does_not_hang_on_who_is_in_the_batch(place: Place) -> None:
    spec = solving(place)
    material = Library(CPU).material(spec)
    rows = list(material.validation.rows)[:12]
    alone = [solve._written(material.base, material.base.model, [row], HOW)[0] for row in rows]
    together = solve._written(material.base, material.base.model, rows, HOW)
    assert together == alone
    assert any(alone)


def test_a_row_is_solved_when_what_is_written_arrives_at_its_answer(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    material = Library(CPU).material(solving(place))
    assert material.answers is not None
    told = {at: f"so {answer}" if at % 2 else "no" for at, answer in enumerate(material.answers)}
    monkeypatch.setattr(solve, "_written", lambda _base, _model, rows, _how: [told[row.index] for row in rows])
    found = material.log_odds(material.base.model, material.first(7), 7)
    assert list(found) == [-1, 1, -1, 1, -1, 1, -1]


def test_draws_come_again_by_the_seed_and_are_as_many_as_asked_for(place: Place) -> None:
    material = Library(CPU).material(solving(place))
    rows = list(material.validation.rows)[:5]
    draws = [
        solve.finals(material.base, material.base.model, rows, 6, 200, solve.Writing(8, 3, 1.0, seed))
        for seed in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2]
    assert [len(own) for own in draws[0]] == [3] * 6
    assert draws[0][5] == (None, None, None), "a row whose question does not fit"


def test_a_run_that_solves_ends_with_pass_at_1_and_an_adapter(place: Place, tmp_path: Path) -> None:
    result = trained(ReferenceEngine("cpu"), solving(place, rungs=(24,), rung_rows=5), tmp_path, Recorder())
    assert result.end_reason is EndReason.FINISHED
    assert result.metrics is not None
    assert result.value == result.metrics.accuracy
    assert set(result.log_odds) <= {-1.0, 1.0}
    told = result.model_dump(mode="json")["metrics"]
    assert set(told) == {"task", "rows", "accuracy", "accuracy_low", "accuracy_high"}, "the others would say nothing"
    assert RunResult.model_validate_json(result.model_dump_json()) == result


def test_a_stage_that_solves_is_read_on_its_held_back_rows_and_on_none_that_it_was_trained_on(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = solving(place, slices=(12, 24), slice_rows=8)
    answers = Library(CPU).material(spec).answers
    assert answers is not None
    told = {at: answer if at % 3 else "none" for at, answer in enumerate(answers)}
    monkeypatch.setattr(solve, "_written", lambda _base, _model, rows, _how: [told[row.index] for row in rows])
    result = trained(ReferenceEngine("cpu"), spec, tmp_path, Recorder())
    assert [(found.met_rows, found.met_accuracy) for found in result.slices] == [(0, None), (0, None)]
    at = 0
    for found in result.slices:
        places = range(at, at := at + found.held_back_rows)
        assert found.held_back_accuracy == pytest.approx(sum(place % 3 > 0 for place in places) / len(places))


def test_a_judge_says_of_validation_what_a_run_that_solves_has_said(place: Place, tmp_path: Path) -> None:
    specs = [solving(place, seed=seed) for seed in (0, 1)]
    folders = [tmp_path / str(spec.seed) for spec in specs]
    engine = ReferenceEngine("cpu")
    expected = [trained(engine, spec, folder, Recorder()).log_odds for spec, folder in zip(specs, folders, strict=True)]
    members = [Trained(spec, folder / "adapter") for spec, folder in zip(specs, folders, strict=True)]
    said = Judge("cpu").reader(members)(dataset.load(specs[0].data).validation)
    assert [tuple(each) for each in said] == expected


def test_a_run_that_solves_gets_no_slot_beside_one_that_judges_on_the_same_base(place: Place, tmp_path: Path) -> None:
    engine = PackedEngine("cpu")
    trained(engine, place.spec(train_rows=8), tmp_path / "judges", Recorder())
    result = trained(engine, solving(place), tmp_path / "solves", Recorder())
    assert result.end_reason is EndReason.CRASHED
    assert "Use the reference engine" in result.message


def test_a_template_of_ones_own_asks_for_the_question_alone(place: Place, tmp_path: Path) -> None:
    spec = solving(place, prompt_texts={"mine": "{question} Work it out:"})
    spec = spec.model_copy(update={"params": spec.params.model_copy(update={"prompt_template": "mine"})})
    result = trained(ReferenceEngine("cpu"), spec, tmp_path, Recorder(), checkpoint_seconds=0.0)
    assert result.end_reason is EndReason.FINISHED


@pytest.mark.parametrize("prompt_weight", [0.0, 0.3])
def test_steps_over_solutions_are_the_same_in_both_engines(place: Place, tmp_path: Path, prompt_weight: float) -> None:
    """The packed engine trains what it cannot judge yet; its looks, which this test does not read, mean nothing."""

    class Trains(PackedEngine):
        def unsupported(self, *_: object) -> None:
            return None

    spec = solving(place)
    params = spec.params.model_copy(update={"prompt_loss_weight": prompt_weight})
    spec = spec.model_copy(update={"params": params, "micro_batch_tokens": 150})
    theirs, ours = Recorder(), Recorder()
    trained(ReferenceEngine("cpu"), spec, tmp_path / "reference", theirs)
    trained(Trains("cpu"), spec, tmp_path / "packed", ours)
    assert len(ours.losses) == 8
    assert ours.losses == pytest.approx(theirs.losses, abs=1e-5)
    assert largest_difference(adapter_of(tmp_path / "reference"), adapter_of(tmp_path / "packed")) < 1e-5


def test_the_packed_engine_says_that_it_does_not_generate(place: Place) -> None:
    assert "cache" in str(PackedEngine("cpu").unsupported(solving(place).base_model, "solving"))
