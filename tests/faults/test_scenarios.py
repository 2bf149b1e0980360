"""What `mvsweep chaos` plays: some of it here, on the database where it matters more; all of it in the long tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from mathverify_sweep.chaos import sheet
from mathverify_sweep.chaos.doors import door
from mathverify_sweep.chaos.scenarios import SCENARIOS, Scenario

QUICK = {
    ("killed", "sqlite"),
    ("frozen", "postgresql"),
    ("hang", "sqlite"),
    ("lock", "postgresql"),
    ("disk", "sqlite"),
    ("endings", "sqlite"),
    ("crashes", "postgresql"),
}


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("scenario", "backend"),
    [
        pytest.param(
            scenario,
            backend,
            id=f"{scenario.name}-{backend}",
            marks=() if (scenario.name, backend) in QUICK else pytest.mark.faults,
        )
        for scenario in SCENARIOS
        for backend in ("sqlite", "postgresql")
    ],
)
def test_after_it_every_trial_has_ended_once_and_nothing_is_lost(
    scenario: Scenario, database_url: str, tmp_path: Path
) -> None:
    with door(database_url) as way:
        line = sheet.play(scenario, tmp_path, database_url, way)
    assert line.broken == ()
