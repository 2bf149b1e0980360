"""Checks of what a worker talks to: the database, W&B, the hub. Prints no key, and waits for nobody for long."""

from __future__ import annotations

import netrc
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from mathverify_sweep.config import SweepConfig
from mathverify_sweep.data import dataset, read
from mathverify_sweep.errors import MvsweepError, StudyError
from mathverify_sweep.operations.findings import Finding, ok, problem, warning
from mathverify_sweep.specs import BaseModelSpec
from mathverify_sweep.store import database, file_systems, runs, studies, suspicion
from mathverify_sweep.store.health import Health, health, sqlite_file
from mathverify_sweep.store.studies import StudyRecord

ANSWER_SECONDS = 4.0
SLOW_ROUND_TRIP, TOO_SLOW_ROUND_TRIP = 0.05, 1.0
CLOCKS_APART_SECONDS = 5.0
FULL_SHARE = 0.7
FEW_CONNECTIONS = 5


def storage(url: str) -> Iterator[Finding]:
    """The database: version and speed, its clock, its connections, its tables."""
    file = sqlite_file(url)
    if file is not None and not file.exists():
        yield warning("database", f"there is no file {file} yet", "Make one: mvsweep create FILE; or give --storage")
        return
    if file is not None:
        yield from _file_system(file)
    engine = database.connect(url)
    try:
        yield from judged(health(engine), database.safe_url(url))
    finally:
        engine.dispose()


def judged(found: Health, shown: str) -> Iterator[Finding]:
    """What a database's health means for workers; `shown` names the database."""
    yield _speed(found, shown)
    yield from _server(found)
    yield _tables(found)


def study(url: str, name: str) -> Iterator[Finding]:
    """Whether a study hands out runs, and whether this machine has what it trains on."""
    record, quarantined = _study(url, name)
    config = SweepConfig.model_validate_json(record.config)
    if record.stopped:
        yield warning("study", f"{name} is stopped: {record.stopped}", f"Mend that, then: mvsweep resume {name}")
    else:
        yield ok("study", f"{name} hands out runs")
    for gpu, reason in quarantined.items():
        yield warning("quarantine", f"{gpu}: {reason}", "Look at it, then: mvsweep worker --trust-gpu")
    yield _base_model(config.base_model)
    yield _data(config)


def wandb(url: str, name: str | None) -> Iterator[Finding]:
    """The mode of W&B, whether there is a key, whether its server answers."""
    mode = "offline" if name is None else _mode(url, name)
    if mode == "disabled":
        yield ok("wandb", f"{name} does not use it")
        return
    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    key = "a key is there" if _has_wandb_key(server) else "no key"
    silence = _silence(server)
    found = f"{mode}, {key}, {_host(server)} {'answers' if silence is None else f'does not answer ({silence})'}"
    if mode != "online":
        yield ok("wandb", f"{found}; runs are recorded on the disk, `wandb sync` uploads them")
    elif not _has_wandb_key(server):
        yield warning("wandb", found, "wandb login, or WANDB_API_KEY; until then runs are recorded offline")
    elif silence is not None:
        yield warning("wandb", found, "Let this machine reach it; until then runs are recorded offline")
    else:
        yield ok("wandb", found)


def hub() -> Iterator[Finding]:
    """The cache of the Hugging Face hub, and whether the hub answers."""
    from huggingface_hub import constants, get_token

    token = "a token is there" if get_token() else "no token"
    cache = Path(constants.HF_HUB_CACHE)
    names = [folder.name for folder in cache.glob("models--*")] if cache.is_dir() else []
    found = f"{len(names)} models in {cache}, {token}"
    if constants.HF_HUB_OFFLINE:
        yield ok("hub", f"{found}, offline on purpose (HF_HUB_OFFLINE)")
        return
    silence = _silence(constants.ENDPOINT)
    if silence is None:
        yield ok("hub", f"{found}, {_host(constants.ENDPOINT)} answers")
    else:
        found += f", {_host(constants.ENDPOINT)} does not answer ({silence})"
        yield warning("hub", found, "Models and data must be in the cache or in folders; then set HF_HUB_OFFLINE=1")


def _study(url: str, name: str) -> tuple[StudyRecord, dict[str, str]]:
    """The study, and why it gives no runs to GPUs of this host."""
    if (file := sqlite_file(url)) is not None and not file.exists():
        raise StudyError(f"there is no file {file}, so no study {name!r}. Give --storage.")
    engine = database.connect(url)
    try:
        record, host = studies.get(engine, name), socket.gethostname()
        workers = [run.worker for run in runs.runs(engine, name)]
        gpus = {worker.gpu for worker in workers if worker is not None and worker.host == host}
        found = {gpu: suspicion.is_quarantined(engine, name, host, gpu) for gpu in sorted(gpus)}
        return record, {gpu: reason for gpu, reason in found.items() if reason is not None}
    finally:
        engine.dispose()


