"""Every file name this package knows: what ships with it, and where a study's output goes.

    OUTPUT/<study>/report.html                       the study's page
    OUTPUT/<study>/gate.json                         what its gate has decided
    OUTPUT/<study>/<run_id>-<lease token>/adapter/   one attempt of one run: no two attempts share a folder
    OUTPUT/<study>/<run_id>-<lease token>/checkpoints/<rows seen>/
    OUTPUT/<study>/<run_id>-<lease token>/wandb/     its W&B files

Study names come from people and files, so they never become a path as they are. Creates nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

DEFAULT_OUTPUT = Path("runs")
DEFAULT_DATABASE = Path("mvsweep.sqlite3")

_PACKAGE = Path(__file__).resolve().parent
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,59}(?<![.])")
# Names that Windows reads as devices, with any ending.
_DEVICE_NAME = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


def storage_folder() -> Path:
    """`storage/`: alembic.ini, migrations/ and schema.sql."""
    return _resource("storage")


def migrations_folder() -> Path:
    """`storage/migrations/`, Alembic's script location."""
    return storage_folder() / "migrations"


def sweeps_folder() -> Path:
    """`sweeps/`: the sweep files that ship with the package."""
    return _resource("sweeps")


def safe_name(name: str) -> str:
    """`name` as one path component: itself when harmless, else its harmless characters and a hash of it all."""
    if _SAFE_NAME.fullmatch(name) and not _DEVICE_NAME.fullmatch(name):
        return name
    readable = re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-")[:40] or "study"
    return f"{readable}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:10]}"


def study_folder(output: Path, study_name: str) -> Path:
    """Everything that a study writes beside the database."""
    return output / safe_name(study_name)


def run_folder(output: Path, study_name: str, run_id: str, lease_token: str) -> Path:
    """The folder of one attempt; its token keeps a worker that lost its lease out of its successor's files."""
    return study_folder(output, study_name) / safe_name(f"{run_id}-{lease_token}")


def adapter_folder(folder: Path) -> Path:
    """The trained adapter within a run's folder."""
    return folder / "adapter"


def checkpoints_folder(folder: Path) -> Path:
    """The checkpoints within a run's folder."""
    return folder / "checkpoints"


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints within a run's folder that are whole, by the rows they have seen; none when it is not there.

    Raises OSError when the folder cannot be read.
    """
    try:
        found = [path for path in checkpoints_folder(folder).iterdir() if path.name.isdecimal()]
    except FileNotFoundError:
        return []
    return sorted(found, key=lambda path: int(path.name))


def wandb_folder(folder: Path) -> Path:
    """What W&B writes within a run's folder."""
    return folder / "wandb"


def offline_wandb_runs(folder: Path) -> list[Path]:
    """The W&B runs within a run's folder that were recorded offline, for `wandb sync`."""
    return sorted(wandb_folder(folder).glob("offline-run-*"))


def engine_log(output: Path, study_name: str, worker_id: str) -> Path:
    """What the engine process of a worker prints."""
    return study_folder(output, study_name) / f"engine-{safe_name(worker_id)}.log"


def outbox_file(output: Path, study_name: str, worker_id: str) -> Path:
    """What a worker has to say to the database and has not said yet."""
    return study_folder(output, study_name) / f"outbox-{safe_name(worker_id)}.jsonl"


def outbox_files(output: Path, study_name: str) -> list[Path]:
    """The outboxes of all workers of a study that have one."""
    return sorted(study_folder(output, study_name).glob("outbox-*.jsonl"))


def worker_log(output: Path, study_name: str, number: int) -> Path:
    """What worker `number` of `mvsweep run` prints."""
    return study_folder(output, study_name) / f"worker-{number}.log"


def token_budgets_file() -> Path:
    """How many tokens at once make this user's devices busy, per model: measured once, of use to every study."""
    return _cache() / "token-budgets.json"


def output_cache(url: str) -> Path:
    """This machine's copy of an output folder that is at a URL."""
    return _cache() / "outputs" / hashlib.sha256(url.encode()).hexdigest()[:16]


def url_file(cache: Path) -> Path:
    """What names the URL within such a copy; no study's folder has a name like it."""
    return cache / ".url"


def rates_file() -> Path:
    """How fast this user's devices are on studies, as `mvsweep plan` has measured."""
    return _cache() / "rates.json"


def artifacts_folder(output: Path) -> Path:
    """Pictures of all studies' trials, as optuna-dashboard wants them: one folder for a database."""
    return output / "artifacts"


def gate_file(output: Path, study_name: str) -> Path:
    """What the study's gate has decided when it was last asked, for its page."""
    return study_folder(output, study_name) / "gate.json"


def report_file(output: Path, study_name: str) -> Path:
    """The study's HTML page."""
    return study_folder(output, study_name) / "report.html"


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mathverify-sweep"


def _resource(name: str) -> Path:
    for folder in (_PACKAGE / "_resources" / name, _PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"the folder `{name}` ships with mathverify-sweep, but is neither in {_PACKAGE / '_resources'} nor beside the "
        "package. Install the package again, or work in a full checkout."
    )
