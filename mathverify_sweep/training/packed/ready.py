"""A loaded base model made ready to read streams: planned for its device, taught, and with a token budget."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from mathverify_sweep.specs import RunSpec
from mathverify_sweep.training.base import BaseModel
from mathverify_sweep.training.packed import measure, plan
from mathverify_sweep.training.packed.model import PackedModel
from mathverify_sweep.training.packed.plan import Budget, Plan

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ready:
    """A base model that reads streams, and how it is used."""

    model: PackedModel
    plan: Plan
    budget: Budget


def make(loaded: BaseModel, spec: RunSpec, tokens_asked: int | None = None) -> Ready:
    """For runs like this spec's; from here on the base, of which `unsupported` says nothing, reads streams only."""
    planned = plan.make(loaded, spec)
    model = PackedModel(loaded, planned)
    budget = measure.budget(model, planned, spec, tokens_asked)
    model.expect(budget, spec.max_length)
    log.info("%s", planned.told(budget))
    return Ready(model, planned, budget)
