"""Claims about names that somebody chose to do harm: they are refused, or stay names, wherever a name goes."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy.engine import Engine

from mathverify_sweep import paths, sweep_file
from mathverify_sweep.errors import ConfigError, MvsweepError, StudyError
from mathverify_sweep.store import runs, studies
from mathverify_sweep.store.studies import StudyRecord
from mathverify_sweep.study import study, views
from tests.flows.commands import Shell

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOSTILE = (
    "../../etc/passwd",
    "/etc/passwd",
    "..",
    "a/../../b",
    "..\\..\\windows",
    "C:\\x",
    "con",
    "~root",
    "s'; DROP TABLE mv_runs; --",
    'x" OR "1"="1',
    "%_",
    "$(touch /tmp/mvsweep-was-here)",
    "`id`",
    "a;b|c&d",
    "-rf",
    "--storage=sqlite:///x",
    "a\nERROR forged log line",
    "a\rb",
    "nul\0byte",
    "\u202ecod.exe",
    "half \ud800",
    "<script>alert(1)</script>",
    "[[red]]x[/]",
    "{0.__class__}",
    "%s%s%n",
    "x" * 10_000,
    " ",
    ".",
)
ids = [ascii(name)[:30] for name in HOSTILE]
each = pytest.mark.parametrize("name", HOSTILE, ids=ids)


@each
def test_no_sweep_file_makes_a_study_of_that_name(name: str, tmp_path: Path) -> None:
    if name == "con":  # a harmless name but for Windows, where its folder gets another one
        return
    with pytest.raises(ConfigError) as caught:
        sweep_file.validate({"study": name}, "x.yaml", tmp_path)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith("study: ")
    assert len(str(caught.value)) < 500
    assert str(caught.value).count("\n") == 1


@each
def test_what_a_study_writes_stays_in_the_output_folder(name: str, tmp_path: Path) -> None:
    for path in (
        paths.study_folder(tmp_path, name),
        paths.run_folder(tmp_path, "s", name, name),
        paths.outbox_file(tmp_path, name, name),
        paths.report_file(tmp_path, name),
        paths.engine_log(tmp_path, name, name),
    ):
        assert tmp_path in Path(os.path.normpath(path)).parents
        path.mkdir(parents=True)


def test_two_names_never_share_a_folder(tmp_path: Path) -> None:
    folders = {paths.study_folder(tmp_path, name) for name in HOSTILE}
    assert len(folders) == len(HOSTILE)


@each
def test_asking_for_a_study_of_that_name_is_one_line(name: str, engine: Engine) -> None:
    studies.create(engine, StudyRecord("s", "{}", "f", None, None, NOW))
    for ask in (
        lambda: studies.get(engine, name),
        lambda: study.open_study(engine, name),
        lambda: views.trials(engine, name),
        lambda: studies.stop(engine, name, name),
        lambda: runs.get(engine, name),
    ):
        with pytest.raises(StudyError) as caught:
            ask()
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500
    assert studies.names(engine) == ["s"]


@each
def test_a_sweep_file_of_that_name_is_found_nowhere(name: str) -> None:
    assert sweep_file.find(name) is None
    with pytest.raises(MvsweepError):
        sweep_file.require(name)


@pytest.mark.parametrize("backend", ["sqlite"])
def test_the_command_line_says_it_in_one_line(tmp_path: Path, database_url: str) -> None:
    shell = Shell.at(tmp_path / "work", database_url)
    for name in ("../../etc/passwd", "$(touch was-here)", "<script>\nx", "[[red]]x[/]", "y" * 10_000):
        said = shell.run("status", name, code=2)
        assert "Traceback" not in said
        assert len(said) < 1_000
    assert sorted(file.name for file in shell.folder.iterdir()) == ["flow.yaml"]
