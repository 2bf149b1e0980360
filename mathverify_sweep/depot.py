"""An output folder that is at a URL: in an S3-compatible store, or where else fsspec reaches. The only home of fsspec.

    URL/<study>/<run_id>-<lease token>/adapter/              as in an output folder on a disk
    URL/<study>/<run_id>-<lease token>/adapter.manifest      size and SHA-256 of its files, written last

Each machine works on a cache of it, which is its output folder in all that follows; only what another machine may need
is carried: checkpoints and adapters. Stores know no renaming, so a folder is there when its manifest is, and it is
taken only when all is as the manifest says. Opens no connection before something is carried.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError, field_validator

from mathverify_sweep import paths
from mathverify_sweep.errors import ConfigError, DepotAway
from mathverify_sweep.specs import Frozen

log = logging.getLogger(__name__)

_URL = re.compile(r"([a-z][a-z0-9+.-]*)(://.+)", re.IGNORECASE)
_MANIFEST = ".manifest"


class Manifest(Frozen):
    """Of each file of a folder its size and SHA-256."""

    files: dict[str, tuple[int, str]]

    @field_validator("files")
    @classmethod
    def _stays_inside(cls, files: dict[str, tuple[int, str]]) -> dict[str, tuple[int, str]]:
        if any(name.startswith("/") or ".." in name.split("/") for name in files):
            raise ValueError("a manifest names files of its folder only")
        return files

    @classmethod
    def of(cls, folder: Path) -> Manifest:
        """As the folder is now."""
        found = sorted(path for path in folder.rglob("*") if path.is_file())
        return cls(files={path.relative_to(folder).as_posix(): (path.stat().st_size, _sha256(path)) for path in found})


def opened(given: str | Path) -> Path:
    """The output folder that an option names: that of a disk, or this machine's cache of that at a URL.

    Raises ConfigError for a URL that nothing here can open.
    """
    if (parts := _URL.fullmatch(str(given))) is None:
        return Path(given)
    url = (parts[1].lower() + parts[2]).rstrip("/")
    if "@" in url:
        raise ConfigError(
            "--output", ["a URL must be without secrets: give them as the store's own variables or files"]
        )
    _file_system(url)
    cache = paths.output_cache(url)
    cache.mkdir(parents=True, exist_ok=True)
    file = paths.url_file(cache)
    if not file.exists() or file.read_text(encoding="utf-8") != url:
        partial = file.with_name(f"{file.name}.{secrets.token_hex(4)}.partial")
        partial.write_text(url, encoding="utf-8")
        partial.replace(file)  # others read it at any time
    return cache


def of(output: Path) -> Depot | None:
    """The depot that this output folder is a cache of; None for a folder that is all there is.

    Raises ConfigError when the file that names the URL is damaged: an empty one would be the working directory.
    """
    file = paths.url_file(output)
    try:
        url = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    if _URL.fullmatch(url) is None:
        raise ConfigError("--output", [f"{file} must name a URL, got {url!r}. Give the URL itself again"])
    return Depot(output, url)


def bring(output: Path, folder: Path) -> None:
    """Have a folder under an output folder here, if it is at the URL and not here. Raises DepotAway."""
    if not folder.exists() and (depot := of(output)) is not None:
        depot.fetch(folder)


def drop(output: Path, folder: Path) -> None:
    """Delete a folder under an output folder, here and at the URL, there by a thread that the process waits for."""
    shutil.rmtree(folder, ignore_errors=True)
    if (depot := of(output)) is not None:
        threading.Thread(target=depot.drop, args=(folder,), name="depot").start()


class Depot:
    """What is at a URL, seen from a cache of it."""

    def __init__(self, cache: Path, url: str) -> None:
        self._cache, self._url = cache, url

    def push(self, folder: Path) -> None:
        """Copy a folder of the cache to the URL, whole or not at all.

        Raises DepotAway, or OSError of the folder: when it is not there, holds no file, or changes meanwhile.
        """
        manifest = Manifest.of(folder)
        if not manifest.files:
            raise FileNotFoundError(f"{folder} is not there, or holds no file")
        with self._reached() as (system, there):
            target = there(folder)
            for name in manifest.files:
                system.makedirs(f"{target}/{name}".rpartition("/")[0], exist_ok=True)
                system.put_file(str(folder / name), f"{target}/{name}")
        if Manifest.of(folder) != manifest:  # it may be on its way to be deleted
            raise FileNotFoundError(f"{folder} has changed while it was copied")
        with self._reached() as (system, there):
            system.pipe_file(there(folder) + _MANIFEST, manifest.model_dump_json().encode())

    def fetch(self, folder: Path) -> bool:
        """Copy a folder from the URL into the cache, whole or not at all; False when it is not there, or damaged."""
        partial = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.partial")
        try:
            if not self._is_fetched(folder, partial):
                return False
            with suppress(OSError):  # somebody else has brought it meanwhile
                partial.rename(folder)
            return folder.exists()
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _is_fetched(self, folder: Path, partial: Path) -> bool:
        with self._reached() as (system, there):
            source = there(folder)
            try:
                manifest = Manifest.model_validate_json(system.cat_file(source + _MANIFEST))
                partial.mkdir(parents=True)
                for name in manifest.files:
                    (partial / name).parent.mkdir(parents=True, exist_ok=True)
                    system.get_file(f"{source}/{name}", str(partial / name))
                is_whole = Manifest.of(partial) == manifest
            except FileNotFoundError:
                return False
            except ValidationError:
                is_whole = False
        if not is_whole:
            log.warning("%s is not as it was written, so it is left aside", self._url_of(folder))
        return is_whole

    def names(self, folder: Path) -> list[str]:
        """The folders within a folder that are whole."""
        with self._reached() as (system, there):
            system.invalidate_cache()
            try:
                found = [str(name).rpartition("/")[2] for name in system.ls(there(folder), detail=False)]
            except FileNotFoundError:
                return []
        return [name.removesuffix(_MANIFEST) for name in found if name.endswith(_MANIFEST)]

    def drop(self, folder: Path) -> None:
        """Delete a folder at the URL; where it cannot be, it stays."""
        try:
            with self._reached() as (system, there):
                for target, whole in ((there(folder) + _MANIFEST, False), (there(folder), True)):
                    if system.exists(target):
                        system.rm(target, recursive=whole)
        except DepotAway as error:
            log.warning("%s stays though nobody needs it: %s", self._url_of(folder), error)

    @contextmanager
    def _reached(self) -> Iterator[tuple[Any, Any]]:
        """The file system, and what turns a folder of the cache into its place there."""
        system, root = _file_system(self._url)

        def there(folder: Path) -> str:
            return f"{root}/{folder.relative_to(self._cache).as_posix()}"

        try:
            yield system, there
        except Exception as error:  # every store has errors of its own
            raise DepotAway(f"{self._url} cannot be read or written: {type(error).__name__}: {error}") from error

    def _url_of(self, folder: Path) -> str:
        return f"{self._url}/{folder.relative_to(self._cache).as_posix()}"


def _file_system(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        system, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:  # no such protocol, or its package is not there
        raise ConfigError("--output", [f"{url.partition('://')[0]}:// cannot be opened: {error}"]) from error
    return system, str(root).rstrip("/")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
