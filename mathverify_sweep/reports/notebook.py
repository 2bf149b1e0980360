"""What `notebooks/study.ipynb` draws: a study's rows and figures from a database URL. The page has the same ones."""

from __future__ import annotations

from dataclasses import dataclass

from mathverify_sweep.reports import figures, rows
from mathverify_sweep.reports.figures import Panel
from mathverify_sweep.reports.models import Leaderboard, StatusReport
from mathverify_sweep.store.database import connect
from mathverify_sweep.study import views


@dataclass(frozen=True)
class StudyPictures:
    """A study, read once; `panels` by their key: leaderboard, promotion, history, importance, slices…"""

    report: StatusReport
    leaderboard: Leaderboard
    panels: dict[str, Panel]


def read(storage: str, study: str) -> StudyPictures:
    """Read a study from the database at `storage`. Raises StudyError when it is not there."""
    database = connect(storage)
    try:
        report = rows.status(database, study)
        drawn = figures.panels(report, views.parameter_importances(database, study))
    finally:
        database.dispose()
    return StudyPictures(report, rows.leaderboard(report), {panel.key: panel for panel in drawn})
