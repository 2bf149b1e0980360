"""Plans: the stages of a promotion, as a pure function of a trial's spec, the training rows that there are, and the
settings. Reads no database and queues nothing; refuses settings that these rows cannot fill.

Stage k has the first n_k rows of the nested order. What it trains on, and from what, is the plan:

    cumulative   the first n_k rows, from the best adapter so far
    sequential   the rows that are new, from the last adapter
    replay       the rows that are new and a share of the old ones, drawn by the seed, from the last adapter
    scratch      one run over the largest stage
    trunk        one run at a constant learning rate, in one piece per stage; at the end of each piece a cooldown goes
                 on from where it stopped, over the last rows of the stage. Piece and cooldown together are a
                 `warmup_stable_decay` run over the first n_k rows, so with K stages the rows before a cooldown are
                 trained on once, not K times (Hägele et al., Scaling Laws and Compute-Optimal Training Beyond Fixed
                 Training Durations, 2024)
    rounds       as listed, from the last adapter

Every stage but a trunk's piece begins with a fresh optimizer and a schedule of its own.
"""

from __future__ import annotations

import logging
import math
from typing import Any

from mathverify_sweep.config import PromotionConfig, StageSize
from mathverify_sweep.errors import StudyError
from mathverify_sweep.specs import PlannedStage, RunSpec

log = logging.getLogger(__name__)


def plan(trial: RunSpec, available: int, settings: PromotionConfig) -> tuple[PlannedStage, ...]:
    """The stages of a promotion of this trial, in the order in which they are queued, numbered from 1, without rungs.

    `available`: training rows that there are. Raises StudyError when they do not fill the plan.
    """
    seed = trial.seed if settings.seed is None else settings.seed
    base = _changed(
        trial,
        rungs=(),
        seed=seed,
        least_gain=settings.least_gain,
        slice_rows=settings.slice_rows,
        params={"max_steps": 0},  # a stage is as long as its plan says, not as its trial was
    )
    if settings.plan == "rounds":
        stages = _rounds(base, available, settings)
    else:
        growing = sizes(settings.stages, available)
        stages = {"cumulative": _cumulative, "sequential": _slices, "replay": _slices, "scratch": _scratch}.get(
            settings.plan, _trunk
        )(base, growing, settings)
    return tuple(
        stage.model_copy(update={"spec": _changed(stage.spec, stage=number)}) for number, stage in enumerate(stages, 1)
    )


def sizes(wanted: tuple[StageSize, ...], available: int) -> list[int]:
    """Training rows of each stage, growing; `wanted` are numbers, shares, or `all`.

    A larger stage than there are rows is capped, and one that then is no larger than the stage before it is left out,
    and that is logged.
    """
    kept: list[int] = []
    for size in wanted:
        rows = _rows(size, available)
        if kept and rows <= kept[-1]:
            log.warning(
                "stage %s left out: it is %d of %d rows, the stage before it %d", size, rows, available, kept[-1]
            )
            continue
        kept.append(rows)
    return kept


def _cumulative(base: RunSpec, growing: list[int], settings: PromotionConfig) -> list[PlannedStage]:
    epochs = _epochs(settings, growing[-1], sum(growing))
    return [
        PlannedStage(
            spec=_changed(base, train_rows=rows, epochs=epochs, slices=growing[: number + 1]),
            after=number - 1 if number else None,
            start_from=tuple(range(number)),
        )
        for number, rows in enumerate(growing)
    ]


def _slices(base: RunSpec, growing: list[int], settings: PromotionConfig) -> list[PlannedStage]:
    share = settings.replay_share if settings.plan == "replay" else 0.0
    before = [0, *growing[:-1]]
    replayed = [round(share * old) for old in before]
    epochs = _epochs(settings, growing[-1], growing[-1] + sum(replayed))
    slices = [
        _changed(base, train_rows=rows, skip_rows=old, replay_rows=again, epochs=epochs, slices=growing[: number + 1])
        for number, (rows, old, again) in enumerate(zip(growing, before, replayed, strict=True))
    ]
    return _chain(slices, goes_back=settings.go_back)


def _scratch(base: RunSpec, growing: list[int], settings: PromotionConfig) -> list[PlannedStage]:
    whole = _changed(base, train_rows=growing[-1], epochs=settings.passes or 1.0, slices=growing)
    return [PlannedStage(spec=whole)]


