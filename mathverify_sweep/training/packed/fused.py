"""A model's norms, gates and rotations in fewer trips through memory than its own code takes.

In bfloat16 on CUDA norms by PyTorch's kernel, gates and rotations by Liger's where `liger-kernel` is installed; in
float32 norms by one node of autograd instead of a dozen, which is a tenth of a small model's step on a CPU. What a
kernel stands in for must have given the same answer to made-up rows, whatever its class is called; otherwise the
model's own code stays.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

log = logging.getLogger(__name__)

_SAME = {torch.float32: 1e-6, torch.bfloat16: 2**-6}
"""How near answers must be, relative to their size and absolutely. bfloat16 has 8 bits, and these round twice."""

_ROTATION = "apply_rotary_pos_emb"


def norm(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """What a root-mean-square norm computes, faster; None for one that is not known to be of this kind."""
    weight: Any = getattr(module, "weight", None)
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not (isinstance(weight, Tensor) and isinstance(epsilon, float)):
        return None
    factors = (weight.detach(), 1 + weight.detach())  # Llama's way of writing a weight, and Gemma's
    if weight.dtype is torch.float32:
        candidates = [partial(_norm, factor=factor, epsilon=epsilon) for factor in factors]
    elif weight.is_cuda:
        candidates = [partial(_rms_norm, factor=factor, epsilon=epsilon) for factor in factors]
    else:
        return None
    rows = _made_up(1, weight.shape[-1], weight)
    return next((candidate for candidate in candidates if _agree(candidate, module, rows)), None)


def gate(mlp: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """A gated feed-forward block, down(act(gate(x)) * up(x)), with its product in one kernel; None for another."""
    parts: list[Any] = [getattr(mlp, name, None) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")]
    if None in parts or not _has_liger(next(mlp.parameters())):
        return None
    from liger_kernel.ops.geglu import LigerGELUMulFunction
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    gate_proj, up_proj, down_proj, act = parts
    products = ((functional.silu, LigerSiLUMulFunction), (_gelu_by_tanh, LigerGELUMulFunction))
    scale = torch.linspace(-4, 4, 101)
    product = next((product for known, product in products if _close(act(scale), known(scale))), None)

    def candidate(x: Tensor) -> Tensor:
        assert product is not None
        answer: Tensor = down_proj(product.apply(gate_proj(x), up_proj(x)))
        return answer

    rows = _made_up(1, gate_proj.in_features, next(mlp.parameters()))
    return candidate if product is not None and _agree(candidate, mlp, rows) else None


@contextmanager
def rotations(body: nn.Module) -> Iterator[None]:
    """Within it, the model's layers rotate queries and keys in one kernel, if there is one for this model."""
    module = sys.modules[type(body).__module__]
    own = getattr(module, _ROTATION)
    setattr(module, _ROTATION, _rotation(own, next(body.parameters())))
    try:
        yield
    finally:
        setattr(module, _ROTATION, own)


def _rotation(own: Callable[..., Any], like: Tensor) -> Callable[..., Any]:
    if not _has_liger(like):
        return own
    from liger_kernel.ops.rope import LigerRopeFunction

    def fast(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, **_: Any) -> Any:
        return LigerRopeFunction.apply(q, k, cos, sin)

    return fast if _rotates_alike(own, like.device) else own


@cache
def _rotates_alike(own: Callable[..., Any], device: torch.device) -> bool:
    """Whether a model's rotation of queries and keys is Llama's, which Liger's kernel is written for."""
    from liger_kernel.ops.rope import LigerRopeFunction

    q, k = (_made_up(tokens, 64, torch.empty((), dtype=torch.bfloat16, device=device)) for tokens in (8, 4))
    q, k = (rows.view(1, 4, -1, 64).transpose(1, 2) for rows in (q, k))
    angles = torch.linspace(0, 3, 4 * 32, device=device).view(1, 4, 32).repeat(1, 1, 2)
    cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
    expected = own(q.clone(), k.clone(), cos, sin)
    found = LigerRopeFunction.apply(q.clone(), k.clone(), cos, sin)
    return all(_close(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


def _has_liger(like: Tensor) -> bool:
    """Whether there are kernels for tensors on this one's device; `like` may be packed in 4 bits."""
    return like.is_cuda and like.dtype is not torch.float32 and _liger()


@cache
def _liger() -> bool:
    found = find_spec("liger_kernel") is not None
    if not found:
        log.warning("liger-kernel is not installed: gates and rotations take several times as long")
    return found


def _made_up(tokens: int, columns: int, like: Tensor) -> Tensor:
    """(1, 4 * tokens, columns), no two alike."""
    dtype = like.dtype if like.dtype.is_floating_point else torch.bfloat16
    count = 4 * tokens * columns
    return torch.linspace(-2, 3, count, device=like.device).view(1, 4 * tokens, columns).mul(37).sin().to(dtype)


@torch.no_grad()
def _agree(candidate: Callable[[Tensor], Tensor], module: nn.Module, rows: Tensor) -> bool:
    return _close(candidate(rows.clone()), module(rows.clone()))


def _close(mine: Tensor, theirs: Tensor) -> bool:
    tolerance = _SAME[theirs.dtype]
    return torch.allclose(mine, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()))


def _gelu_by_tanh(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


def _rms_norm(x: Tensor, factor: Tensor, epsilon: float) -> Tensor:
    return functional.rms_norm(x, factor.shape, factor, epsilon)


def _norm(x: Tensor, factor: Tensor, epsilon: float) -> Tensor:
    answer: Tensor = _Norm.apply(x, factor, epsilon)  # type: ignore[no-untyped-call]
    return answer


class _Norm(torch.autograd.Function):
    """x / sqrt(mean of x squared + epsilon) * factor, over the last dimension. The factor is frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor, epsilon: float) -> Tensor:
        inverse = torch.linalg.vecdot(x, x).div_(x.shape[-1]).add_(epsilon).rsqrt_().unsqueeze(-1)
        normed = x * inverse
        ctx.save_for_backward(normed, inverse, factor)
        scaled: Tensor = normed * factor
        return scaled

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        normed, inverse, factor = ctx.saved_tensors
        high = gradient * factor
        along = torch.linalg.vecdot(high, normed).div_(-normed.shape[-1]).unsqueeze(-1)
        return high.addcmul_(normed, along).mul_(inverse), None, None
