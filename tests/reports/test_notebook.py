"""The notebook runs from top to bottom on a study, and keeps no output in the repository."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from mathverify_sweep.reports import notebook
from mathverify_sweep.store.database import connect, upgrade
from tests.example_study import NAME, empty, example_database

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "study.ipynb"


def test_the_notebook_draws_every_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDY", NAME)
    monkeypatch.setenv("OPTUNA_STORAGE", f"sqlite:///{tmp_path / 'example.sqlite3'}")
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    monkeypatch.setenv("PLOTLY_RENDERER", "plotly_mimetype")
    book = nbformat.read(NOTEBOOK, as_version=4)
    with example_database(tmp_path):
        NotebookClient(
            book, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
        ).execute()
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    figures = [output for output in outputs if "application/vnd.plotly.v1+json" in output.get("data", {})]
    assert len(figures) == 8
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    said = "".join(str(output.get("data", {}).get("text/plain", "")) for output in outputs)
    assert "bag of words" in said


def test_the_notebook_in_the_repository_has_no_output_and_reads_through_reports_only() -> None:
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)
    imports = [line for cell in cells for line in cell.source.splitlines() if "mathverify_sweep" in line]
    assert imports == ["from mathverify_sweep.reports import notebook, terminal"]


def test_a_new_study_can_be_read_too(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new.sqlite3'}"
    engine = connect(url)
    upgrade(engine)
    empty(engine).close()
    engine.dispose()
    found = notebook.read(url, NAME)
    assert found.panels == {}
    assert [row.kind for row in found.leaderboard.rows] == ["baseline", "baseline"]
