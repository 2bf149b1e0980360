"""Verdicts come in input order, as a file that can be handed in, and a kill costs a chunk and no verdict."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mathverify_sweep.data import dataset
from mathverify_sweep.errors import DataError
from mathverify_sweep.store import runs
from mathverify_sweep.store.runs import RunRecord
from mathverify_sweep.verifiers import predict as page
from mathverify_sweep.verifiers import verifier
from tests.verifiers.conftest import Shop


def write_questions(path: Path, count: int) -> None:
    """Sums without labels, with an id that is no number."""
    dice = random.Random(1)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "question", "answer", "solution"])
        for n in range(count):
            terms = [dice.randint(1, 99) for _ in range(dice.randint(1, 4))]
            told, total = " + ".join(map(str, terms)), sum(terms) + dice.choice([0, 1])
            writer.writerow([f"row {n}, {dice.random():.3f}", f"What is {told}?", total, f"{told} = {total}."])


def read(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def start(shop: Shop, run: RunRecord, data: Path, target: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mathverify_sweep", "predict", run.run_id, "--data", str(data), "-o", str(target)]
    command += ["--storage", shop.url, "--output", str(shop.output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.slow
def test_a_killed_prediction_goes_on_and_writes_the_same_file(
    shop: Shop, trio: list[RunRecord], tmp_path: Path
) -> None:
    data, whole, cut = tmp_path / "test.csv", tmp_path / "whole.csv", tmp_path / "cut.csv"
    write_questions(data, 12 * page.CHUNK + 7)
    journal = cut.with_name("cut.csv.partial")

    killed = start(shop, trio[0], data, cut)
    until = time.monotonic() + 120
    while not journal.exists() or journal.read_bytes().count(b"\n") < 4:
        assert time.monotonic() < until
        assert killed.poll() is None, killed.communicate()[0].decode()
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not cut.exists()
    kept = journal.read_bytes()
    journal.write_bytes(kept[:-9])  # the last line may be torn as well

    for target in (cut, whole):
        again = start(shop, trio[0], data, target)
        told = again.communicate()[0].decode()
        assert again.returncode == 0, told
    assert cut.read_bytes() == whole.read_bytes()
    assert len(read(whole)) == 12 * page.CHUNK + 8
    assert {row[1] for row in read(whole)[1:]} == {"True", "False"}
    assert not journal.exists()


def test_what_is_in_the_journal_is_not_judged_again_unless_the_question_is_another(
    shop: Shop, trio: list[RunRecord], tmp_path: Path
) -> None:
    write_questions(tmp_path / "test.csv", 10)
    asked, target = verifier.find(shop.database, [trio[0].run_id]), tmp_path / "out.csv"
    given = page.from_file(asked, str(tmp_path / "test.csv"), None)
    forged = {"first": trio[0].run_id, "start": 0, "log_odds": [[9.0] * 10]}
    lines = [{"of": page._fingerprint(asked, given)}, forged]
    journal = tmp_path / "out.csv.partial"
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert page.predict(asked, given, target, shop.output, shop.judge) == 10
    journal.write_text("".join(json.dumps(line) + "\n" for line in [{"of": "another"}, forged]))
    assert page.predict(asked, given, target, shop.output, shop.judge) < 10


def test_verdicts_are_those_of_evaluation_in_input_order_under_the_files_own_ids(
    shop: Shop, trio: list[RunRecord], tmp_path: Path
) -> None:
    rows = dataset.load(shop.place.data).validation
    lines = [
        json.dumps({"question": r.question, "answer": r.answer, "solution": r.solution, "name": f"n{number}"})
        for number, r in enumerate(rows)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    asked = verifier.find(shop.database, [trio[0].run_id])
    odds = runs.log_odds(shop.database, trio[0].run_id, "validation")
    assert odds is not None
    expected = [str(bool(value >= asked.threshold)) for value in odds]
    for column, names in (("name", [f"n{n}" for n in range(len(rows))]), (None, [str(n) for n in range(len(rows))])):
        given = page.from_file(asked, str(tmp_path / "rows.jsonl"), column)
        page.predict(asked, given, tmp_path / "out.csv", shop.output, shop.judge)
        assert read(tmp_path / "out.csv") == [
            ["ID", "is_correct"],
            *map(list, zip(names, expected, strict=True)),
        ]


def test_several_runs_give_the_mean_of_their_log_odds(shop: Shop, trio: list[RunRecord], tmp_path: Path) -> None:
    write_questions(tmp_path / "test.csv", 40)
    together = verifier.find(shop.database, [run.run_id for run in trio])
    given = page.from_file(together, str(tmp_path / "test.csv"), None)
    page.predict(together, given, tmp_path / "out.csv", shop.output, shop.judge)
    single = [verifier.find(shop.database, [run.run_id]) for run in trio]
    odds = np.mean([verifier.row_log_odds(one, given.rows, shop.output, shop.judge) for one in single], axis=0)
    assert [row[1] for row in read(tmp_path / "out.csv")[1:]] == [str(bool(o >= together.threshold)) for o in odds]


def test_a_file_that_cannot_be_read_or_written_is_said(shop: Shop, trio: list[RunRecord], tmp_path: Path) -> None:
    asked = verifier.find(shop.database, [trio[0].run_id])
    (tmp_path / "odd.csv").write_text("question,solution\nWhat?,So.\n")
    with pytest.raises(DataError, match="no column 'answer'"):
        page.from_file(asked, str(tmp_path / "odd.csv"), None)
    write_questions(tmp_path / "test.csv", 3)
    given = page.from_file(asked, str(tmp_path / "test.csv"), None)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        page.predict(asked, given, tmp_path / "file" / "out.csv", shop.output, shop.judge)
