"""What `benchmarks.kernels` measures."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm

from mathverify_sweep.training import device
from mathverify_sweep.training.packed import attention, grouped, matmuls, products, rows
from mathverify_sweep.training.packed.layers import Layers
from mathverify_sweep.training.packed.pieces import Cut
from mathverify_sweep.training.packed.weights import Layout

GPU = torch.device("cuda")
LONGEST = 1_024
"""Tokens of a row that a sweep allows: PyTorch's kernel is told so."""


@dataclass(frozen=True)
class Job:
    """One cell: `prepare` gives what is timed, and how far its answer is from float32."""

    table: str
    line: str
    way: str
    prepare: Callable[[], tuple[Callable[[], Any], Callable[[Any], float]]]


@dataclass(frozen=True)
class Shape:
    """A model's: heads of queries and of keys, their size, and what its kinds of layers read and give."""

    name: str
    heads: int
    shared: int
    size: int
    kinds: dict[str, tuple[int, tuple[int, ...]]] = field(hash=False)


SMALL = Shape(
    "135M",
    9,
    3,
    64,
    {"qkv": (576, (576, 192, 192)), "o": (576, (576,)), "gate-up": (576, (1_536, 1_536)), "down": (1_536, (576,))},
)
LARGE = Shape(
    "8B",
    32,
    8,
    128,
    {
        "qkv": (4_096, (4_096, 1_024, 1_024)),
        "o": (4_096, (4_096,)),
        "gate-up": (4_096, (14_336, 14_336)),
        "down": (14_336, (4_096,)),
    },
)

FORWARD = {
    64: [(128, 64, 4, 3), (64, 64, 4, 3), (128, 64, 8, 3), (128, 32, 4, 3), (128, 128, 8, 2)],
    128: [(128, 64, 8, 2), (64, 64, 4, 2), (128, 128, 8, 2)],
}
QUERIES = {
    64: [(64, 64, 4, 3), (64, 64, 4, 2), (64, 32, 4, 3), (128, 64, 8, 3)],
    128: [(64, 64, 4, 2), (64, 32, 4, 2), (128, 64, 8, 2)],
}
KEYS = {
    64: [(64, 64, 4, 2), (64, 64, 4, 1), (64, 64, 4, 3), (128, 64, 8, 2)],
    128: [(64, 64, 4, 2), (64, 64, 4, 1), (64, 64, 8, 2)],
}
OWN = [(128, 64, 64, 4, 3), (64, 64, 64, 4, 4), (128, 128, 64, 8, 3), (128, 256, 64, 8, 3)]
SUMMED = [(128, 128, 64, 8, 3), (128, 128, 64, 4, 3), (128, 256, 64, 8, 3), (128, 64, 64, 4, 4)]
OUTER = [(2_048, 128, 64, 64, 4, 3), (1_024, 128, 64, 64, 4, 3), (1_024, 64, 64, 64, 4, 4), (2_048, 128, 128, 64, 8, 3)]


def jobs(*, small: bool) -> list[Job]:
    """All of them; `small`: with little data, but the same kernels."""
    few = 2_048

    def many(tokens: int) -> int:
        return few if small else tokens

    found = [*_attention(SMALL, many(65_536)), *_attention(LARGE, many(16_384))]
    for shape, thousands in ((SMALL, (16, 32, 64)), (LARGE, (16, 32))):
        for tokens in (1_024 * n for n in thousands):
            found += _both_ways(shape, many(tokens), f"{shape.name}, {tokens} tokens")
    found += [*_matmuls(SMALL, many(65_536), 8, 64), *_matmuls(LARGE, many(16_384), 8, 64)]
    for runs, rank in ((8, 64), (16, 64), (8, 32), (8, 16)):
        found += _layers(SMALL, many(65_536), runs, rank)
    return [*found, *_layers(LARGE, many(16_384), 8, 64)]


# Attention


