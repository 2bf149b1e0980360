"""A base model that reads streams: its own code and weights, with its linear layers and its attention replaced.

Nothing of a model's code is copied: `transformers` runs its layers as they are. What is behind the last attention, the
head included, sees only the tokens behind which one is asked for. Knows the families that it has been tested on;
`unsupported` says what else stands in the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from mathverify_sweep.specs import BaseModelSpec, RunSpec
from mathverify_sweep.training import adapters
from mathverify_sweep.training.base import BaseModel
from mathverify_sweep.training.packed import attention, dropout, fused
from mathverify_sweep.training.packed.bundles import Alone, Bundle, Several
from mathverify_sweep.training.packed.graphs import Graphs
from mathverify_sweep.training.packed.grouped import Stack
from mathverify_sweep.training.packed.layers import Adapters, Layers, Siblings
from mathverify_sweep.training.packed.plan import Budget, Plan
from mathverify_sweep.training.packed.stream import Laid, Share, Stream
from mathverify_sweep.training.packed.weights import Weights, together, widest

FAMILIES = ("llama", "qwen2", "qwen3", "gemma3", "gemma3_text")
"""`model_type`s whose layers are built as expected here; the tests have one of each."""

_FRESH_KEPT = 4
"""Of 8B and rank 64 each takes 0.7 GB of the host's memory."""

LOGITS_AT_ONCE = 2**26
"""Float32 logits held at once where prompts are trained on too: 256 MB, three times that while they are worked on."""


def unsupported(base: BaseModel, spec: BaseModelSpec) -> str | None:
    """Why this base model cannot be packed, or None when it can."""
    config = base.model.config.get_text_config()
    if spec.quantization == "int8":
        return "an int8 base rounds a row by what else is in the batch, so runs would change each other's numbers"
    if base.model.config.model_type not in FAMILIES:
        return f"its architecture {base.model.config.model_type} is not one of {', '.join(FAMILIES)}"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return "its attention has a soft cap, which kernels for rows of many lengths do not have"
    if getattr(config, "attention_dropout", 0.0):
        return "its config asks for dropout in attention"
    if getattr(config, "use_bidirectional_attention", False):
        return "its attention looks ahead"
    return None


