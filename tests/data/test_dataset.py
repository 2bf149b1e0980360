"""A DataSpec becomes fixed, fingerprinted splits, or one clear error."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import pytest

from mathverify_sweep.data.dataset import VerificationData, groups, load
from mathverify_sweep.data.splits import SPLITS
from mathverify_sweep.errors import DataError
from mathverify_sweep.specs import ColumnsSpec, DataSpec

POOL = Path(__file__).parents[3] / "shared" / "data" / "verification_pool.parquet"


def _file(path: Path, questions: int = 60, **columns: str) -> str:
    """Four rows for each question, every third one correct; `columns` adds a column with one value."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "answer", "solution", "is_correct", *columns])
        for number in range(questions * 4):
            question = f"How much is {number // 4}?"
            writer.writerow([question, number, f"It is {number}.", number % 3 == 0, *columns.values()])
    return str(path)


@pytest.fixture
def rows(tmp_path: Path) -> str:
    return _file(tmp_path / "rows.csv")


def test_a_file_is_loaded_split_ordered_and_fingerprinted(rows: str) -> None:
    data = load(DataSpec(source=rows))
    assert sum(len(data.split(name)) for name in SPLITS) == 240
    assert data == load(DataSpec(source=rows))
    assert len(data.fingerprint) == 64
    assert data.dropped == {}


def test_the_generated_default_loads_and_no_question_straddles() -> None:
    data = load(DataSpec(generated_rows=2000))
    questions = [set(groups(data.split(name))) for name in SPLITS]
    assert sum(map(len, questions)) == len(set().union(*questions))
    assert data.fingerprint != load(DataSpec(generated_rows=2000, seed=1)).fingerprint


def test_a_longer_run_sees_a_superset_of_a_shorter_ones_rows(rows: str) -> None:
    data = load(DataSpec(source=rows, balance=True))
    assert data.training_rows(40)[:20] == data.training_rows(20)
    assert data.dropped["balance"] > 0
    with pytest.raises(DataError, match=r"train_rows must be at most the \d+ training rows there are, got 5000"):
        data.training_rows(5000)


def test_validation_rows_keeps_as_many_and_counts_the_rest(rows: str) -> None:
    everything = load(DataSpec(source=rows, validation_share=0.4))
    data = load(DataSpec(source=rows, validation_share=0.4, validation_rows=50))
    assert len(data.validation) == 50
    assert set(data.validation) < set(everything.validation)
    assert data.dropped == {"validation_rows": len(everything.validation) - 50}
    assert data.fingerprint != everything.fingerprint


def test_fewer_validation_rows_than_asked_is_an_error(rows: str) -> None:
    with pytest.raises(DataError, match=r"rows\.csv: data\.validation_rows must be at most the \d+ rows .* got 500"):
        load(DataSpec(source=rows, validation_rows=500))


def test_rows_that_are_all_of_one_class_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("question,answer,solution,is_correct\n" + "".join(f"q{i},1,s,yes\n" for i in range(100)))
    with pytest.raises(
        DataError, match=r"rows\.csv: there must be rows of both classes, got 100 rows that are all True"
    ):
        load(DataSpec(source=str(path)))


def test_a_split_without_rows_is_an_error_where_rows_are_needed(tmp_path: Path) -> None:
    source = _file(tmp_path / "rows.csv", split="train")
    with pytest.raises(DataError, match="split 'validation': there must be rows, got none"):
        load(DataSpec(source=source, split_column="split"))


def test_a_file_without_rows_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("question,answer,solution,is_correct\n")
    with pytest.raises(DataError, match=r"rows\.csv: there must be rows, got none"):
        load(DataSpec(source=str(tmp_path / "rows.csv")))


def test_a_missing_split_column_is_named_with_the_nearest(tmp_path: Path) -> None:
    source = _file(tmp_path / "rows.csv", part="train", split="train")
    with pytest.raises(DataError, match=r"no column 'splits' \(the nearest is 'split'\); set data\.split_column"):
        load(DataSpec(source=source, split_column="splits"))


def test_a_split_column_of_generated_rows_is_an_error() -> None:
    with pytest.raises(DataError, match=r"data\.split_column: generated rows"):
        load(DataSpec(split_column="split"))


def test_mapped_columns_are_loaded(rows: str, tmp_path: Path) -> None:
    text = Path(rows).read_text().replace("is_correct", "label", 1)
    (tmp_path / "mapped.csv").write_text(text)
    mapped = load(DataSpec(source=str(tmp_path / "mapped.csv"), columns=ColumnsSpec(is_correct="label")))
    assert mapped.fingerprint == load(DataSpec(source=rows)).fingerprint


@pytest.mark.skipif(not POOL.exists(), reason=f"the pool of real solutions is not at {POOL}")
def test_the_real_pool_loads_in_seconds_with_the_splits_it_names() -> None:
    start = time.process_time()
    data: VerificationData = load(DataSpec(source=str(POOL), split_column="split"))
    assert time.process_time() - start < 8  # 2 s on an idle core
    assert [len(data.split(name)) for name in SPLITS] == [29824, 3733, 3883, 2053]
    assert data.fingerprint == "81d1e62b7ea5804dee494b3bfc1d7b637e0b90d4a95248ebce56e9eafb1a798d"
