"""The three modules that compute a decoder plan: encoder, prefill and step.

torch.onnx.export takes them as they are. With B sequences, T the capacity, 4 heads of width 16:

    encoder   inputs -> cross keys and values (B, 4, S, 16)
    prefill   tokens (B, R), position (B,), last (B,), memory, caches -> logits (B, V), caches
    step      token (B,), position (B,), memory, caches               -> logits (B, V), caches
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from hybrid_deploy.contract import LOGITS, cross_name, head_name, self_name
from hybrid_deploy.export.analysis.rules.rule import call_operator
from hybrid_deploy.export.analysis.rules.table import rule_of
from hybrid_deploy.export.lowering.prefix_modules import (
    PrefixExecutor,
    prefix_nodes,
    prefixed_caches,
)
from hybrid_deploy.export.plan.plan import BindingTime, DecodePlan
from hybrid_deploy.export.plan.row_executor import RowExecutor
from hybrid_deploy.export.trace.capture import as_expr, evaluate, example_size

DOT_REPLACEMENT = "__"
"""Replaces the dots in the name of a nested parameter: PyTorch allows no dot in a buffer's name."""


class EncoderGraph(nn.Module):
    """The encoder graph: the model's inputs to the memory tensors that the decoder graphs read.

    Args:
        encode: the model's encoder; it returns one tensor or a tuple of tensors.
        plan: the analysed decoder.
    """

    def __init__(self, encode: nn.Module, plan: DecodePlan) -> None:
        super().__init__()
        self.encode = encode
        self._plan = plan
        self._constants = _Constants(self, plan, BindingTime.MEMORY)
        self._prefix_constants = _Constants(self, plan, BindingTime.TOKEN, prefixed=True)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Returns the memory tensors in the plan's order, then the caches with a prefix."""
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
            if plan.binding_times[node] is BindingTime.SIZE:
                return evaluate(as_expr(node.meta["val"]), sizes)
            return values[node] if node in values else self._constants[node]

        for node in plan.capture.nodes:
            if plan.binding_times.get(node) is BindingTime.MEMORY and node not in values:
                args, kwargs = fx.map_arg((node.args, node.kwargs), operand)
                values[node] = call_operator(node, args, kwargs)
        batch = tensors[0].shape[0]
        outputs = [cached.to_memory(values[cached.source], batch) for cached in plan.memory]
        if plan.prefix_size is not None:
            symbols = {expr: size for expr, size in sizes.items() if expr.is_Symbol}
            outputs += PrefixExecutor(plan, values, symbols, self._prefix_constants).run()
        return tuple(outputs)


class DecoderGraph(nn.Module):
    """A decoder graph: new tokens to the logits of the next token and the updated caches.

    Args:
        plan: the analysed decoder.
        native: whether to use the operators for attention and cache writes of ONNX opset 24.
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
        executor = RowExecutor(
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
                executor.store(node, rule_of(plan, node).run(executor, node))
        heads = [executor.token_value(head, single=True) for head in plan.capture.heads]
        return *heads, *executor.caches


class StepGraph(DecoderGraph):
    """The step graph: one token per sequence."""

    def forward(self, token: Tensor, position: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Decodes one token.

        Args:
            token: (batch,) int64.
            position: (batch,) int64, position of the token.
            tensors: the memory tensors, then the caches.

        Returns:
            logits (batch, vocabulary), the other heads, then the updated caches.
        """
        all_nodes = frozenset(n for n in self._plan.capture.nodes)
        return self._run(token, position, None, tensors, all_nodes)