@lru_cache(maxsize=1)
def _rows(shape: Shape, tokens: int) -> SimpleNamespace:
    """Queries, keys, values, a gradient, and rows; and what float32 makes of them: answer, gradients."""
    dice, lengths = random.Random(0), []
    while sum(lengths) < tokens:
        lengths.append(min(round(min(max(dice.gauss(350, 120), 100), 700)), tokens - sum(lengths)))
    torch.manual_seed(0)
    q, high = (torch.randn(tokens, shape.heads, shape.size, device=GPU).bfloat16() for _ in range(2))
    k, v = (torch.randn(tokens, shape.shared, shape.size, device=GPU).bfloat16() for _ in range(2))
    exact = [tensor.float().requires_grad_() for tensor in (q, k, v)]
    answers = []
    for queries, keys, values in zip(*(tensor.split(lengths) for tensor in exact), strict=True):
        keys, values = (t.repeat_interleave(shape.heads // shape.shared, 1).transpose(0, 1) for t in (keys, values))
        scores = queries.transpose(0, 1) @ keys.transpose(1, 2) * shape.size**-0.5
        unseen = torch.ones(scores.shape[1:], dtype=torch.bool, device=GPU).triu(1)
        answers.append((scores.masked_fill(unseen, float("-inf")).softmax(-1) @ values).transpose(0, 1))
    answer = torch.cat(answers)
    gradients = torch.autograd.grad(answer, exact, high.float())
    ends = torch.tensor(lengths, device=GPU).cumsum(0).int()
    stream = SimpleNamespace(rows=Cut(ends, tokens), row_ends=torch.nn.functional.pad(ends, (1, 0)), longest=LONGEST)
    return SimpleNamespace(
        q=q, k=k, v=v, high=high, stream=stream, scaling=shape.size**-0.5, exact=[answer.detach(), *gradients]
    )


def _attention(shape: Shape, tokens: int) -> Iterator[Job]:
    """Each kernel in several tiles."""
    size = shape.size

    def pytorch() -> Any:
        it = _rows(shape, tokens)
        return lambda: _of_pytorch(it.q, it.k, it.v, it), lambda out: _apart([out], it.exact[:1])

    def forward(tile: rows.Tile) -> Any:
        it = _rows(shape, tokens)
        pieces = it.stream.rows(tile.own)
        timed = lambda: rows.forward(it.q, it.k, it.v, pieces, it.scaling, tile)  # noqa: E731
        return timed, lambda out: _apart(out[:1], it.exact[:1])

    def queries(tile: rows.Tile) -> Any:
        it, seen, attended = _seen(shape, tokens)
        pieces = it.stream.rows(tile.own)
        return lambda: rows.query_gradient(seen, attended, pieces, tile), lambda out: _apart(out[:1], it.exact[1:2])

    def keys(tile: rows.Tile) -> Any:
        it, seen, attended = _seen(shape, tokens)
        along = (attended.float() * it.high.float()).sum(2).t().contiguous()
        pieces = it.stream.rows(tile.own)
        return lambda: rows.key_gradients(seen, along, pieces, tile), lambda out: _apart(out, it.exact[2:])

    line = f"{tokens} tokens"
    yield Job(f"{shape.name}, attention forward", line, "PyTorch", pytorch)
    for table, tiles, prepare in (
        (f"{shape.name}, attention forward", FORWARD[size], forward),
        (f"{shape.name}, gradient of queries", QUERIES[size], queries),
        (f"{shape.name}, of keys and values", KEYS[size], keys),
    ):
        for tile in tiles:
            yield Job(table, line, _told(tile), lambda tile=tile, prepare=prepare: prepare(rows.Tile(*tile)))  # type: ignore[misc]


def _both_ways(shape: Shape, tokens: int, line: str) -> Iterator[Job]:
    """Forward and backward, with the tiles that the engine takes."""

    def prepare(attend: Callable[..., Tensor]) -> Any:
        it = _rows(shape, tokens)
        inputs = [tensor.detach().requires_grad_() for tensor in (it.q, it.k, it.v)]
        return lambda: torch.autograd.grad(attend(*inputs, it), inputs, it.high), lambda out: _apart(out, it.exact[1:])

    def ours(q: Tensor, k: Tensor, v: Tensor, it: Any) -> Tensor:
        return rows.attend(q, k, v, it.stream.rows, it.scaling, rows.BY_SIZE[shape.size])

    yield Job("attention, both ways", line, "PyTorch", lambda: prepare(_of_pytorch))
    yield Job("attention, both ways", line, "ours", lambda: prepare(ours))


def _of_pytorch(q: Tensor, k: Tensor, v: Tensor, it: Any) -> Tensor:
    q, k, v = (tensor.transpose(0, 1).unsqueeze(0) for tensor in (q, k, v))
    return attention._over_rows(q, k, v, it.stream, it.scaling, None).squeeze(0)


def _seen(shape: Shape, tokens: int) -> tuple[Any, rows.Seen, Tensor]:
    it = _rows(shape, tokens)
    tile = rows.BY_SIZE[shape.size].forward
    attended, sums = rows.forward(it.q, it.k, it.v, it.stream.rows(tile.own), it.scaling, tile)
    return it, rows.Seen(it.q, it.k, it.v, it.high, sums, it.scaling), attended


# Adapters


@lru_cache(maxsize=1)
def _block(shape: Shape, tokens: int, runs: int, rank: int, kind: str) -> SimpleNamespace:
    """Rows of runs that have about as many each, matrices, and gradients."""
    inputs, outputs = shape.kinds[kind]
    dice = random.Random(0)
    shares = [dice.uniform(0.5, 1.5) for _ in range(runs)]
    lengths = [int(tokens * share / sum(shares)) for share in shares]
    lengths[-1] += tokens - sum(lengths)
    torch.manual_seed(0)

    def drawn(*size: int) -> Tensor:
        return (torch.randn(size, device=GPU) * size[-1] ** -0.5).bfloat16()

    return SimpleNamespace(
        lengths=lengths,
        cut=Cut(torch.tensor(lengths, device=GPU).cumsum(0).int(), tokens),
        x=drawn(tokens, inputs),
        low=drawn(tokens, rank * len(outputs)),
        gradients=[drawn(tokens, width) for width in outputs],
        weights=[drawn(width, inputs) for width in outputs],
        a=drawn(runs, rank * len(outputs), inputs),
        b=[drawn(runs, rank, width) for width in outputs],
        columns=[slice(i * rank, (i + 1) * rank) for i in range(len(outputs))],
        exact={},
    )


def _matmuls(shape: Shape, tokens: int, runs: int, rank: int) -> Iterator[Job]:
    """Each product that adapters take part in, in several tiles; those of a large base's are cuBLAS's."""
    of = f"{shape.name}, {runs} x {rank}"
    for table, parts, tiles in (
        (f"{of}, own", ("low", "low back"), OWN),
        (f"{of}, summed", ("output", "x back") if shape is SMALL else (), SUMMED),
        (f"{of}, outer", ("of A", "of B"), OUTER),
    ):
        for part in parts:
            for kind in shape.kinds:
                for tile in (None, *(tiles if shape is SMALL else tiles[:2])):
                    yield Job(
                        table,
                        f"{kind} {part}",
                        "PyTorch" if tile is None else _told(tile),
                        lambda part=part, kind=kind, tile=tile: _part(  # type: ignore[misc]
                            _block(shape, tokens, runs, rank, kind), part, tile
                        ),
                    )


def _part(it: Any, part: str, tile: tuple[int, ...] | None) -> Any:
    """What is timed, and its error: PyTorch's way without a tile. Both are the engine's own code."""
    terms: dict[str, list[tuple[list[products.Pair], products.Pair]]] = {
        "low": [([], (it.x, it.a.transpose(1, 2)))],
        "low back": [([], (g, b.transpose(1, 2))) for g, b in zip(it.gradients, it.b, strict=True)],
        "output": [
            ([(it.x, w.t())], (it.low[:, columns], b))
            for w, b, columns in zip(it.weights, it.b, it.columns, strict=True)
        ],
        "x back": [(list(zip(it.gradients, it.weights, strict=True)), (it.low, it.a))],
    }
    outer = {
        "of A": [(it.low, it.x)],
        "of B": [(it.low[:, c], g) for c, g in zip(it.columns, it.gradients, strict=True)],
    }
    if part in outer:
        totals = [torch.zeros(len(it.lengths), x.shape[1], y.shape[1], device=GPU) for x, y in outer[part]]
        exact = _kept(it, part, lambda: [_outer(x, y, it.lengths) for x, y in outer[part]])

        def summed_up() -> list[Tensor]:
            for total, (x, y) in zip(totals, outer[part], strict=True):
                if tile is None:
                    total.add_(grouped_mm(x.t(), y, offs=it.cut.ends))
                else:
                    matmuls.add_outer(x, y, it.cut(tile[0]), total, matmuls.Tile(*tile[1:]))
            return totals

        return summed_up, lambda out: _apart(out, exact)
    exact = _kept(it, part, lambda: [_product(base, own, it.lengths) for base, own in terms[part]])

    def multiplied() -> list[Tensor]:
        results = []
        for base, (left, right) in terms[part]:
            if tile is None:
                result = grouped_mm(left, right, offs=it.cut.ends)
                for x, w in base:
                    result.addmm_(x, w)
            else:
                shape = matmuls.Tile(*tile)
                result = matmuls.times(
                    base, (left, right), it.cut(shape.rows), left.new_empty(len(left), right.shape[2]), shape
                )
            results.append(result)
        return results

    return multiplied, lambda out: _apart(out, exact)


def _kept(it: Any, part: str, make: Callable[[], list[Tensor]]) -> list[Tensor]:
    if part not in it.exact:
        it.exact.clear()
        it.exact[part] = make()
    found: list[Tensor] = it.exact[part]
    return found


def _product(base: Sequence[products.Pair], own: products.Pair, lengths: list[int]) -> Tensor:
    parts = own[0].float().split(lengths)
    total = torch.cat([x @ w for x, w in zip(parts, own[1].float(), strict=True)])
    for x, w in base:
        total += x.float() @ w.float()
    return total


def _outer(left: Tensor, right: Tensor, lengths: list[int]) -> Tensor:
    pairs = zip(left.float().split(lengths), right.float().split(lengths), strict=True)
    return torch.stack([x.t() @ y for x, y in pairs])


def _layers(shape: Shape, tokens: int, runs: int, rank: int) -> Iterator[Job]:
    """Forward and backward of the engine's own layers, adapters and base."""
    for kind in shape.kinds:
        for way in ("PyTorch", "ours"):
            yield Job(
                "layers, both ways",
                f"{shape.name}, {runs} x {rank}, {kind}",
                way,
                lambda kind=kind, way=way: _layer(_block(shape, tokens, runs, rank, kind), rank, way),  # type: ignore[misc]
            )


def _layer(it: Any, rank: int, way: str) -> Any:
    names = [("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("o_proj",)]
    names = next(kin for kin in names if len(kin) == len(it.weights))
    shapes: dict[str, tuple[int, ...]] = {}
    for name, weight in zip(names, it.weights, strict=True):
        shapes[f"{name}.lora_A.weight"] = (rank, weight.shape[1])
        shapes[f"{name}.lora_B.weight"] = (weight.shape[0], rank)
    stack = grouped.Stack(Layout.of(shapes, rank), len(it.lengths), it.x)
    views = stack.views(names)
    assert views is not None
    for view, value in zip([views.a, *views.b], [it.a, *it.b], strict=True):
        view.copy_(value)
    adapters = grouped.ManyRuns(views, it.cut, range(len(names)), None)
    layers = Layers(
        names=names,
        numbers=tuple(range(len(names))),
        weights=[lambda weight=weight: weight for weight in it.weights],  # type: ignore[misc]
        biases=[None] * len(names),
        behind=False,
        adapters=lambda _: adapters,
        anchor=torch.zeros((), device=GPU, requires_grad=True),
    )
    x = it.x.unsqueeze(0).requires_grad_()
    gradients = [gradient.unsqueeze(0) for gradient in it.gradients]

    def both_ways() -> list[Tensor]:
        with mock.patch.object(device, "is_hopper", return_value=way == "ours"):
            ys = layers(x)
            return [*ys, *torch.autograd.grad(ys, [x], gradients)]

    def error(out: list[Tensor]) -> float:
        low = _product([], (it.x, it.a.transpose(1, 2)), it.lengths).bfloat16().split(rank, 1)
        pairs = zip(it.weights, low, it.b, strict=True)
        ys = [_product([(it.x, w.t())], (x, b), it.lengths) for w, x, b in pairs]
        return _apart([y.squeeze(0) for y in out[: len(ys)]], ys)

    return both_ways, error


def _told(tile: Sequence[int]) -> str:
    *sizes, warps, stages = tile
    return "/".join(map(str, sizes)) + f" w{warps} s{stages}"


def _apart(mine: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The largest difference, relative to the largest number."""
    pairs = zip(mine, exact, strict=True)
    return max(float((a.detach().float() - b).abs().max() / b.abs().max()) for a, b in pairs)
