"""The three modules that a plan becomes: encoder, prefill and step, ready for torch.onnx.export."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from hybrid_deploy.contract import LOGITS, cross_name, head_name, self_name
from hybrid_deploy.export.analysis.rule import call
from hybrid_deploy.export.analysis.rule_table import find_rule
from hybrid_deploy.export.lowering.prefix_modules import (
    PrefixExecutor,
    nodes_before_the_tokens,
    prefixed_caches,
)
from hybrid_deploy.export.plan.plan import BindingTime, DecodePlan
from hybrid_deploy.export.plan.row_executor import RowExecutor, cache_dtype
from hybrid_deploy.export.trace.capture import as_expr, evaluate, hint

NESTED = "__"
"""Stands for the dot in the name of a nested parameter: buffers cannot have dots."""


class EncoderGraph(nn.Module):
    """The model's inputs to the memory tensors that the decoder graphs take.

    Args:
        encode: the model's encoder; gives one tensor or several.
        plan: the analysed decoder.
    """

    def __init__(self, encode: nn.Module, plan: DecodePlan) -> None:
        super().__init__()
        self.encode = encode
        self._plan = plan
        self._constants = _Constants(self, plan, BindingTime.MEMORY)
        self._prefix_constants = _Constants(self, plan, BindingTime.TOKEN, prefixed=True)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Returns the memory tensors in the plan's order, then caches that begin with memory."""
        plan = self._plan
        memory = self.encode(*inputs)
        tensors = memory if isinstance(memory, (tuple, list)) else (memory,)
        values = dict(zip(plan.capture.memory, tensors, strict=True))
        sizes = {
            as_expr(expected): size
            for node, value in values.items()
            for expected, size in zip(plan.shape(node), value.shape, strict=True)
        }

        def operand(node: fx.Node) -> Any:
            if plan.times[node] is BindingTime.SIZE:
                return evaluate(as_expr(node.meta["val"]), sizes)
            return values[node] if node in values else self._constants[node]

        for node in plan.capture.nodes:
            if plan.times.get(node) is BindingTime.MEMORY and node not in values:
                args, kwargs = fx.map_arg((node.args, node.kwargs), operand)
                values[node] = call(node, args, kwargs)
        kept = [
            values[kept.source] if kept.form is None else kept.form.to_cache(values[kept.source])
            for kept in plan.memory
        ]
        if plan.prefix is not None:
            symbols = {expr: size for expr, size in sizes.items() if expr.is_Symbol}
            kept += PrefixExecutor(plan, values, symbols, self._prefix_constants).run()
        return tuple(kept)


class DecoderGraph(nn.Module):
    """New tokens to the logits of the token that comes next, and the updated caches.

    Args:
        plan: the analysed decoder.
        native: use operators for attention and cache writes that ONNX has from opset 24 on.
    """

    def __init__(self, plan: DecodePlan, *, native: bool = True) -> None:
        super().__init__()
        self._plan = plan
        self._native = native
        self._constants = _Constants(self, plan, BindingTime.TOKEN)

    def _run(
        self,
        tokens: Tensor,
        position: Tensor,
        last: Tensor | None,
        tensors: tuple[Tensor, ...],
        single: frozenset[fx.Node],
    ) -> tuple[Tensor, ...]:
        plan = self._plan
        memory, caches = tensors[: len(plan.memory)], tensors[len(plan.memory) :]
        frame = RowExecutor(
            plan,
            tokens,
            position,
            last,
            memory,
            caches,
            self._constants,
            single,
            native=self._native,
        )
        for node in plan.capture.nodes:
            if plan.depends_on_tokens(node) and node is not plan.capture.tokens:
                frame.store(node, find_rule(node).run(frame, node))
        heads = [frame.raw(head, single=True) for head in plan.capture.heads]
        return *heads, *frame.caches


