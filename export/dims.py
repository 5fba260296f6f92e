"""The symbolic dimensions of the graphs: which axes vary, what they are called, how far they go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import sympy
import torch
from torch import Tensor, nn

from hybrid_deploy.contract import BATCH_DIM, CAPACITY_DIM, LENGTH_DIM, MEMORY_DIM
from hybrid_deploy.errors import UnsupportedModelError
from hybrid_deploy.export.capture import as_expr
from hybrid_deploy.export.kept import Kept
from hybrid_deploy.export.model import reference_memory
from hybrid_deploy.export.plan import Plan
from hybrid_deploy.export.refusal import first_line, users_line
from hybrid_deploy.manifest import DimRange, GenerationDefaults


@dataclass(frozen=True)
class DynamicAxis:
    """An axis of an encoder input whose size varies, with its name and its range."""

    name: str
    sizes: DimRange


DynamicAxes = Mapping[str, Mapping[int, DynamicAxis]]
"""For each encoder input, its varying axes besides the batch."""


def memory_axes(
    model: nn.Module, inputs: Mapping[str, Tensor], dynamic: DynamicAxes
) -> tuple[tuple[int, ...], ...]:
    """Finds which axes of the memory vary when the inputs' dynamic axes do, by encoding two sizes.

    Raises:
        UnsupportedModelError: encode() fails at one end of the declared ranges.
    """
    shapes = []
    for bound in ("min", "max"):
        values = tuple(resized(inputs, dynamic, bound).values())
        try:
            shapes.append([value.shape for value in reference_memory(model, values)])
        except Exception as error:
            sizes = ", ".join(str(tuple(value.shape)) for value in values)
            raise UnsupportedModelError(
                f"{users_line(error)}encode() fails on inputs of the declared size {sizes}: "
                f"{first_line(error)}; narrow the dynamic range"
            ) from error
    return tuple(
        tuple(axis for axis, (a, b) in enumerate(zip(small, large, strict=True)) if axis and a != b)
        for small, large in zip(*shapes, strict=True)
    )


def dim_names(plan: Plan) -> dict[sympy.Symbol, str]:
    """Names the symbols of the memory's shapes."""
    names = {plan.capture.batch: BATCH_DIM}
    for node in plan.capture.memory:
        for size in plan.shape(node)[1:]:
            for symbol in sorted(as_expr(size).free_symbols, key=str):
                count = len(names) - 1
                names.setdefault(symbol, f"{MEMORY_DIM}_{count}" if count else MEMORY_DIM)
    return names


def shape_of(plan: Plan, kept: Kept, names: Mapping[sympy.Symbol, str]) -> list[int | str]:
    """Gives the shape of a memory tensor or cache: numbers, and names as they are in the graphs."""
    return [_dim_of(plan, size, names) for size in plan.kept_shape(kept)]


def _dim_of(plan: Plan, size: int | torch.SymInt, names: Mapping[sympy.Symbol, str]) -> int | str:
    if isinstance(size, int):
        return size
    expr = as_expr(size)
    if expr == _capacity(plan):
        return CAPACITY_DIM
    return str(expr.subs({s: sympy.Symbol(names[s]) for s in expr.free_symbols}))


def dim_ranges(
    model: nn.Module,
    plan: Plan,
    inputs: Mapping[str, Tensor],
    dynamic: DynamicAxes,
    generation: GenerationDefaults,
    max_batch: int,
) -> dict[str, DimRange]:
    """Gives the range of every symbolic dimension; the memory's by encoding inputs of each size."""
    prompt = max(1, len(generation.start_tokens))
    dims = {
        BATCH_DIM: DimRange(1, 1, max_batch),
        LENGTH_DIM: DimRange(1, prompt, generation.max_length),
    }
    dims |= declared_ranges(dynamic)
    names = dim_names(plan)
    found: dict[str, list[int]] = {}
    for bound in ("min", "typical", "max"):
        values = tuple(resized(inputs, dynamic, bound).values())
        for node, value in zip(plan.capture.memory, reference_memory(model, values), strict=True):
            for expected, size in zip(plan.shape(node)[1:], value.shape[1:], strict=True):
                if isinstance(as_expr(expected), sympy.Symbol):
                    found.setdefault(names[as_expr(expected)], []).append(size)
    whole = _capacity(plan)
    if whole is not None:
        count = len(next(iter(found.values())))
        found[CAPACITY_DIM] = [
            int(whole.subs({s: found[names[s]][i] for s in whole.free_symbols}))
            for i in range(count)
        ]
    return dims | {
        name: DimRange(min(sizes), sorted(sizes)[len(sizes) // 2], max(sizes))
        for name, sizes in found.items()
    }


def _capacity(plan: Plan) -> sympy.Expr | None:
    """Gives the length of the caches where it varies, with the memory before the tokens."""
    if plan.prefix is None or as_expr(plan.prefix).is_Integer:
        return None
    return as_expr(plan.prefix) + plan.capture.length


def declared_ranges(dynamic: DynamicAxes) -> dict[str, DimRange]:
    """Gives the ranges of the inputs' varying axes, by name."""
    return {axis.name: axis.sizes for axes in dynamic.values() for axis in axes.values()}


def input_dims(inputs: Iterable[str], dynamic: DynamicAxes) -> dict[str, dict[int, str]]:
    """Names the symbolic dimensions of each encoder input, by axis: the batch, and what varies."""
    return {
        name: {0: BATCH_DIM} | {axis: a.name for axis, a in dynamic.get(name, {}).items()}
        for name in inputs
    }


def resized(inputs: Mapping[str, Tensor], dynamic: DynamicAxes, bound: str) -> dict[str, Tensor]:
    """Gives the inputs with their varying axes at their `min`, `typical` or `max` size.

    They are cut, or repeated until they are long enough.
    """
    return {name: _resized(value, dynamic.get(name, {}), bound) for name, value in inputs.items()}


def _resized(value: Tensor, axes: Mapping[int, DynamicAxis], bound: str) -> Tensor:
    for axis, varying in axes.items():
        size = getattr(varying.sizes, bound)
        places = torch.arange(size) % value.shape[axis]
        value = value.index_select(axis, places)
    return value
