"""An output folder at a URL: folders are there whole or not at all, in a store without renaming as on a disk."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from mathverify_sweep import depot, paths
from mathverify_sweep.depot import Depot
from mathverify_sweep.errors import ConfigError, DepotAway

GIVEN = os.environ.get("MVSWEEP_TEST_S3")
"""A bucket (`s3://NAME`) that these tests may write to, if there is one and s3fs is installed."""


@pytest.fixture(params=["memory", "file", *(["s3"] if GIVEN else [])])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An object store within this process, a shared folder, and an S3-compatible store."""
    places = {"memory": "memory://bucket", "file": f"file://{tmp_path}/shared", "s3": GIVEN}
    yield f"{places[request.param]}/{secrets.token_hex(4)}/runs"
    fsspec.filesystem("memory").store.clear()


class Host:
    """A machine with a cache of its own of the output folder at a URL."""

    def __init__(self, folder: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
        self.output = depot.opened(url)
        found = depot.of(self.output)
        assert found is not None
        self.depot: Depot = found
        self.folder = self.output / "study" / "run-token" / "checkpoints" / "100"

    def write(self, **files: bytes) -> None:
        for name, content in files.items():
            path = self.folder / "adapter" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def read(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}


@pytest.fixture
def hosts(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Host]:
    found = [Host(tmp_path / name, url, monkeypatch) for name in ("ann", "bob")]
    assert found[0].output != found[1].output
    return found


def test_a_folder_of_one_host_is_that_of_another(hosts: list[Host]) -> None:
    ann, bob = hosts
    ann.write(a=b"1" * 10_000, b=b"")
    ann.depot.push(ann.folder)
    assert bob.depot.names(bob.folder.parent) == ["100"]
    assert bob.depot.fetch(bob.folder)
    assert bob.read() == ann.read()
    assert [path.name for path in bob.folder.parent.iterdir()] == ["100"], "nothing else is left"
    assert bob.depot.fetch(bob.folder), "said again, it changes nothing"


def test_what_was_cut_on_its_way_is_not_there(hosts: list[Host], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every prefix of the writes that a push consists of, but for all of them."""
    ann, bob = hosts
    ann.write(a=b"1", b=b"2", c=b"3")
    system, _ = depot._file_system(depot.of(ann.output)._url)  # type: ignore[union-attr]
    for cut in range(4):
        left = cut

        def count(write: Any) -> Any:
            def counted(*args: Any, **kwargs: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    raise ConnectionResetError("cut")
                return write(*args, **kwargs)

            return counted

        with monkeypatch.context() as patched:
            for name in ("put_file", "pipe_file"):
                patched.setattr(system, name, count(getattr(system, name)))
            with pytest.raises(DepotAway, match="ConnectionResetError: cut"):
                ann.depot.push(ann.folder)
        assert bob.depot.names(bob.folder.parent) == []
        assert not bob.depot.fetch(bob.folder)
        assert not bob.folder.exists()
    ann.depot.push(ann.folder)
    assert bob.depot.fetch(bob.folder)


def test_what_was_damaged_there_is_not_taken(hosts: list[Host], url: str, caplog: pytest.LogCaptureFixture) -> None:
    ann, bob = hosts
    ann.write(a=b"1" * 100)
    ann.depot.push(ann.folder)
    system, root = depot._file_system(url)
    system.pipe_file(f"{root}/study/run-token/checkpoints/100/adapter/a", b"1" * 99 + b"2")
    assert not bob.depot.fetch(bob.folder)
    assert not list(bob.output.rglob("*.partial"))
    assert "study/run-token/checkpoints/100 is not as it was written" in caplog.text


@pytest.mark.parametrize("manifest", [b"half a manif", b'{"files": {"../../../../escaped": [1, "0"]}}'])
def test_a_manifest_that_is_damaged_or_leads_out_of_its_folder_is_not_followed(
    hosts: list[Host], url: str, manifest: bytes, tmp_path: Path
) -> None:
    ann, bob = hosts
    ann.write(a=b"1")
    ann.depot.push(ann.folder)
    system, root = depot._file_system(url)
    system.pipe_file(f"{root}/study/run-token/checkpoints/100.manifest", manifest)
    assert not bob.depot.fetch(bob.folder)
    assert not list(tmp_path.rglob("escaped"))


def test_what_is_dropped_is_gone_and_dropping_it_again_does_nothing(hosts: list[Host]) -> None:
    ann, bob = hosts
    ann.write(a=b"1")
    ann.depot.push(ann.folder)
    for _ in range(2):
        ann.depot.drop(ann.folder)
    assert bob.depot.names(bob.folder.parent) == []
    ann.depot.push(ann.folder)
    ann.depot.drop(ann.folder.parent)
    assert not bob.depot.fetch(bob.folder)


def test_a_folder_on_a_disk_is_no_depot(tmp_path: Path) -> None:
    assert depot.opened(str(tmp_path)) == tmp_path
    assert depot.of(tmp_path) is None


@pytest.mark.parametrize(
    ("given", "why"), [("s4://bucket/x", "s4:// cannot be opened"), ("s3://key:word@bucket/x", "without secrets")]
)
def test_a_url_that_cannot_be_used_is_refused_at_once(given: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        depot.opened(given)


def test_the_cache_knows_its_url(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a process that is given the cache's folder finds the URL as well."""
    host = Host(tmp_path / "ann", f"{url}/", monkeypatch)
    assert paths.url_file(host.output).read_text() == url
    assert depot.opened(str(host.output)) == host.output
    assert depot.of(host.output) is not None


def test_a_study_named_url_is_a_study_like_others(hosts: list[Host]) -> None:
    ann, _ = hosts
    paths.study_folder(ann.output, "url").mkdir()
    assert depot.of(ann.output) is not None


def test_the_file_that_names_the_url_is_written_once_and_never_read_as_another_folder(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = Host(tmp_path / "ann", url, monkeypatch)
    whole = paths.url_file(ann.output).stat()
    assert depot.opened(url) == ann.output
    assert paths.url_file(ann.output).stat().st_ino == whole.st_ino, "it is not written again while it is right"
    paths.url_file(ann.output).write_text("")
    with pytest.raises(ConfigError, match=r"must name a URL, got ''\. Give the URL itself again"):
        depot.of(ann.output)
    assert depot.opened(url) == ann.output
    assert paths.url_file(ann.output).read_text() == url
    assert not list(ann.output.glob("*.partial"))


def test_a_scheme_in_capitals_is_the_same_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert depot.opened("MEMORY://Bucket/x") == depot.opened("memory://Bucket/x")
    assert depot.opened("memory://bucket/x") != depot.opened("memory://Bucket/x")


def test_a_folder_that_is_not_there_or_empty_is_not_pushed(hosts: list[Host]) -> None:
    ann, bob = hosts
    for _ in range(2):
        with pytest.raises(FileNotFoundError, match="is not there, or holds no file"):
            ann.depot.push(ann.folder)
        ann.folder.mkdir(parents=True, exist_ok=True)
    assert bob.depot.names(bob.folder.parent) == []


def test_a_folder_that_changes_while_it_is_pushed_is_not_there(
    hosts: list[Host], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy of its last file is done when the folder is on its way to be deleted."""
    ann, bob = hosts
    ann.write(a=b"1", b=b"2")
    system, _ = depot._file_system(url)
    put = system.put_file

    def put_and_delete(source: str, target: str) -> None:
        put(source, target)
        if source.endswith("b"):
            Path(source).unlink()

    with monkeypatch.context() as patched:
        patched.setattr(system, "put_file", put_and_delete)
        with pytest.raises(FileNotFoundError, match="has changed while it was copied"):
            ann.depot.push(ann.folder)
    assert bob.depot.names(bob.folder.parent) == []


def test_a_fetch_that_fails_leaves_nothing(hosts: list[Host], url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ann, bob = hosts
    ann.write(a=b"1")
    ann.depot.push(ann.folder)
    system, _ = depot._file_system(url)

    def cut(_source: str, target: str) -> None:
        Path(target).write_bytes(b"half")
        raise ConnectionResetError("cut")

    with monkeypatch.context() as patched:
        patched.setattr(system, "get_file", cut)
        with pytest.raises(DepotAway, match="ConnectionResetError: cut"):
            bob.depot.fetch(bob.folder)
    assert not list(bob.output.rglob("*.partial"))
    assert bob.depot.fetch(bob.folder)
