"""Kernels in Triton against plain formulas in float32: rows and runs of all lengths, shared keys, thin matrices.

Skipped where there is no GPU; with Triton and `TRITON_INTERPRET=1` they run on a CPU.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from mathverify_sweep.training.packed.grouped import ManyRuns, Stack
from mathverify_sweep.training.packed.layers import OneRun
from mathverify_sweep.training.packed.pieces import Cut
from mathverify_sweep.training.packed.weights import Layout

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
DTYPE, NEAR = (torch.float32, 2**-18) if INTERPRETED else (torch.bfloat16, 2**-6)
"""The interpreter multiplies bfloat16 as if it were whole numbers."""

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton"),  # the interpreter's numpy, of what is no number
    pytest.mark.skipif(
        not (INTERPRETED or torch.cuda.is_available()), reason="needs a CUDA device or TRITON_INTERPRET=1"
    ),
]

LENGTHS = [[1], [5, 1, 64, 63], [130, 65, 1, 2], [200, 0, 0], [0, 33, 128, 0, 7]]


def ends_of(lengths: Sequence[int]) -> Tensor:
    return torch.tensor(lengths, device=DEVICE).cumsum(0).int()


def random(*shape: int, seed: int, dtype: torch.dtype = DTYPE) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


@pytest.mark.parametrize("size", [32, 64, 128, 2_048])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_pieces_are_the_stretches_themselves(lengths: list[int], size: int) -> None:
    pieces = Cut(ends_of(lengths), sum(lengths))(size)
    wanted = []
    for stretch, length in enumerate(lengths):
        start = sum(lengths[:stretch])
        assert int(pieces.first[stretch]) == len(wanted)
        wanted += [[stretch, start, start + length, begin] for begin in range(start, start + length, size)]
    assert int(pieces.first[-1]) == len(wanted)
    assert pieces.table[: len(wanted)].tolist() == wanted
    assert all(begin >= end for _, _, end, begin in pieces.table[len(wanted) :].tolist())


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize(("heads", "size"), [((3, 1), 64), ((2, 2), 64), ((4, 2), 128)], ids=str)
def test_attention_is_the_formula(lengths: list[int], heads: tuple[int, int], size: int) -> None:
    from mathverify_sweep.training.packed import rows

    tokens, scaling = sum(lengths), 0.7 * size**-0.5
    q, k, v, high = (
        random(tokens, count, size, seed=i) for i, count in enumerate((heads[0], *2 * heads[1:], heads[0]))
    )
    k = random(heads[1], tokens, size, seed=8).transpose(0, 1)  # however they lie in memory
    ours = [tensor.detach().requires_grad_() for tensor in (q, k, v)]
    attended = rows.attend(*ours, Cut(ends_of(lengths), tokens), scaling, rows.BY_SIZE[size])
    attended.backward(high)
    exact = [tensor.detach().float().requires_grad_() for tensor in (q, k, v)]
    expected = plain(*exact, lengths, scaling)
    expected.backward(high.float())
    near(attended, expected)
    for mine, theirs in zip(ours, exact, strict=True):
        near(mine.grad, theirs.grad)


def test_a_row_of_attention_is_its_own() -> None:
    """To the bit: wherever it lies, and beside what is no number."""
    from mathverify_sweep.training.packed import rows

    told = []
    for before, behind in ((0, 0), (77, 0), (1, 131)):
        lengths = [before, 150, behind]
        q, k, v, high = (torch.full((sum(lengths), count, 64), float("nan")) for count in (3, 1, 1, 3))
        for seed, tensor in enumerate((q, k, v, high)):
            tensor[before : before + 150] = random(150, *tensor.shape[1:], seed=seed).cpu()
        ours = [tensor.to(DEVICE, DTYPE).requires_grad_() for tensor in (q, k, v)]
        attended = rows.attend(*ours, Cut(ends_of(lengths), sum(lengths)), 0.125, rows.BY_SIZE[64])
        attended.backward(high.to(DEVICE, DTYPE))
        told.append([tensor[before : before + 150] for tensor in (attended, *(tensor.grad for tensor in ours))])
    assert all(torch.isfinite(tensor).all() for tensor in told[0])
    for other in told[1:]:
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(told[0], other, strict=True))


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize(("rank", "widths"), [(16, (32,)), (48, (80, 32, 32))], ids=str)
def test_products_are_the_formula(lengths: list[int], rank: int, widths: tuple[int, ...]) -> None:
    """Of siblings that give so many columns: the forward of the first, the way back through all, both gradients."""
    from mathverify_sweep.training.packed import matmuls

    tokens, runs, inputs = sum(lengths), len(lengths), 112
    cut = Cut(ends_of(lengths), tokens)
    x, low = random(tokens, inputs, seed=0), random(tokens, rank * len(widths), seed=1)
    gradients = [random(tokens, width, seed=2 + i) for i, width in enumerate(widths)]
    weights = [random(width, inputs, seed=5 + i) for i, width in enumerate(widths)]
    a, b = random(runs, rank * len(widths), inputs, seed=8), random(runs, rank, widths[0], seed=9)
    owners = torch.repeat_interleave(torch.tensor(lengths, device=DEVICE))

    def own(left: Tensor, matrices: Tensor) -> Tensor:
        return torch.einsum("tk,tkn->tn", left.float(), matrices.float()[owners])

    pieces = cut(matmuls.SUMMED.rows)
    left = low[:, :rank]
    y = matmuls.times([(x, weights[0].t())], (left, b), pieces, x.new_empty(tokens, widths[0]), matmuls.SUMMED)
    near(y, x.float() @ weights[0].float().t() + own(left, b))
    pairs = list(zip(gradients, weights, strict=True))
    back = matmuls.times(pairs, (low, a), pieces, torch.empty_like(x), matmuls.SUMMED)
    near(back, sum(g.float() @ w.float() for g, w in pairs) + own(low, a))
    pieces = cut(matmuls.OWN.rows)
    wide = x.new_zeros(tokens, rank + 16)
    matmuls.times([], (gradients[0], b.transpose(1, 2)), pieces, wide[:, 16:], matmuls.OWN)
    near(wide[:, 16:], own(gradients[0], b.transpose(1, 2)))
    assert not wide[:, :16].any()

    total = random(runs, rank * len(widths) + 1, inputs, seed=10, dtype=torch.float32)[:, 1:]
    before = total.clone()
    matmuls.add_outer(low, x, cut(64), total, matmuls.OUTER)
    marks = torch.nn.functional.one_hot(owners, runs).float()
    near(total - before, torch.einsum("tr,ta,tb->rab", marks, low.float(), x.float()))


def test_a_run_s_products_are_its_own() -> None:
    from mathverify_sweep.training.packed import matmuls

    told = []
    for before, behind in ((0, 0), (50, 3)):
        lengths = [before, 200, behind]
        x, low = (torch.full((sum(lengths), columns), float("nan")) for columns in (64, 16))
        x[before : before + 200], low[before : before + 200] = random(200, 64, seed=0), random(200, 16, seed=1)
        x, low = x.to(DEVICE, DTYPE), low.to(DEVICE, DTYPE)
        cut = Cut(ends_of(lengths), len(x))
        total = torch.zeros(3, 16, 64, device=DEVICE)
        matmuls.add_outer(low, x, cut(128), total, matmuls.OUTER)
        y = torch.empty_like(x)
        base, own = [(x, random(64, 64, seed=2))], (low, random(1, 16, 64, seed=3).expand(3, 16, 64).contiguous())
        matmuls.times(base, own, cut(matmuls.SUMMED.rows), y, matmuls.SUMMED)
        told.append((total[1], y[before : before + 200]))
    assert torch.isfinite(told[0][0]).all()
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*told, strict=True))


@pytest.mark.parametrize("with_dropout", [False, True], ids=["", "dropout"])
@pytest.mark.parametrize("rank", [16, 64])
@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [(64, (64, 32, 32)), (96, (64,)), (576, (576, 192, 192)), (576, (1_536, 1_536)), (1_536, (576,)), (136, (128,))],
    ids=str,
)
def test_what_several_runs_add_is_what_each_adds_alone(
    inputs: int, outputs: tuple[int, ...], rank: int, with_dropout: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways through layers as small as the tests' base model's, and SmolLM2's, against plain matmuls."""
    from mathverify_sweep.training.packed import products

    if INTERPRETED:
        monkeypatch.setattr(products, "_ours", lambda *_: True)
    lengths = [130, 0, 262, 8, 1]
    names = ("q_proj", "k_proj", "v_proj")[: len(outputs)]
    shapes: dict[str, tuple[int, ...]] = {f"{name}.lora_A.weight": (rank, inputs) for name in names}
    shapes |= {f"{name}.lora_B.weight": (width, rank) for name, width in zip(names, outputs, strict=True)}
    layout, tokens, numbers = Layout.of(shapes, rank), sum(lengths), range(len(names))
    x = random(tokens, inputs, seed=0)
    weights = [random(width, inputs, seed=1 + i) for i, width in enumerate(outputs)]
    gradients = [random(tokens, width, seed=4 + i) for i, width in enumerate(outputs)]
    masks = random(len(names), tokens, inputs, seed=7).gt(-1)

    stack = Stack(layout, len(lengths), x)
    views = stack.views(names)
    assert views is not None
    for i, view in enumerate([views.a, *views.b]):
        view.copy_(random(*view.shape, seed=8 + i) / 4)
    dropout = (lambda matrix, number: matrix * masks[number]) if with_dropout else None
    several = ManyRuns(views, Cut(ends_of(lengths), tokens), numbers, dropout)
    low = several.low(x)
    ys = [several.output(x, weight, low, at) for at, weight in enumerate(weights)]
    x_gradient = several.backward(x, low, gradients, weights)

    exact = [weight.float() for weight in weights]
    for run, rows in enumerate(slice(sum(lengths[:i]), sum(lengths[: i + 1])) for i in range(len(lengths))):
        one = Stack(layout, 1, torch.empty((), device=DEVICE)).views(names)
        assert one is not None
        for mine, theirs in zip([one.a, *one.b], [views.a, *views.b], strict=True):
            mine.copy_(theirs[run])
        kept = (lambda matrix, number, rows=rows: matrix * masks[number, rows]) if with_dropout else None
        alone, own = OneRun(one, numbers, kept), x[rows].float()
        own_low = alone.low(own)
        for at, weight in enumerate(exact):
            near(ys[at][rows], alone.output(own, weight, own_low, at))
        back = alone.backward(own, own_low, [gradient[rows].float() for gradient in gradients], exact)
        assert x_gradient is not None
        near(x_gradient[rows], back)
        near(views.a_gradient[run], one.a_gradient)
        for mine, theirs in zip(views.b_gradient, one.b_gradient, strict=True):
            near(mine[run], theirs)


