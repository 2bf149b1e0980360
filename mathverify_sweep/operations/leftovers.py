"""What dead workers had to say and did not: in their outboxes, under the output folder, for whoever comes first."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from mathverify_sweep import paths
from mathverify_sweep.worker import outbox, saying

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine as Database

    from mathverify_sweep.study.study import StudyHandle


def say(database: Database, study: StudyHandle, output: Path, dead: Collection[str] = ()) -> list[str]:
    """Say it; a sentence for each outbox that was not empty. Raises StorageError, and what is unsaid stays.

    `dead`: ids of workers on other hosts of whom that is known.
    """
    done = []
    for left in outbox.orphans(paths.outbox_files(output, study.config.study), dead):
        entries = 0
        try:
            while first := left.first():
                saying.say(database, study, output, first)
                left.drop_first(len(first))
                entries += len(first)
        finally:
            left.close()
        if entries:
            done.append(f"{left.file.name}: said {entries} thing(s) that a dead worker had left unsaid")
    return done
