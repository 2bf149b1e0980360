"""Claims about where a SQLite file may lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from mathverify_sweep.errors import StorageError
from mathverify_sweep.store import file_systems
from mathverify_sweep.store.database import connect
from mathverify_sweep.store.file_systems import Mount

NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "fuse.sshfs", "fuse.s3fs", "9p", "ceph")
LOCAL = ("ext4", "xfs", "btrfs", "zfs", "overlay", "tmpfs", "f2fs", "apfs", "fuseblk", "bcachefs", "erofs")
CLUSTER = """\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
22 21 0:20 / /proc rw - proc proc rw
31 21 0:45 / /home rw,relatime shared:20 master:2 - nfs4 filer:/export/home rw,vers=4.2
32 31 8:17 / /home/scratch\\040disk rw - xfs /dev/sdb1 rw
33 21 0:50 / /lustre rw - lustre mds@o2ib:/fs rw
34 21 0:51 / /mnt/ssh rw - fuse.sshfs user@host: rw
35 21 0:52 / /mnt/pool rw - fuse.mergerfs a:b rw
36 21 8:1 / /data rw - ext4 /dev/sda2 rw
37 36 0:53 / /data rw - cifs //filer/data rw
38 21 0:54 / /dev/shm rw - tmpfs tmpfs rw
a line that is none
"""


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("/tmp/x.sqlite3", None),
        ("/home/bo/x.sqlite3", "nfs4"),
        ("/home/scratch disk/x.sqlite3", None),
        ("/homework/x.sqlite3", None),
        ("/lustre/a/b/c/x.sqlite3", "lustre"),
        ("/mnt/ssh/x.sqlite3", "fuse.sshfs"),
        ("/mnt/pool/x.sqlite3", None),
        ("/data/x.sqlite3", "cifs"),  # the later mount hides the earlier
        ("/dev/shm/x.sqlite3", None),
    ],
)
def test_the_innermost_mount_says_whether_a_file_is_shared(file: str, kind: str | None) -> None:
    assert file_systems.shared_by_network(Path(file), file_systems.parse(CLUSTER)) == kind


@pytest.mark.parametrize("kind", NETWORK)
def test_every_network_file_system_is_known(kind: str) -> None:
    assert file_systems.shared_by_network(Path("/x/y"), [Mount("/", "ext4"), Mount("/x", kind)]) == kind


@pytest.mark.parametrize("kind", LOCAL)
def test_every_local_file_system_is_let_through(kind: str) -> None:
    assert file_systems.shared_by_network(Path("/x/y"), [Mount("/", "nfs4"), Mount("/x", kind)]) is None


def test_the_mounts_of_this_machine_are_read() -> None:
    assert "/" in {mount.folder for mount in file_systems.mounts()}


def test_a_machine_without_a_table_refuses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_systems, "_MOUNTS", tmp_path / "there is none")
    assert file_systems.refusal(tmp_path / "x.sqlite3") is None


def test_a_sqlite_file_on_a_network_file_system_is_refused_unless_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(f"21 1 8:1 / / rw - ext4 /dev/sda1 rw\n31 21 0:45 / {tmp_path}/far rw - nfs4 filer:/ rw\n")
    monkeypatch.setattr(file_systems, "_MOUNTS", table)
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far")
    for folder in ("far", "link"):
        with pytest.raises(StorageError, match=r"local disk.*\(nfs4\).*PostgreSQL.*MVSWEEP_ALLOW_NETWORK_SQLITE=1"):
            connect(f"sqlite:///{tmp_path}/{folder}/x.sqlite3")
    connect(f"sqlite:///{tmp_path}/x.sqlite3").dispose()
    monkeypatch.setenv(file_systems.ALLOW, "1")
    connect(f"sqlite:///{tmp_path}/far/x.sqlite3").dispose()