@pytest.mark.skipif(INTERPRETED, reason="only a GPU records")
def test_what_is_recorded_takes_other_rows_and_runs_later() -> None:
    from mathverify_sweep.training.packed import matmuls, rows

    q, k, v, high = (random(512, count, 64, seed=i) for i, count in enumerate((3, 1, 1, 3)))
    x, low, a = random(512, 64, seed=4), random(512, 16, seed=5), random(3, 16, 64, seed=6)

    def all_of_it(ends: Tensor) -> list[Tensor]:
        cut = Cut(ends, 512)
        ours = [tensor.detach().requires_grad_() for tensor in (q, k, v)]
        attended = rows.attend(*ours, cut, 0.125, rows.BY_SIZE[64])
        total = torch.zeros(3, 16, 64, device=DEVICE)
        matmuls.add_outer(low, x, cut(128), total, matmuls.OUTER)
        back = matmuls.times([], (low, a), cut(matmuls.OWN.rows), torch.empty_like(x), matmuls.OWN)
        return [attended.detach(), *torch.autograd.grad(attended, ours, high), total, back]

    ends = ends_of([200, 312, 0])
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        all_of_it(ends)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        recorded = all_of_it(ends)
    for lengths in ([200, 312, 0], [1, 0, 511], [64, 129, 319]):
        ends.copy_(ends_of(lengths))
        graph.replay()
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(recorded, all_of_it(ends), strict=True))


def plain(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], scaling: float) -> Tensor:
    """Row by row, heads of keys and values repeated."""
    k, v = (tensor.repeat_interleave(q.shape[1] // k.shape[1], 1) for tensor in (k, v))
    answers = []
    for row in zip(*(tensor.split(list(lengths)) for tensor in (q, k, v)), strict=True):
        queries, keys, values = (tensor.transpose(0, 1) for tensor in row)
        scores = scaling * queries @ keys.transpose(1, 2)
        unseen = torch.ones(scores.shape[1:], dtype=torch.bool, device=q.device).triu(1)
        answers.append((scores.masked_fill(unseen, float("-inf")).softmax(-1) @ values).transpose(0, 1))
    return torch.cat(answers)


def near(mine: Tensor | None, exact: Tensor | None) -> None:
    """As near as the dtype is."""
    assert mine is not None
    assert exact is not None
    if exact.numel():
        assert float((mine.float() - exact).detach().abs().max()) <= NEAR * max(1.0, float(exact.detach().abs().max()))
