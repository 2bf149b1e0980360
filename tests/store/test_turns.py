"""Turns: whatever takes several steps in two libraries' tables is done by one at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from sqlalchemy.engine import Engine

from mathverify_sweep.store import studies
from mathverify_sweep.store.database import connect
from mathverify_sweep.store.turns import one_at_a_time


def test_nobody_enters_while_another_is_inside(engine: Engine) -> None:
    url = engine.url.render_as_string(hide_password=False)
    inside: list[int] = []
    most: list[int] = []

    def enter(number: int) -> None:
        own = connect(url)
        for _ in range(5):
            with one_at_a_time(own):
                inside.append(number)
                most.append(len(inside))
                studies.names(own)  # a transaction of its own within the turn
                inside.remove(number)
        own.dispose()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(enter, range(4)))
    assert most == [1] * 20
