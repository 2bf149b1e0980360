"""What a worker and its engine process say to each other, as JSON over one socket. Nothing is pickled."""

from __future__ import annotations

from multiprocessing.connection import Connection
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from mathverify_sweep.specs import BaseModelSpec, DataSpec, Frozen, RunResult, RunSpec
from mathverify_sweep.states import EndReason, Verdict
from mathverify_sweep.training.stopwatch import Measured


class Sample(Frozen):
    """Trials to measure an engine with, and where they may leave what they leave."""

    specs: tuple[RunSpec, ...]
    folder: str


class Prepare(Frozen):
    """To the engine: read this data, and refuse if it is not what the study was created with.

    `base_model` is that of the runs to come: whether it can be packed decides which engine `auto` is. With a `sample`
    it measures itself instead of waiting for runs.
    """

    kind: Literal["prepare"] = "prepare"
    base_model: BaseModelSpec
    data: DataSpec
    data_fingerprint: str
    sample: Sample | None = None


class Start(Frozen):
    """To the engine: train this run. `resume_from`: folders of earlier attempts, the newest first."""

    kind: Literal["start"] = "start"
    run_id: str
    spec: RunSpec
    folder: str
    start_adapter: str | None
    resume_from: tuple[str, ...]
    checkpoint_seconds: float


class Answer(Frozen):
    """To the engine: the verdict on a run's last report."""

    kind: Literal["answer"] = "answer"
    run_id: str
    verdict: Verdict


class Interrupt(Frozen):
    """To the engine: end this run at its next step, as `reason`; a preempted one leaves a checkpoint."""

    kind: Literal["interrupt"] = "interrupt"
    run_id: str
    reason: EndReason


class Ready(Frozen):
    """From the engine: prepared, waiting for runs. `note`: why it is not the one that was hoped for."""

    kind: Literal["ready"] = "ready"
    engine: str
    note: str | None


class Room(Frozen):
    """From the engine, when it is ready, has taken a run or has ended one: how many more it has a use for now.

    `begun`: how many it has taken so far; what was said before it heard of the latest one is out of date.
    """

    kind: Literal["room"] = "room"
    free_slots: int
    begun: int


class Measuring(Frozen):
    """From the engine: what it measures now, in words."""

    kind: Literal["measuring"] = "measuring"
    what: str


class Timed(Frozen):
    """From the engine: how fast it is. `device_bytes`: memory that its device has."""

    kind: Literal["timed"] = "timed"
    measured: Measured
    device_bytes: int


class Refused(Frozen):
    """From the engine: this machine cannot work on the study, and why."""

    kind: Literal["refused"] = "refused"
    message: str


class Logged(Frozen):
    """From the engine: a point of the training curve."""

    kind: Literal["logged"] = "logged"
    run_id: str
    rows_seen: int
    loss: float
    learning_rate: float


class Reported(Frozen):
    """From the engine: an intermediate value; it waits for an Answer."""

    kind: Literal["reported"] = "reported"
    run_id: str
    rows_seen: int
    value: float


class Stepped(Frozen):
    """From the engine, now and then: an optimizer step was taken."""

    kind: Literal["stepped"] = "stepped"


class Ended(Frozen):
    """From the engine: the run has ended."""

    kind: Literal["ended"] = "ended"
    run_id: str
    result: RunResult


ToEngine = Prepare | Start | Answer | Interrupt
FromEngine = Ready | Room | Measuring | Timed | Refused | Logged | Reported | Stepped | Ended

_TO_ENGINE: TypeAdapter[ToEngine] = TypeAdapter(Annotated[ToEngine, Field(discriminator="kind")])
_FROM_ENGINE: TypeAdapter[FromEngine] = TypeAdapter(Annotated[FromEngine, Field(discriminator="kind")])


def send(connection: Connection, message: ToEngine | FromEngine) -> None:
    """Send one message whole. Raises OSError when the other side is gone."""
    connection.send_bytes(message.model_dump_json().encode())


def receive_in_engine(connection: Connection) -> ToEngine:
    """The next message to the engine. Raises EOFError when the worker is gone."""
    return _TO_ENGINE.validate_json(connection.recv_bytes())


def receive_in_worker(connection: Connection) -> FromEngine:
    """The next message from the engine. Raises EOFError when the engine is gone."""
    return _FROM_ENGINE.validate_json(connection.recv_bytes())