class PackedModel:
    """The base model of an engine. From here on it reads streams only."""

    def __init__(self, base: BaseModel, plan: Plan) -> None:
        self.base, self._plan = base, plan
        self._anchor = torch.zeros((), device=base.device, requires_grad=True)
        self._stream: Stream | None = None
        self._bundle: Bundle | None = None
        self._forget: list[Callable[[], None]] = []
        self._head = base.model.get_output_embeddings()  # type: ignore[no-untyped-call]
        assert isinstance(self._head, nn.Linear)
        self._body: Any = base.model.get_decoder()  # type: ignore[no-untyped-call]
        self._body.config._attn_implementation = attention.NAME
        self._cap: float | None = getattr(self._body.config, "final_logit_softcapping", None)
        self._teach()
        # In bfloat16 a logit near 20 has steps of 0.125, so the odds of many rows would tie.
        answers = list(base.answers)
        bias = self._head.bias
        self._two = self._head.weight[answers].float(), None if bias is None else bias[answers].float()
        self._can_record = base.device.type == "cuda" and plan.together and not plan.checkpointing
        self._graphs: Graphs | None = None
        self._longest = 0
        self._fresh: dict[tuple[object, ...], dict[str, Tensor]] = {}

    def expect(self, budget: Budget, longest: int = 0) -> None:
        """Passes will be of so many tokens at most, rows of so many, or as many as before."""
        self._longest = max(longest, self._longest)
        if not (self._can_record and self._plan.is_launch_bound(budget.tokens)):
            self._graphs = None
            return
        self._graphs = self._graphs or Graphs(self._trained, self._judged, self.base.device)
        self._graphs.expect(budget, self._longest)

    def room(self, budget: Budget) -> int:
        """Tokens that a pass of several runs may have: if it is launched, as many as one of a single run.

        Four runs fill a budget that three of them fit into; the fourth would else have a pass of its own.
        """
        return budget.tokens if self._graphs is not None else budget.of_one

    def weights(self, spec: RunSpec, start: Path | None) -> Weights:
        """A fresh adapter drawn from the spec's seed, or the one in folder `start`, as the layers read it."""
        base = self.base
        values = self._fresh_values(spec) if start is None else adapters.values(base, spec, start)
        return Weights(values, spec.params, base.device, base.compute_dtype, self._plan.rank_step)

    def _fresh_values(self, spec: RunSpec) -> dict[str, Tensor]:
        """Kept, since PEFT takes 0.3 s to make them, the GPU waits, and many trials begin alike."""
        model = spec.base_model
        key = (spec.seed, spec.params.lora_r, model.lora_target_modules, model.adapter_dtype)
        if key not in self._fresh:
            if len(self._fresh) >= _FRESH_KEPT:
                del self._fresh[next(iter(self._fresh))]
            self._fresh[key] = adapters.values(self.base, spec, None)
        return self._fresh[key]

    @property
    def together(self) -> bool:
        """Whether several runs have a use for one pass."""
        return self._plan.together

    def train(self, shares: Sequence[Share]) -> list[Tensor]:
        """Adds each share's gradient to its run's; gives each share's part of its effective batch's loss."""
        laid = Laid.of(shares, self.base.answers)
        if self._graphs is not None and (losses := self._graphs.train(laid, shares)) is not None:
            return list(losses)
        stream = Stream(laid, self.base.device)
        dropouts = dropout.of(stream, shares)
        if len(shares) == 1:
            return list(self._trained(stream, Alone(shares[0].weights, dropouts)))
        runs, stack = _stacked(shares)
        losses = self._trained(stream, Several(stack, stream, dropouts))
        stack.hand_back(runs)
        return list(losses)

    @torch.no_grad()
    def judge(self, shares: Sequence[Share]) -> list[Tensor]:
        """The log-odds of each share's rows, float32: log P(True) - log P(False)."""
        laid = Laid.of(shares, self.base.answers)
        runs = [share.weights for share in shares if share.weights is not None]
        odds = self._graphs.judge(laid, runs) if self._graphs is not None and runs else None
        if odds is None:
            stream = Stream(laid, self.base.device)
            bundle: Bundle = Alone(shares[0].weights, dropout.NO_DROPOUT)
            if len(shares) > 1:
                bundle = Several(_stacked(shares)[1], stream, dropout.NO_DROPOUT)
            odds = self._judged(stream, bundle)
        return list(torch.split(odds, [len(share.rows) for share in shares]))

    def _trained(self, stream: Stream, bundle: Bundle) -> Tensor:
        """Forward and backward; the loss of each run."""
        with self._reading(stream, bundle):
            losses = stream.by_run(self._losses(stream, self._hidden(stream)))
            losses.sum().backward()  # type: ignore[no-untyped-call]
        return losses.detach()

    def _judged(self, stream: Stream, bundle: Bundle) -> Tensor:
        """Forward; the log-odds of each token that is read."""
        with self._reading(stream, bundle):
            logits = self._capped(functional.linear(self._hidden(stream).float(), *self._two))
        return logits[:, 1] - logits[:, 0]

    @contextmanager
    def _reading(self, stream: Stream, bundle: Bundle) -> Iterator[None]:
        """Within it the layers know what they read, and for whom."""
        self._stream, self._bundle = stream, bundle
        try:
            with fused.rotations(self._body):
                yield
        finally:
            self._stream = self._bundle = None
            for forget in self._forget:
                forget()

    def _hidden(self, stream: Stream) -> Tensor:
        """Of the tokens that are read: (read, hidden size)."""
        output = self._body(input_ids=stream.ids, position_ids=stream.positions, use_cache=False, stream=stream)
        hidden: Tensor = output.last_hidden_state.squeeze(0)
        return hidden

    def _losses(self, stream: Stream, hidden: Tensor) -> Tensor:
        """Of each token that is read, weighted: (read,)."""
        at_once = max(1, LOGITS_AT_ONCE // self._head.weight.shape[0])
        if len(hidden) <= at_once:
            return self._weighted(hidden, stream.targets, stream.weights)
        tensors = (hidden, stream.targets, stream.weights)
        parts = zip(*(torch.split(tensor, at_once) for tensor in tensors), strict=True)
        return torch.cat([checkpoint(self._weighted, *part, use_reentrant=False) for part in parts])

    def _weighted(self, hidden: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        logits = self._capped(functional.linear(hidden, self._head.weight, self._head.bias)).float()
        return -logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0] * weights

    def _capped(self, logits: Tensor) -> Tensor:
        return logits if self._cap is None else torch.tanh(logits / self._cap) * self._cap

    # What the base model learns, once

    def _teach(self) -> None:
        layers = self._body.layers
        last = len(layers) - 1
        prefix = next(name for name, module in self.base.model.named_modules() if module is layers)
        numbers = count(1)
        for at, layer in enumerate(layers):
            self._teach_linear(f"{prefix}.{at}.", layer, numbers, is_last=at == last)
            layer.mlp.forward = fused.gate(layer.mlp) or layer.mlp.forward
        for norm in [module for module in self._body.modules() if "Norm" in type(module).__name__]:
            norm.forward = fused.norm(norm) or norm.forward
        self._read_less_behind_the_last_attention(layers[last])
        for layer in layers:
            layer.forward = partial(self._run_layer, layer.forward)

    def _teach_linear(self, prefix: str, layer: nn.Module, numbers: Iterator[int], *, is_last: bool) -> None:
        kinds = (nn.Linear, Linear4bit)
        linear = {name: (module, next(numbers)) for name, module in layer.named_modules() if type(module) in kinds}
        for names in together(linear):
            members: list[Any] = [linear[name][0] for name in names]
            layers = Layers(
                names=tuple(prefix + name for name in names),
                numbers=tuple(linear[name][1] for name in names),
                weights=[self._weight(member) for member in members],
                biases=[member.bias for member in members],
                behind=is_last and (names[0].startswith("mlp.") or names[0] == "self_attn.o_proj"),
                adapters=self._adapters,
                anchor=self._anchor,
            )
            siblings = Siblings(layers)
            self._forget.append(siblings.forget)
            for at, member in enumerate(members):
                member.forward = partial(siblings.answer, at)

    def _adapters(self, layers: Layers) -> Adapters | None:
        return None if self._bundle is None else self._bundle.adapters(layers)

    def _weight(self, module: Any) -> Callable[[], Tensor]:
        dtype = self.base.compute_dtype
        if not isinstance(module, Linear4bit):
            return lambda: module.weight
        packed: Any = module.weight

        def unpacked() -> Tensor:
            # What Linear4bit does in its own forward, so the numbers are the same to the bit.
            weight: Tensor = dequantize_4bit(packed.data, packed.quant_state)
            return weight.to(dtype)

        if not self._plan.dequantised:
            return unpacked
        weight = unpacked()
        return lambda: weight

    def _run_layer(self, forward: Callable[..., Tensor], hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not (self._plan.checkpointing and torch.is_grad_enabled()):
            return forward(hidden, *args, **kwargs)
        again: Any = checkpoint(forward, hidden, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
        return again  # type: ignore[no-any-return]

    def _read_less_behind_the_last_attention(self, layer: Any) -> None:
        """Keys and values are wanted of all tokens, anything after them only of those that are read.

        So the layer gets those only, but for its first norm, which feeds the attention: a fifth of the work of a model
        of five layers, a thirtieth of one of thirty.
        """
        run, first_norm, project = layer.forward, layer.input_layernorm.forward, layer.self_attn.o_proj.forward
        whole: list[Tensor] = []
        self._forget.append(whole.clear)

        def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            whole[:] = [hidden]
            result: Tensor = run(self._read(hidden), *args, **kwargs)
            return result

        layer.input_layernorm.forward = lambda _: first_norm(whole.pop())
        layer.self_attn.o_proj.forward = lambda attended: project(self._read(attended))
        layer.forward = forward

    def _read(self, hidden: Tensor) -> Tensor:
        assert self._stream is not None
        read = self._stream.read
        return hidden if read is None else hidden.index_select(1, read)


def _stacked(shares: Sequence[Share]) -> tuple[list[Weights], Stack]:
    """The adapters of a pass's runs, and a copy of them side by side."""
    runs = [share.weights for share in shares if share.weights is not None]
    stack = Stack(widest(runs), len(runs), runs[0].compute)
    stack.load(runs)
    return runs, stack