class PrefillGraph(DecoderGraph):
    """The prefill graph: several tokens per sequence, and the logits after the last of them."""

    def forward(
        self, tokens: Tensor, position: Tensor, last: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        """Decodes a prompt.

        Args:
            tokens: (batch, length) int64, padded on the right.
            position: (batch,) int64, position of the first token.
            last: (batch,) int64, index of the last token that is no padding.
            tensors: the memory tensors, then the caches.

        Returns:
            logits (batch, vocabulary), the other heads, then the updated caches.
        """
        return self._run(tokens, position, last, tensors, _nodes_after_caches(self._plan))


def memory_names(plan: DecodePlan) -> list[str]:
    """Returns the names of the memory tensors, in the plan's order."""
    return _numbered_names([cached.kind for cached in plan.memory], cross_name)


def encoder_output_names(plan: DecodePlan) -> list[str]:
    """Returns the encoder's output names: the memory, then the caches that begin with a prefix."""
    names = dict(zip(plan.caches, cache_names(plan), strict=True))
    return [*memory_names(plan), *(names[cache] for cache in prefixed_caches(plan))]


def head_names(plan: DecodePlan) -> list[str]:
    """Returns the names of the decoder graphs' output heads, `logits` first."""
    return [LOGITS, *(head_name(index) for index in range(1, len(plan.capture.heads)))]


def cache_names(plan: DecodePlan) -> list[str]:
    """Returns the names of the decoder graphs' caches, in the plan's order."""
    return _numbered_names([cache.kind for cache in plan.caches], self_name)


def split_outputs(
    plan: DecodePlan, outputs: Sequence[Tensor], batch: int
) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """Returns the memory tensors and the initial caches from the encoder graph's outputs.

    Args:
        plan: the analysed decoder.
        outputs: the outputs of the encoder graph.
        batch: number of sequences; caches without a prefix are zeros of this batch.
    """
    count = len(plan.memory)
    prefixed = dict(zip(prefixed_caches(plan), outputs[count:], strict=True))
    empty = zip(plan.caches, cache_example(plan, batch), strict=True)
    return tuple(outputs[:count]), [prefixed.get(cache, zeros) for cache, zeros in empty]


def cache_example(plan: DecodePlan, batch: int) -> list[Tensor]:
    """Returns caches of zeros, (batch, heads, capacity, width) each, in the plan's order."""
    return [
        torch.zeros(
            [
                batch if as_expr(size) == plan.capture.batch else example_size(size)
                for size in plan.cached_shape(cache)
            ],
            dtype=cache.dtype,
        )
        for cache in plan.caches
    ]


def _nodes_after_caches(plan: DecodePlan) -> frozenset[fx.Node]:
    """Returns the nodes on which no cache depends; only their last rows are needed.

    The tokens are never among them: the graph gets all of them, also if nothing is cached.
    """
    needed = {plan.capture.tokens}
    pending = [cache.source for cache in plan.caches]
    while pending:
        node = pending.pop()
        if node not in needed and plan.depends_on_tokens(node):
            needed.add(node)
            pending.extend(node.all_input_nodes)
    return frozenset(n for n in plan.capture.nodes if n not in needed)


def _numbered_names(kinds: list[str], name: Callable[[str, int], str]) -> list[str]:
    counts: dict[str, int] = {}
    names = []
    for kind in kinds:
        names.append(name(kind, counts.get(kind, 0)))
        counts[kind] = counts.get(kind, 0) + 1
    return names


class _Constants:
    """The constants that a graph reads, registered as buffers of its module.

    Args:
        module: the module of the graph.
        plan: the analysed decoder.
        user: binding time of the nodes whose constant operands are registered.
        prefixed: whether to register only the operands of nodes that the prefix needs.
    """

    def __init__(
        self, module: nn.Module, plan: DecodePlan, user: BindingTime, *, prefixed: bool = False
    ) -> None:
        self._module = module
        self._buffers: dict[fx.Node, str] = {}
        users = [n for n in plan.capture.nodes if plan.binding_times.get(n) is user]
        if prefixed:
            needed = prefix_nodes(plan)
            users = [n for n in users if n in needed]
        for node in (operand for n in users for operand in n.all_input_nodes):
            value = plan.constants.get(node)
            if isinstance(value, Tensor) and node not in self._buffers:
                # a computed constant has its node's name, which a new trace may give to a value
                name = plan.capture.names.get(node, f"constant.{node.name}")
                name = name.replace(".", DOT_REPLACEMENT)
                buffers = dict(module.named_buffers(recurse=False))
                if name not in buffers and hasattr(module, name):
                    name = f"{name}_constant"  # nn.Module has an attribute of that name
                self._buffers[node] = name
                if name not in buffers:
                    module.register_buffer(name, value)

    def __getitem__(self, node: fx.Node, /) -> Tensor:
        value = getattr(self._module, self._buffers[node])
        assert isinstance(value, Tensor)
        return value
