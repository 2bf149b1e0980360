"""Which row is in which split, and in which order. A question never sits in two splits.

Every place is drawn from a hash of the seed and the text, never from a position: the same rows in another order, on
another machine or in another Python give the same splits, and a question keeps its split when rows are added.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import get_args

from mathverify_sweep.data.rows import Row, groups, question_key
from mathverify_sweep.errors import DataError
from mathverify_sweep.specs import DataSpec, Split

SPLITS: tuple[Split, ...] = get_args(Split)


def by_question(rows: Sequence[Row], spec: DataSpec) -> dict[Split, list[Row]]:
    """Rows by split; the shares are those of the questions, as the hash of the question and the seed draws them."""
    ends: list[tuple[float, Split]] = []
    end = 0.0
    shares: tuple[tuple[Split, float], ...]
    shares = (("validation", spec.validation_share), ("test", spec.test_share), ("gate", spec.gate_share))
    for name, share in shares:
        end += share
        ends.append((end, name))
    if end >= 1:
        raise DataError(f"data: validation_share, test_share and gate_share must add up to less than 1, got {end:g}")
    splits: dict[Split, list[Row]] = {name: [] for name in SPLITS}
    for row, key in zip(rows, groups(rows), strict=True):
        place = _draw(spec.seed, "split", key) / 2**64
        splits[next((name for end, name in ends if place < end), "train")].append(row)
    return splits


def by_column(rows: Sequence[Row], values: Sequence[object], where: str) -> dict[Split, list[Row]]:
    """Rows by the split that the data itself names; a question in two is an error. `where` begins every message."""
    splits: dict[Split, list[Row]] = {name: [] for name in SPLITS}
    names: dict[object, Split] = {name: name for name in SPLITS}
    seen: dict[str, tuple[Split, int]] = {}
    for number, (row, value) in enumerate(zip(rows, values, strict=True), start=1):
        name = names.get(value) if isinstance(value, str) else None
        if name is None:
            raise DataError(f"{where}, row {number}: a split must be one of {', '.join(SPLITS)}, got {value!r}")
        first, first_number = seen.setdefault(question_key(row.question), (name, number))
        if first != name:
            raise DataError(
                f"{where}: a question must sit in one split only, but {row.question[:80]!r} is in {first!r} "
                f"(row {first_number}) and in {name!r} (row {number}). Move one, or leave data.split_column out"
            )
        splits[name].append(row)
    return splits


def nested_order(rows: Sequence[Row], seed: int, *, balance: bool) -> tuple[tuple[Row, ...], int]:
    """Training rows so that the first n are the n-row subset, and how many were dropped for balance.

    With `balance` the last rows of the larger class are dropped, and each pair of rows holds one of each class.
    """
    ordered = sorted(rows, key=lambda row: _draw(seed, "train", *_fields(row)))
    if not balance:
        return tuple(ordered), 0
    right = [row for row in ordered if row.is_correct]
    wrong = [row for row in ordered if not row.is_correct]
    pairs: list[Row] = []
    for pair in zip(right, wrong, strict=False):
        heads = _draw(seed, "pair", *_fields(pair[0]), *_fields(pair[1])) % 2
        pairs += pair[::-1] if heads else pair
    return tuple(pairs), len(ordered) - len(pairs)


def question_order(rows: Sequence[Row], seed: int) -> tuple[Row, ...]:
    """Rows to evaluate: shuffled, the rows of a question together, so that the first n are a sample of questions."""
    keyed = [(_draw(seed, "question", question_key(r.question)), _draw(seed, "row", *_fields(r)), r) for r in rows]
    return tuple(row for _, _, row in sorted(keyed, key=lambda item: item[:2]))


def keep(rows: Sequence[Row], count: int) -> tuple[Row, ...]:
    """`count` rows in the same order: whole questions while they fit, and at most one question in part to fill up."""
    sizes: dict[str, int] = defaultdict(int)
    for key in groups(rows):
        sizes[key] += 1
    room = count
    taken: dict[str, int] = {}
    for key, size in sizes.items():
        if size <= room:
            taken[key] = size
            room -= size
    rest = next((key for key in sizes if key not in taken), None)
    if room and rest is not None:
        taken[rest] = room
    return tuple(_first_of_each(rows, taken))


def fingerprint(splits: Iterable[tuple[Split, Sequence[Row]]]) -> str:
    """SHA-256 over the splits' names and rows in their order; every text goes in with its length before it."""
    digest = hashlib.sha256()
    for name, rows in splits:
        digest.update(f"{name} {len(rows)}\n".encode())
        for row in rows:
            digest.update(_packed(_fields(row)))
    return digest.hexdigest()


def _first_of_each(rows: Sequence[Row], limits: Mapping[str, int]) -> Iterable[Row]:
    used: dict[str, int] = defaultdict(int)
    for row, key in zip(rows, groups(rows), strict=True):
        if used[key] < limits.get(key, 0):
            used[key] += 1
            yield row


def _draw(seed: int, purpose: str, *texts: str) -> int:
    """A number below 2**64 that depends on the arguments only."""
    return int.from_bytes(hashlib.sha256(_packed((str(seed), purpose, *texts))).digest()[:8], "big")


def _fields(row: Row) -> tuple[str, str, str, str]:
    return row.question, row.answer, row.solution, str(row.is_correct)


def _packed(texts: Iterable[str]) -> bytes:
    parts = [text.encode() for text in texts]
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)
