"""The symbolic dimensions of the graphs: their names and their ranges of sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import sympy
import torch
from torch import Tensor, nn

from hybrid_deploy.bundle.manifest import DimRange, GenerationDefaults
from hybrid_deploy.contract import BATCH_DIM, CAPACITY_DIM, LENGTH_DIM, MEMORY_DIM
from hybrid_deploy.export.model.dynamic_axes import DynamicAxes, declared_ranges, resized
from hybrid_deploy.export.model.interface import reference_memory
from hybrid_deploy.export.plan.cached_value import CachedValue
from hybrid_deploy.export.plan.plan import DecodePlan
from hybrid_deploy.export.trace.capture import as_expr


def dim_names(plan: DecodePlan) -> dict[sympy.Symbol, str]:
    """Returns the names of the symbols of the batch and of the memory's shapes.

    Those of the memory's shapes are `memory`, `memory_1` and so on.
    """
    names = {plan.capture.batch: BATCH_DIM}
    for node in plan.capture.memory:
        for size in plan.shape(node)[1:]:
            for symbol in sorted(as_expr(size).free_symbols, key=str):
                count = len(names) - 1
                names.setdefault(symbol, f"{MEMORY_DIM}_{count}" if count else MEMORY_DIM)
    return names


def shape_of(
    plan: DecodePlan, cached: CachedValue, names: Mapping[sympy.Symbol, str]
) -> list[int | str]:
    """Returns the shape of a memory tensor or cache: sizes, and names or expressions of names."""
    return [_dim_of(plan, size, names) for size in plan.cached_shape(cached)]


def _dim_of(
    plan: DecodePlan, size: int | torch.SymInt, names: Mapping[sympy.Symbol, str]
) -> int | str:
    if isinstance(size, int):
        return size
    expr = as_expr(size)
    if expr == _capacity(plan):
        return CAPACITY_DIM
    return str(expr.subs({s: sympy.Symbol(names[s]) for s in expr.free_symbols}))


def dim_ranges(
    model: nn.Module,
    plan: DecodePlan,
    inputs: Mapping[str, Tensor],
    dynamic: DynamicAxes,
    generation: GenerationDefaults,
    max_batch: int,
) -> dict[str, DimRange]:
    """Returns the range of each symbolic dimension: the least, a typical and the largest size.

    The memory's ranges are measured: the inputs are encoded at each end of their own ranges.

    Args:
        model: a module with the method `encode`.
        plan: the analysed decoder.
        inputs: example inputs of the encoder, batch first.
        dynamic: the varying axes of those inputs besides the batch.
        generation: its start tokens and its largest length set the range of `length`.
        max_batch: largest batch size.
    """
    prompt = max(1, len(generation.start_tokens))
    dims = {
        BATCH_DIM: DimRange(1, 1, max_batch),
        LENGTH_DIM: DimRange(1, prompt, generation.max_length),
    }
    dims |= declared_ranges(dynamic)
    names = dim_names(plan)
    measured: dict[str, list[int]] = {}
    for bound in ("min", "typical", "max"):
        values = tuple(resized(inputs, dynamic, bound).values())
        for node, value in zip(plan.capture.memory, reference_memory(model, values), strict=True):
            for expected, size in zip(plan.shape(node)[1:], value.shape[1:], strict=True):
                if isinstance(as_expr(expected), sympy.Symbol):
                    measured.setdefault(names[as_expr(expected)], []).append(size)
    capacity = _capacity(plan)
    if capacity is not None:
        count = len(next(iter(measured.values())))
        measured[CAPACITY_DIM] = [
            int(capacity.subs({s: measured[names[s]][i] for s in capacity.free_symbols}))
            for i in range(count)
        ]
    return dims | {
        name: DimRange(min(sizes), sorted(sizes)[len(sizes) // 2], max(sizes))
        for name, sizes in measured.items()
    }


def _capacity(plan: DecodePlan) -> sympy.Expr | None:
    """Returns the capacity of caches that begin with a prefix of varying length; otherwise None."""
    if plan.prefix_size is None or as_expr(plan.prefix_size).is_Integer:
        return None
    return as_expr(plan.prefix_size) + plan.capture.length


def input_dims(inputs: Iterable[str], dynamic: DynamicAxes) -> dict[str, dict[int, str]]:
    """Returns, for each encoder input, the names of its symbolic axes; axis 0 is the batch."""
    return {
        name: {0: BATCH_DIM} | {axis: a.name for axis, a in dynamic.get(name, {}).items()}
        for name in inputs
    }