def _trunk(base: RunSpec, growing: list[int], settings: PromotionConfig) -> list[PlannedStage]:
    """Pieces and cooldowns by turns. The warm-up is that of a run over the first stage alone."""
    cuts = tuple(math.floor(rows * (1 - settings.cooldown_share)) for rows in growing)
    cooled = sum(rows - cut for rows, cut in zip(growing, cuts, strict=True))
    epochs = _epochs(settings, growing[-1], cuts[-1] + cooled)
    batch, warmup = base.params.effective_batch_size, base.params.warmup_steps
    if epochs * cuts[0] < batch:
        raise StudyError(
            f"promotion.stages: a trunk must have a whole effective batch ({batch} rows) before its first cooldown, "
            f"got {cuts[0]} of {growing[0]} rows. Make the first stage larger."
        )
    absolute = warmup if warmup >= 1 else float(math.ceil(warmup * math.ceil(epochs * growing[0] / batch)))
    whole = _changed(base, epochs=epochs, params={"warmup_steps": absolute})
    stages: list[PlannedStage] = []
    for number in range(len(growing)):
        last_piece = len(stages) - 2 if number else None
        piece, cooldown = _piece(whole, cuts[: number + 1]), _cooldown(whole, cuts[: number + 1], growing[: number + 1])
        stages.append(PlannedStage(spec=piece, after=last_piece, goes_on_from=last_piece))
        stages.append(PlannedStage(spec=cooldown, after=len(stages) - 1, goes_on_from=len(stages) - 1))
    return stages


def _piece(whole: RunSpec, cuts: tuple[int, ...]) -> RunSpec:
    """The trunk up to the last cut."""
    constant = {"lr_scheduler_type": "constant_with_warmup"}
    return _changed(whole, train_rows=cuts[-1], blocks=cuts[:-1], leaves_state=True, params=constant)


def _cooldown(whole: RunSpec, cuts: tuple[int, ...], growing: list[int]) -> RunSpec:
    """A run over the largest of `growing` whose learning rate begins to fall where the piece up to the last cut stops.

    A piece stops after its last whole effective batch; rows that do not fit `max_length` may move that by a step.
    """
    rows, batch = growing[-1], whole.params.effective_batch_size
    steps = math.ceil(whole.epochs * rows / batch)
    falling = (steps - math.floor(whole.epochs * cuts[-1] / batch)) / steps
    params = {"lr_scheduler_type": "warmup_stable_decay", "lr_decay_share": falling}
    return _changed(whole, train_rows=rows, blocks=cuts, slices=growing, params=params)


def _rounds(base: RunSpec, available: int, settings: PromotionConfig) -> list[PlannedStage]:
    specs: list[RunSpec] = []
    ends: set[int] = set()
    seen = 0
    for number, wanted in enumerate(settings.rounds, 1):
        batch = wanted.effective_batch_size or base.params.effective_batch_size
        first, last = (0, _rows(wanted.rows, available)) if wanted.rows is not None else (seen, seen)
        last += (wanted.steps or 0) * batch
        if last > available:
            raise StudyError(
                f"promotion.rounds: round {number} needs the training rows {first:,} to {last:,}, there are "
                f"{available:,}. Give it fewer steps, or `rows`, which begin anew."
            )
        seen = max(seen, last)
        ends.add(last)
        params = wanted.model_dump(include={"effective_batch_size", "learning_rate"}, exclude_none=True)
        precision = wanted.model_dump(include={"quantization", "compute_dtype"}, exclude_none=True)
        known = sorted(end for end in ends if end <= last)
        rows = {"train_rows": last, "skip_rows": first, "slices": known}
        specs.append(_changed(base, params=params, base_model=precision, **rows))
    return _chain(specs, goes_back=settings.go_back)


def _chain(specs: list[RunSpec], *, goes_back: bool) -> list[PlannedStage]:
    """Each from the adapter of the one before; or from that of the best before, where the last is to be taken back."""
    stages = [PlannedStage(spec=spec) for spec in specs[:1]]
    for number, spec in enumerate(specs[1:], 1):
        start_from = tuple(range(number)) if goes_back else (number - 1,)
        stages.append(PlannedStage(spec=_changed(spec, goes_back=goes_back), after=number - 1, start_from=start_from))
    return stages


def _epochs(settings: PromotionConfig, largest: int, met: int) -> float:
    """How often each row of a stage is met, where one epoch each would be `met` rows in all stages together."""
    return 1.0 if settings.passes is None else settings.passes * largest / met


def _rows(size: StageSize, available: int) -> int:
    if isinstance(size, str):
        return available
    return min(max(1, round(size * available)) if isinstance(size, float) else size, available)


def _changed(
    spec: RunSpec, params: dict[str, Any] | None = None, base_model: dict[str, Any] | None = None, **changes: Any
) -> RunSpec:
    """The spec with other values, checked; `params` and `base_model` change these keys of theirs."""
    old = spec.model_dump()
    inner = {"params": old["params"] | (params or {}), "base_model": old["base_model"] | (base_model or {})}
    return RunSpec.model_validate(old | inner | changes)
