"""A sweep file made small: the same axes, enqueued settings and plan on the built-in model and generated rows, so that
the whole of it runs on a CPU in less than a minute. Its figures mean nothing.
"""

from __future__ import annotations

from typing import Any

from mathverify_sweep.config import SweepConfig
from mathverify_sweep.specs import BaseModelSpec

TRIALS = 2
"""Trials of a smoke run: of what is enqueued, the first two."""
TRAIN_ROWS = 48
STAGES = (40, 48)
"""Rows of a promotion's stages, two at most. A trunk needs a whole effective batch before its first cooldown."""
ROUND_STEPS = 2


def smoke(config: SweepConfig) -> SweepConfig:
    """The same sweep, small, under a name of its own.

    It keeps what a file can have wrong: search space, enqueued settings, sampler, pruner, prompts, and the plan.
    """
    told = config.model_dump()
    built_in = BaseModelSpec()
    told["study"] = f"{config.study[:190]}-smoke"
    told["base_model"] |= {"name": built_in.name, "revision": None, "trust_remote_code": False}
    told["data"] |= {
        "source": "generated",
        "revision": None,
        "generated_rows": 1_400,
        "columns": {},
        "split_column": None,
        "validation_share": 0.2,
        "test_share": 0.1,
        "gate_share": 0.05,
        "validation_rows": 24,
        "train_rows": TRAIN_ROWS,
    }
    told["training"] |= {"max_length": 512, "rung_rows": 12, "micro_batch_tokens": None, "max_new_tokens": 24}
    if config.rungs:
        told["pruner"]["min_rows"] = TRAIN_ROWS // 2
    told["budget"] = {"trials": TRIALS}
    told["promotion"] |= _promotion(config)
    told["tracking"]["wandb"] = "disabled"
    return SweepConfig.model_validate(told)


def _promotion(config: SweepConfig) -> dict[str, Any]:
    rounds = [
        one.model_dump() | ({"steps": ROUND_STEPS} if one.steps else {"rows": STAGES[0]})
        for one in config.promotion.rounds
    ]
    return {"stages": STAGES[: len(config.promotion.stages)], "rounds": rounds, "top": 1}
