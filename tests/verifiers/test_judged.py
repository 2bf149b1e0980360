"""Runs evaluated, compared and combined: every number from what the runs have said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from rich.console import Console, RenderableType

from mathverify_sweep import metrics
from mathverify_sweep.data import dataset
from mathverify_sweep.data.rows import groups
from mathverify_sweep.errors import DataError, StudyError
from mathverify_sweep.reports import lineage, verifiers
from mathverify_sweep.specs import OF_VERDICTS
from mathverify_sweep.store import runs
from mathverify_sweep.store.runs import RunRecord
from mathverify_sweep.store.tables import predictions
from mathverify_sweep.verifiers import compare, ensemble, evaluate, sampled, verifier
from tests.verifiers.conftest import Shop


def test_a_split_is_read_once_and_judged_at_the_threshold_of_validation(shop: Shop, trio: list[RunRecord]) -> None:
    asked = verifier.find(shop.database, [trio[0].run_id])
    found = evaluate.on_split(shop.database, asked, "test", shop.output, shop.judge)
    rows = dataset.load(shop.place.data).test
    assert (found.rows, found.where, found.threshold) == (len(rows), "test", asked.threshold)
    for name, interval in found.intervals.items():
        assert interval.low <= interval.estimate <= interval.high
        assert interval.estimate == pytest.approx(getattr(found, name))
    assert sum(part.rows for part in found.parts["length"]) == len(rows)
    runs.save_log_odds(shop.database, trio[0].run_id, "test", [1.0 if row.is_correct else -1.0 for row in rows])
    assert evaluate.on_split(shop.database, asked, "test", shop.output, shop.judge).auc == 1.0


def test_a_file_of_labelled_rows_is_judged_and_broken_down_by_its_source(
    shop: Shop, trio: list[RunRecord], tmp_path: Path
) -> None:
    rows = dataset.load(shop.place.data).validation
    told = [
        {"question": r.question, "answer": r.answer, "solution": r.solution, "is_correct": r.is_correct}
        | {"source": "odd" if n % 3 else "even", "kind": "x"}
        for n, r in enumerate(rows)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, told)))
    asked = verifier.find(shop.database, [trio[0].run_id])
    found = evaluate.on_file(asked, evaluate.from_file(asked, str(file), None), shop.output, shop.judge)
    kept = runs.log_odds(shop.database, trio[0].run_id, "validation")
    assert kept is not None
    labels = [row.is_correct for row in rows]
    expected = metrics.judge(kept, labels, groups(rows), threshold=asked.threshold)
    assert found.accuracy == expected.accuracy
    assert found.log_loss == pytest.approx(expected.log_loss, abs=1e-5)
    right = (kept >= asked.threshold) == labels
    parts = {part.name: part for part in found.parts["source"]}
    assert parts["even"].rows == len(rows[::3])
    assert parts["even"].accuracy.estimate == pytest.approx(np.mean(right[::3]))
    by_kind = evaluate.from_file(asked, str(file), "kind")
    assert set(by_kind.kinds) == {"x"}
    with pytest.raises(DataError, match="no column 'colour'"):
        evaluate.from_file(asked, str(file), "colour")


def test_a_run_that_judges_is_shown_as_one_on_a_file_of_correct_rows_too(
    shop: Shop, trio: list[RunRecord], tmp_path: Path
) -> None:
    rows = [row for row in dataset.load(shop.place.data).validation if row.is_correct]
    told = [{"question": r.question, "answer": r.answer, "solution": r.solution, "is_correct": True} for r in rows]
    file = tmp_path / "correct.jsonl"
    file.write_text("\n".join(map(json.dumps, told)))
    asked = verifier.find(shop.database, [trio[0].run_id])
    found = evaluate.on_file(asked, evaluate.from_file(asked, str(file), None), shop.output, shop.judge)
    shown = text_of(verifiers.evaluation(found))
    assert "accuracy at threshold" in shown
    assert "pass@1" not in shown


def solves(asked: verifier.Verifier) -> verifier.Verifier:
    """The same run, as one that solves."""
    model = asked.models[0]
    spec = model.spec.model_copy(update={"data": model.spec.data.model_copy(update={"task": "solving"})})
    return replace(asked, models=(replace(model, spec=spec),), threshold=0.0)


def test_of_a_run_that_solves_nothing_but_pass_at_1_is_told_and_how_many_rows_were_left_out(
    shop: Shop, trio: list[RunRecord], tmp_path: Path
) -> None:
    asked = solves(verifier.find(shop.database, [trio[0].run_id]))
    file = tmp_path / "gsm8k.jsonl"
    answers = ["3 + 4 = 7\n#### 7", "So it is 8.", "It is so.", "It takes 10^3."]
    file.write_text("\n".join(json.dumps({"question": f"Q{n}?", "answer": a}) for n, a in enumerate(answers)))
    labelled = evaluate.from_file(asked, str(file), None)
    found = evaluate.evaluation(asked, labelled, np.array([1.0, -1.0]))
    assert (found.rows, found.left_out_rows, found.accuracy, list(found.intervals)) == (2, 2, 0.5, ["accuracy"])
    assert not OF_VERDICTS & json.loads(found.model_dump_json()).keys()
    shown = text_of(verifiers.evaluation(found))
    assert "pass@1" in shown
    assert "left out, no final number" in shown
    file.write_text(json.dumps({"question": "Why?", "answer": "It is so."}))
    with pytest.raises(DataError, match="has a final number; 1 have none, no row is left"):
        evaluate.from_file(asked, str(file), None)


def test_solutions_are_drawn_from_one_run_that_solves(shop: Shop, trio: list[RunRecord]) -> None:
    both = verifier.find(shop.database, [run.run_id for run in trio[:2]])
    labelled = evaluate.of_split(both, "test")
    with pytest.raises(StudyError, match="from one run at a time, got 2"):
        sampled.sampled(both, labelled, shop.output, shop.judge, 2, 1.0)
    one = verifier.find(shop.database, [trio[0].run_id])
    with pytest.raises(StudyError, match="writes none"):
        sampled.sampled(one, labelled, shop.output, shop.judge, 2, 1.0)


def text_of(shown: RenderableType) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(shown)
    return captured.get()


def test_every_pair_of_runs_is_compared_and_only_on_rows_that_both_have_read(shop: Shop, trio: list[RunRecord]) -> None:
    ids = [run.run_id for run in trio]
    found = compare.compare(shop.database, ids, "validation")
    assert [(pair.first, pair.second) for pair in found.pairs] == [(ids[0], ids[1]), (ids[0], ids[2]), (ids[1], ids[2])]
    for pair in found.pairs:
        one = pair.comparison
        assert one.both_right + one.only_first_right + one.only_second_right + one.both_wrong == found.rows
        assert one.difference.estimate == pytest.approx((one.only_first_right - one.only_second_right) / found.rows)
    with pytest.raises(StudyError, match="two runs or more"):
        compare.compare(shop.database, ids[:1], "validation")
    with pytest.raises(StudyError, match=f"no predictions on gate. Make them: mvsweep evaluate {ids[0]} --split gate"):
        compare.compare(shop.database, ids, "gate")


def test_an_ensemble_takes_who_helps_the_mean_and_nobody_else(shop: Shop, trio: list[RunRecord]) -> None:
    """Two runs whose mistakes are made good by each other, and one that knows nothing."""
    rows = dataset.load(shop.place.data).validation
    truth = np.array([3.0 if row.is_correct else -3.0 for row in rows])
    noise = np.random.default_rng(0).normal(scale=4, size=len(rows))
    before = [runs.log_odds(shop.database, run.run_id, "validation") for run in trio]
    try:
        for run, odds in zip(trio, (truth + noise, truth - noise, -truth), strict=True):
            runs.save_log_odds(shop.database, run.run_id, "validation", odds.tolist())
        others = {run.run_id for run in runs.runs(shop.database, "tests")} - {run.run_id for run in trio}
        models = ensemble.candidates(shop.database, "tests")
        found = ensemble.choose(shop.database, "tests", models, top=3)
        members = [member.run_id for member in found.members]
        assert set(members[:2]) == {trio[0].run_id, trio[1].run_id} or others & set(members)
        assert trio[2].run_id not in members
        assert found.members[1].metrics.log_loss < found.members[0].metrics.log_loss
        assert found.members[1].metrics.accuracy == 1.0
        assert found.against_the_first.difference.estimate > 0
        assert len(ensemble.choose(shop.database, "tests", models, top=1).members) == 1
        threshold = verifier.find(shop.database, members[:2]).threshold
        assert threshold == metrics.fitted_threshold(truth, truth > 0)
    finally:
        for run, old in zip(trio, before, strict=True):
            assert old is not None
            runs.save_log_odds(shop.database, run.run_id, "validation", old.tolist())


def test_runs_that_have_not_read_validation_read_it_together_before_they_are_chosen_from(
    shop: Shop, trio: list[RunRecord]
) -> None:
    said = [verifier.kept_log_odds(shop.database, verifier.model(run), "validation") for run in trio]
    lost = [run.run_id for run in trio[1:]]
    with shop.database.begin() as connection:
        connection.execute(sa.delete(predictions).where(predictions.c.run_id.in_(lost)))
    candidates = ensemble.candidates(shop.database, "tests")
    unread = verifier.unread(shop.database, candidates, "validation")
    assert [model.run.run_id for model in unread] == lost
    verifier.have_read(unread, "validation", verifier.Place(shop.database, shop.output, shop.judge))
    for model, before in zip(map(verifier.model, trio), said, strict=True):
        assert verifier.kept_log_odds(shop.database, model, "validation") == pytest.approx(before, abs=1e-4)
    assert ensemble.choose(shop.database, "tests", candidates, top=3).members


def test_a_run_has_names(shop: Shop, trio: list[RunRecord]) -> None:
    assert verifier.named(shop.database, trio[1].run_id[:9]).run_id == trio[1].run_id
    assert verifier.named(shop.database, "tests:1").run_id == trio[1].run_id
    values = {run.run_id: run.result.value for run in runs.runs(shop.database, "tests") if run.result}
    assert values[verifier.named(shop.database, "tests:best").run_id] == max(values.values())
    with pytest.raises(StudyError, match="has no run '99'"):
        verifier.named(shop.database, "tests:99")


def test_a_lineage_has_rows_seed_code_and_versions_and_commands(shop: Shop, trio: list[RunRecord]) -> None:
    found = lineage.of(shop.database, trio[1])
    (step,) = found.steps
    assert step.code is not None
    assert step.code.packages["torch"]
    assert step.code.commit is None or len(step.code.commit) == 40
    assert len(str(step.rows_digest)) == 64
    assert step.rows_digest != lineage.of(shop.database, trio[0]).steps[0].rows_digest, "another seed, another order"
    assert (step.spec.seed, step.optimizer_steps, step.begins) == (1, 8, "a fresh adapter")
    assert found.data_fingerprint == shop.place.fingerprint
    assert f"mvsweep lineage {trio[1].run_id} --sweep-file again.yaml" in lineage.told(found)