def _file_system(file: Path) -> Iterator[Finding]:
    """On which kind the file is. One that is refused is said with the database."""
    kind = file_systems.shared_by_network(file.resolve(), file_systems.mounts())
    if kind is None:
        yield ok("file system", f"{file} is on this machine")
    elif os.environ.get(file_systems.ALLOW) == "1":
        fix = "Keep all workers on one machine, or use PostgreSQL"
        yield warning("file system", f"{file} is on a network file system ({kind}), {file_systems.ALLOW} is set", fix)


def _mode(url: str, name: str) -> str:
    try:
        return SweepConfig.model_validate_json(_study(url, name)[0].config).tracking.wandb
    except MvsweepError:  # which the line of the study says
        return "mode unknown"


def _speed(found: Health, shown: str) -> Finding:
    milliseconds = f"{1000 * found.round_trip_seconds:.1f} ms", f"{1000 * found.transaction_seconds:.1f} ms"
    said = f"{found.version} at {shown}, round trip {milliseconds[0]}, short transaction {milliseconds[1]} (medians)"
    slowest = max(found.round_trip_seconds, found.transaction_seconds / 4)
    fix = "Look at the network and at the load of the server: a trial takes about 80 round trips"
    if slowest > TOO_SLOW_ROUND_TRIP:
        return problem("database", said, fix)
    return warning("database", said, fix) if slowest > SLOW_ROUND_TRIP else ok("database", said)


def _server(found: Health) -> Iterator[Finding]:
    if found.journal_mode is not None:
        if found.journal_mode == "wal":
            yield ok("journal", "write-ahead (wal)")
        else:
            fix = "Put the file on a local disk: its file system has no shared memory, or it may not be written"
            yield problem("journal", f"{found.journal_mode} instead of wal", fix)
    if found.clock_ahead_seconds is not None:
        said = f"the database's is {found.clock_ahead_seconds:+.1f} s against this machine's"
        if abs(found.clock_ahead_seconds) > CLOCKS_APART_SECONDS:
            yield warning("clocks", said, "Run chrony or ntpd: shown times mislead. Leases do not depend on it")
        else:
            yield ok("clocks", said)
    if found.connections is not None:
        used, most = found.connections.used, found.connections.most
        said = f"{used} of {most} in use, room for {most - used} more workers that are busy with it at once"
        fix = "Raise max_connections, or see who holds them: SELECT * FROM pg_stat_activity"
        if most - used < FEW_CONNECTIONS:
            yield problem("connections", said, fix)
        elif used > FULL_SHARE * most:
            yield warning("connections", said, fix)
        else:
            yield ok("connections", said)


def _tables(found: Health) -> Finding:
    if found.revision is None:
        return warning("tables", "none yet", "Make a study: mvsweep create FILE")
    if found.revision == found.head:
        return ok("tables", f"at revision {found.revision}, this version's")
    said = f"at revision {found.revision}, this version's is {found.head}"
    if found.revision < found.head:
        return warning("tables", said, "Back up (storage/README.md); the next command upgrades them")
    return problem("tables", said, "A newer mvsweep has been here: install that version, or restore a backup")


def _base_model(spec: BaseModelSpec) -> Finding:
    from huggingface_hub import try_to_load_from_cache

    if spec.name.startswith("builtin:") or Path(spec.name).expanduser().is_dir():
        return ok("base model", f"{spec.name} is on this machine")
    if spec.name.startswith(("/", ".", "~")):
        return problem("base model", f"there is no folder {spec.name}", "Bring it to this machine, at this path")
    weights = ("model.safetensors", "model.safetensors.index.json")
    revision = spec.revision or "main"
    if any(isinstance(try_to_load_from_cache(spec.name, file, revision=revision), str) for file in weights):
        return ok("base model", f"{spec.name} is in the hub cache")
    return warning("base model", f"{spec.name} is not in the hub cache", f"hf download {spec.name}, or reach the hub")


def _data(config: SweepConfig) -> Finding:
    source = config.data.source
    if source == dataset.GENERATED:
        return ok("data", "generated")
    if not read.is_local(source):
        return ok("data", f"{source}, a data set on the hub")
    if Path(source).expanduser().is_file():
        return ok("data", f"{source} is on this machine")
    return problem("data", f"no file {source} on this machine", "Bring it to this machine, at this path")


def _has_wandb_key(server: str) -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(_host(server)) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _host(url: str) -> str:
    return urlsplit(url).hostname or url


def _silence(url: str) -> str | None:
    """Why a server does not answer; None when it does, whatever it says."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=ANSWER_SECONDS).close()
    except urllib.error.HTTPError:
        return None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return getattr(reason, "strerror", None) or type(reason).__name__
    return None
