"""Is a SQLite file on a disk of this machine? Its locks, and the memory its log shares, end at the machine's edge."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ALLOW = "MVSWEEP_ALLOW_NETWORK_SQLITE"
"""Set to 1, this variable allows what is refused: for one machine alone, whose mount keeps SQLite's locks."""
_MOUNTS = Path("/proc/self/mountinfo")
_SHARED = re.compile(
    r"nfs\d?|cifs|smb\d?|smbfs|lustre|gpfs|beegfs|ceph|afs|9p|virtiofs|glusterfs|ocfs2|gfs2|davfs2?|orangefs|pvfs2|"
    r"wekafs|panfs|vboxsf|vmhgfs|fuse\..+"
)
# A program may serve anything through FUSE; these serve a disk of this machine.
_LOCAL_FUSE = re.compile(r"fuse\.(fuse-overlayfs|mergerfs|encfs|gocryptfs|bindfs|squashfuse|ntfs(-3g)?|exfat|ext[24])")


@dataclass(frozen=True, slots=True)
class Mount:
    """Where a file system is mounted, and its type as the kernel calls it."""

    folder: str
    kind: str


def mounts() -> list[Mount]:
    """The mounts that this process sees, the last mounted last; none where there is no /proc."""
    try:
        return parse(_MOUNTS.read_text(encoding="utf-8", errors="surrogateescape"))
    except OSError:
        return []


def parse(mountinfo: str) -> list[Mount]:
    """The mounts in the text of /proc/self/mountinfo."""
    found = []
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        fields = before.split(" ")
        if separator and len(fields) > 4:
            folder = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
            found.append(Mount(folder, after.split(" ")[0]))
    return found


def shared_by_network(file: Path, table: Sequence[Mount]) -> str | None:
    """The type of the network file system that `file` (absolute, links resolved) is on; None on a local one.

    The longest mount point above it counts, and of equal ones the last, which hides the others.
    """
    above = [m for m in table if file == Path(m.folder) or Path(m.folder) in file.parents]
    if not above:
        return None
    longest = max(len(mount.folder) for mount in above)
    kind = [mount.kind for mount in above if len(mount.folder) == longest][-1]
    return kind if _SHARED.fullmatch(kind) and not _LOCAL_FUSE.fullmatch(kind) else None


def refusal(file: Path) -> str | None:
    """Why a SQLite file is not opened there; None where it may be."""
    if os.environ.get(ALLOW) == "1":
        return None
    kind = shared_by_network(file.resolve(), mounts())
    if kind is None:
        return None
    return (
        f"SQLite needs a local disk, and {file} is on a network file system ({kind}): its locks, and the memory that "
        "its write-ahead log shares, do not hold between hosts. Put the file on a local disk, use PostgreSQL "
        f"for several machines, or, for one machine alone and at your own risk, set {ALLOW}=1."
    )