class StepGraph(DecoderGraph):
    """One token per sequence."""

    def forward(self, token: Tensor, position: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Decodes one token.

        Args:
            token: (batch,) int64.
            position: (batch,) int64.
            tensors: the memory tensors, then the caches.

        Returns:
            logits (batch, vocabulary), other heads, then the caches.
        """
        everything = frozenset(n for n in self._plan.capture.nodes)
        return self._run(token, position, None, tensors, everything)


class PrefillGraph(DecoderGraph):
    """Several tokens per sequence, of which only the last one's logits are wanted."""

    def forward(
        self, tokens: Tensor, position: Tensor, last: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        """Decodes a prompt.

        Args:
            tokens: (batch, length) int64, padded on the right.
            position: (batch,) int64, of the first token.
            last: (batch,) int64, index of the last real token.
            tensors: the memory tensors, then the caches.

        Returns:
            logits (batch, vocabulary), other heads, then the caches.
        """
        return self._run(tokens, position, last, tensors, _after_the_caches(self._plan))


def memory_names(plan: DecodePlan) -> list[str]:
    """Names the memory tensors."""
    return _numbered([kept.kind for kept in plan.memory], cross_name)


def encoder_output_names(plan: DecodePlan) -> list[str]:
    """Names the encoder graph's outputs: the memory, then the caches that begin with memory."""
    names = dict(zip(plan.caches, cache_names(plan), strict=True))
    return [*memory_names(plan), *(names[cache] for cache in prefixed_caches(plan))]


def head_names(plan: DecodePlan) -> list[str]:
    """Names what the decoder graphs return besides the caches."""
    return [LOGITS, *(head_name(index) for index in range(1, len(plan.capture.heads)))]


def cache_names(plan: DecodePlan) -> list[str]:
    """Names the decoder graphs' caches."""
    return _numbered([cache.kind for cache in plan.caches], self_name)


def split_outputs(
    plan: DecodePlan, outputs: Sequence[Tensor], batch: int
) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """Splits what the encoder graph returns: the memory, and the caches to begin with."""
    count = len(plan.memory)
    given = dict(zip(prefixed_caches(plan), outputs[count:], strict=True))
    empty = zip(plan.caches, cache_example(plan, batch), strict=True)
    return tuple(outputs[:count]), [given.get(cache, zeros) for cache, zeros in empty]


def cache_example(plan: DecodePlan, batch: int) -> list[Tensor]:
    """Returns empty caches for a batch."""
    return [
        torch.zeros(
            [
                batch if as_expr(size) == plan.capture.batch else hint(size)
                for size in plan.cached_shape(cache)
            ],
            dtype=cache_dtype(cache),
        )
        for cache in plan.caches
    ]


def _after_the_caches(plan: DecodePlan) -> frozenset[fx.Node]:
    """Lists the nodes that no cache needs: of these, the last row is enough."""
    needed: set[fx.Node] = set()
    pending = [cache.source for cache in plan.caches]
    while pending:
        node = pending.pop()
        if node not in needed and plan.depends_on_tokens(node):
            needed.add(node)
            pending.extend(node.all_input_nodes)
    return frozenset(n for n in plan.capture.nodes if n not in needed)


def _numbered(kinds: list[str], name: Callable[[str, int], str]) -> list[str]:
    seen: dict[str, int] = {}
    names = []
    for kind in kinds:
        names.append(name(kind, seen.get(kind, 0)))
        seen[kind] = seen.get(kind, 0) + 1
    return names


class _Constants:
    """The constants that a graph uses, registered as buffers of its module."""

    def __init__(
        self, module: nn.Module, plan: DecodePlan, user: BindingTime, *, prefixed: bool = False
    ) -> None:
        self._module = module
        self._buffers: dict[fx.Node, str] = {}
        users = [n for n in plan.capture.nodes if plan.times.get(n) is user]
        if prefixed:
            wanted = nodes_before_the_tokens(plan)
            users = [n for n in users if n in wanted]
        for node in (operand for n in users for operand in n.all_input_nodes):
            value = plan.constants.get(node)
            if isinstance(value, Tensor) and node not in self._buffers:
                name = plan.capture.names.get(node, node.name).replace(".", NESTED)
                known = dict(module.named_buffers(recurse=False))
                if name not in known and hasattr(module, name):
                    name = f"{name}_constant"  # a method of nn.Module is called so
                self._buffers[node] = name
                if name not in known:
                    module.register_buffer(name, value)

    def __getitem__(self, node: fx.Node, /) -> Tensor:
        value = getattr(self._module, self._buffers[node])
        assert isinstance(value, Tensor)
        return value
