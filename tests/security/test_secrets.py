"""Secrets never reach what is written: planted ones are looked for in every file, in the database and on the screen."""

from __future__ import annotations

import logging
import traceback
from pathlib import Path

import pytest
import sqlalchemy as sa

from mathverify_sweep import redaction
from mathverify_sweep.errors import StorageError
from mathverify_sweep.specs import RunResult
from mathverify_sweep.states import EndReason
from mathverify_sweep.store.database import connect, driver_url, upgrade
from tests.flows.commands import SWEEP, Shell, ended

PASSWORD = "planted/Passw0rd@1"
WANDB_KEY = "0123456789abcdef0123456789abcdef01234567"
HUB_TOKEN = "hf_PlantedTokenOfTheHub"
SPELLED = "planted%2FPassw0rd%401"
SECRETS = (PASSWORD, SPELLED, WANDB_KEY, HUB_TOKEN, "Passw0rd")


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", WANDB_KEY)
    monkeypatch.setenv("HF_TOKEN", HUB_TOKEN)
    monkeypatch.setenv("OPTUNA_STORAGE", f"postgresql://bo:{SPELLED}@db/x")


def leaks(text: str | bytes) -> list[str]:
    """The planted secrets that are in it."""
    data = text if isinstance(text, bytes) else text.encode("utf-8", "replace")
    return [secret for secret in SECRETS if secret.encode() in data]


def files_that_leak(folder: Path) -> dict[str, list[str]]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files
    return {str(file): found for file in files if (found := leaks(file.read_bytes()))}


def dump(url: str) -> str:
    """All text in all tables, ours and Optuna's."""
    engine = sa.create_engine(driver_url(url))
    found = []
    with engine.connect() as connection:
        for table in sa.inspect(engine).get_table_names():
            found += [repr(tuple(row)) for row in connection.exec_driver_sql(f'SELECT * FROM "{table}"')]
    engine.dispose()
    return "\n".join(found)


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize(
    "text",
    [
        f"connecting to postgresql://bo:{SPELLED}@db:5432/x failed",
        f"wandb: the key {WANDB_KEY} is not known",
        f"401 for https://user:{HUB_TOKEN}@huggingface.co/api",
        f"403 for https://{HUB_TOKEN}@huggingface.co/api",
        f"password={PASSWORD} host=db",
        f"{{'api_key': '{WANDB_KEY}'}}",
        f'password authentication failed with "{PASSWORD}"',
    ],
)
def test_a_text_is_masked_whoever_wrote_it(text: str) -> None:
    masked = redaction.mask(text)
    assert leaks(masked) == []
    assert "***" in masked
    assert redaction.mask(masked) == masked


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize(
    "text",
    [
        "131072 tokens at once: CUDA out of memory",
        "https://wandb.ai/team/project/runs/7f3a",
        "the tokenizer has no verdict token",
        'File "/a/b.py", line 3, in secretary',
        "user@host:/path and a:b@c",
        "sqlite:///mvsweep.sqlite3",
    ],
)
def test_other_text_is_left_alone(text: str) -> None:
    assert redaction.mask(text) == text


@pytest.mark.usefixtures("planted")
def test_a_crash_whose_traceback_quotes_a_url_is_stored_without_its_password() -> None:
    try:
        raise RuntimeError(f"cannot connect to postgresql://bo:{SPELLED}@db/x with {PASSWORD}, token {HUB_TOKEN}")
    except RuntimeError:
        result = RunResult(end_reason=EndReason.CRASHED, message=traceback.format_exc())
    assert leaks(result.model_dump_json()) == []
    assert "cannot connect to postgresql://bo:***@db/x" in result.message


@pytest.mark.usefixtures("planted")
def test_log_lines_and_their_tracebacks_are_masked(caplog: pytest.LogCaptureFixture) -> None:
    caplog.handler.addFilter(redaction._Masking())
    try:
        raise ValueError(f"no such user {PASSWORD}")
    except ValueError:
        logging.getLogger("somebody.else").exception("with %s and %d", HUB_TOKEN, 3)
    assert leaks(caplog.text) == []
    assert "with *** and 3" in caplog.text
    assert "no such user ***" in caplog.text


def test_a_password_that_is_only_on_the_command_line_is_known_from_then_on() -> None:
    connect(f"postgresql://bo:{SPELLED}@127.0.0.1:1/x").dispose()
    assert leaks(redaction.mask(f"{PASSWORD} {SPELLED}")) == []


@pytest.mark.parametrize("port", ["1", "nonsense"])
def test_a_database_that_refuses_quotes_no_password(port: str) -> None:
    with pytest.raises(StorageError) as caught:
        upgrade(connect(f"postgresql://bo:{SPELLED}@127.0.0.1:{port}/x"))
    assert leaks("".join(traceback.format_exception(caught.value))) == []


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials that crash and diverge, with W&B writing its files."""
    monkeypatch.setenv("MVSWEEP_REHEARSAL_SECONDS", "0.1")
    monkeypatch.setenv("MVSWEEP_REHEARSAL_FAULTS", '{"0": "crash", "1": "nan"}')


@pytest.mark.parametrize("backend", ["postgresql"])
@pytest.mark.usefixtures("planted", "faults")
def test_nothing_that_a_study_writes_has_a_secret_in_it(tmp_path: Path, database_url: str) -> None:
    url = sa.make_url(database_url).set(password=PASSWORD).render_as_string(hide_password=False)
    shell = Shell.at(tmp_path / "work", url, SWEEP.replace("wandb: disabled", "wandb: offline"))
    said = [shell.run("create", "flow.yaml")]
    # On the command line, too: what W&B and the logs make of a process's arguments.
    said += [ended(shell.start("worker", "flow", "--engine", "rehearsal", "--until-idle", "--storage", url))]
    said += [
        shell.run(*words)
        for words in (["status", "flow"], ["leaderboard", "flow"], ["report", "flow"], ["reap", "flow"])
    ]
    wrong = f"postgresql://bo:{SPELLED}@127.0.0.1:1/x"
    said += [shell.run("status", "flow", "--storage", wrong, code=2)]
    assert leaks("\n".join(said)) == []
    assert files_that_leak(shell.folder) == {}
    assert any((shell.folder / "runs").rglob("offline-run-*")), "W&B wrote nothing to look at"
    assert any((shell.folder / "runs").rglob("report.html"))
    assert leaks(dump(url)) == []
