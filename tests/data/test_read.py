"""Files as they come from people: every one is read as it stands, or refused with its name, its row and the reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mathverify_sweep.data import read
from mathverify_sweep.data.read import is_local
from mathverify_sweep.data.rows import Row, rows_of
from mathverify_sweep.data.write import write
from mathverify_sweep.errors import DataError
from mathverify_sweep.specs import ColumnsSpec

ROWS = [
    Row("Who has 7?", "007", 'He said "seven",\nthen 7.', True),
    Row("Wie viele Äpfel?", "NA", "2020-01-01 …", False),
    Row("Null?", "1,000.50", "None\ttrue", True),
]
RECORD = {"question": "q", "answer": "1", "solution": "s", "is_correct": True}


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_rows_come_back_from_every_kind_of_file_as_they_were_written(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows{suffix}"
    write(ROWS, path)
    assert rows_of(read.read(str(path)), ColumnsSpec()) == ROWS
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_local_file_leaves_no_copy_behind(tmp_path: Path) -> None:
    write(ROWS, tmp_path / "rows.parquet")
    code = (
        "import sys; from mathverify_sweep.data import read; read.read(sys.argv[1]); assert 'torch' not in sys.modules"
    )
    home, scratch = tmp_path / "home", tmp_path / "scratch"
    scratch.mkdir()
    env = os.environ | {"HF_HOME": str(home), "TMPDIR": str(scratch), "HOME": str(home)}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "rows.parquet")], env=env, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    assert not [p for folder in (home, scratch) for p in folder.rglob("*") if p.is_file()]


@pytest.mark.parametrize(
    ("source", "local"),
    [
        ("ad6398/nyu-dl-teach-maths-comp", False),
        ("gsm8k", False),
        ("user/data.v2", False),
        ("rows.parquet", True),
        ("folder/rows.CSV", True),
        ("rows.json", True),
        ("/somewhere/rows", True),
        ("./rows", True),
        ("a/b/c", True),
        ("~/rows.jsonl", True),
    ],
)
def test_a_file_is_told_from_a_hub_name(source: str, local: bool) -> None:
    assert is_local(source) is local


def _write_text(name: str, text: str | bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return make


BAD_FILES = {
    "unknown suffix": (_write_text("rows.xlsx", "x"), "must be a .parquet, .csv, .jsonl file or a hub data set"),
    "no suffix": (_write_text("rows", "x"), "without suffix"),
    "not parquet": (_write_text("rows.parquet", "question,answer\n"), "not a readable parquet file"),
    "empty parquet": (_write_text("rows.parquet", ""), "not a readable parquet file"),
    "empty csv": (_write_text("rows.csv", ""), "the first line must name each column once"),
    "column twice": (_write_text("rows.csv", "question,question\n1,2\n"), "must name each column once"),
    "short row": (_write_text("rows.csv", "a,b\n1,2\n1\n"), "row 2 has 1 fields where the header has 2"),
    "open quote": (_write_text("rows.csv", 'a,b\n1,"2\n'), "not valid CSV at line"),
    "csv not utf-8": (_write_text("rows.csv", b"a,b\n1,2\ncaf\xe9,2\n"), "line 3 is not valid UTF-8"),
    "jsonl not utf-8": (_write_text("rows.jsonl", b'{"a": 1}\n{"a": "\xff"}\n'), "line 2 is not valid UTF-8"),
    "not json": (_write_text("rows.jsonl", '{"a": 1}\n\n{"a": \n'), "line 3 is not valid JSON"),
    "not an object": (_write_text("rows.jsonl", '{"a": 1}\n[1]\n'), "line 2 must be a JSON object, got list"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_an_unreadable_file_is_named_with_the_reason(case: str, tmp_path: Path) -> None:
    make, message = BAD_FILES[case]
    path = make(tmp_path)
    with pytest.raises(DataError) as error:
        read.read(str(path))
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_a_missing_file_a_folder_and_a_revision_of_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such file \(looked in"):
        read.read(str(tmp_path / "rows.csv"))
    with pytest.raises(DataError, match="got a folder"):
        read.read(str(tmp_path))
    with pytest.raises(DataError, match=r"data\.revision is for data sets on the hub"):
        read.read(str(tmp_path / "rows.csv"), "main")


def test_parquet_with_broken_utf8_names_column_and_row(tmp_path: Path) -> None:
    raw = pa.array([b"fine", b"caf\xe9", b"fine"], pa.binary())
    broken = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    pq.write_table(pa.table({"question": broken}), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"column 'question', row 2: must be valid UTF-8"):
        read.read(str(tmp_path / "rows.parquet"))


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = _write_text("rows.csv", "\ufeffquestion,answer\r\na,b\r\n\r\n")(tmp_path)
    assert read.read(str(path)).columns == {"question": ["a"], "answer": ["b"]}


def test_jsonl_keeps_types_and_fills_keys_that_are_missing_with_nothing(tmp_path: Path) -> None:
    lines = [RECORD | {"answer": 21}, RECORD | {"answer": "twenty"}, {"question": "q"}]
    path = _write_text("rows.jsonl", "\n".join(map(json.dumps, lines)))(tmp_path)
    assert read.read(str(path)).columns["answer"] == [21, "twenty", None]


def test_a_hub_data_set_gives_its_train_split(tmp_path: Path) -> None:
    # `datasets` reads a folder as it reads a repository of the hub.
    write(ROWS, tmp_path / "train.csv")
    write(ROWS[:1], tmp_path / "test.csv")
    code = (
        "import sys; from mathverify_sweep.data import read;"
        "print(len(read._hub(sys.argv[1], None).columns['question']))"
    )
    env = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=env, capture_output=True, text=True)
    assert done.stdout == "3\n", done.stderr


def test_a_hub_data_set_out_of_reach_says_what_to_check(tmp_path: Path) -> None:
    code = "from mathverify_sweep.data import read; read.read('ad6398/nyu-dl-teach-maths-comp')"
    env = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert "HubUnreachable: ad6398/nyu-dl-teach-maths-comp: no such file here, and the hub does" in done.stderr
    assert "Check data.source and the network" in done.stderr


def test_writing_to_an_unknown_suffix_or_an_impossible_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must end in \.parquet, \.csv, \.jsonl"):
        write(ROWS, tmp_path / "rows.xlsx")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        write(ROWS, tmp_path / "file" / "rows.csv")
