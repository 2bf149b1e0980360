"""`mvsweep doctor` on a machine with a GPU."""

from __future__ import annotations

import pytest

from mathverify_sweep.operations import accelerator
from mathverify_sweep.operations.findings import Level

pytestmark = pytest.mark.gpu


def test_the_gpu_is_seen_and_quantises() -> None:
    gpus = {finding.about: finding for finding in accelerator.driver()}
    assert all(finding.level is not Level.PROBLEM for finding in gpus.values())
    found = {finding.about: finding for finding in accelerator.training()}
    assert found["torch"].level is Level.OK
    assert found["nf4 cuda:0"].level is Level.OK
