"""Runs the gate at sizes unlike the example's, where an exported graph may be wrong.

For an axis of 32..256 in an encoder with strides 2 and 4, a reduction by 8 in all:

    32, 256        the ends
    103, 105       one below and one above a multiple of 8
    151, 153       one below and one above a multiple of 2
    ...            an odd size, a prime

and batches of 2, 1 and 3 in turn. Of several axes, each run takes another size of each.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence

import msgspec
import numpy as np
import onnx_ir as ir
from torch import Tensor

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.bundle.manifest import DimRange, GenerationDefaults
from hybrid_deploy.contract import BATCH_DIM, FLOAT_VARIANT, GraphRole
from hybrid_deploy.errors import (
    BackendError,
    HybridDeployError,
    ParityError,
    UnsupportedModelError,
)
from hybrid_deploy.export.export_job import ExportJob
from hybrid_deploy.export.model.dynamic_axes import DynamicAxes, declared_ranges, resized_to
from hybrid_deploy.export.model.interface import Inputs, arrays_of
from hybrid_deploy.export.parity.compare import compare_random_prompts
from hybrid_deploy.export.parity.parity import Parity
from hybrid_deploy.export.parity.special_tokens import TokenChoice
from hybrid_deploy.export.trace.refusal import first_line, user_line
from hybrid_deploy.runtime.backends.protocol import Backend

_FEW_TOKENS = 4
_BATCHES = (2, 1, 3)
_MOST_SIZES_OF_AN_AXIS = 9
_MOST_UNCERTAIN_SIZES = 3
_LARGEST_BATCH = 16
_LARGEST_DIVISOR = 512
_FAILING_OPERATOR = re.compile(r"while running (\w+) node")
_WINDOWS = ("Conv", "MaxPool", "AveragePool", "LpPool")


def check_sizes(
    job: ExportJob,
    bundle: Bundle,
    backend: Backend,
    example: Mapping[str, Tensor],
    choice: TokenChoice,
    uncertain: Sequence[Mapping[str, int]] = (),
) -> Parity:
    """Compares a few tokens of the graphs and the model at several sizes and batches.

    Args:
        job: the model and its varying axes.
        bundle: holds the encoder graph.
        backend: the exported graphs.
        example: encoder inputs by name, batch first.
        choice: tokens to draw prompts from.
        uncertain: sizes to check besides, by name of the dimension.

    Raises:
        ParityError: a token or a logit differs at one of the sizes.
        UnsupportedModelError: the model itself or the encoder graph fails at one of them.
    """
    short = msgspec.structs.replace(
        job.spec.generation, max_length=min(_FEW_TOKENS, job.spec.generation.max_length)
    )
    parity = Parity()
    encoder = ir.load(bundle.graph_path(FLOAT_VARIANT, GraphRole.ENCODER))
    for sizes, batch in checked_sizes(job.spec.dynamic, graph_multiples(encoder), uncertain):
        resized = arrays_of(resized_to(example, job.spec.dynamic, sizes))
        inputs = _batch_of(resized, job.form.batch or batch)
        shapes = ", ".join("x".join(map(str, array.shape)) for array in inputs.values())
        try:
            compared = compare_random_prompts(job.model, backend, short, inputs, choice)
        except BackendError as error:
            fits = _fits(job, backend, short, _batch_of(resized, _BATCHES[0]), choice)
            raise _failing_graphs(
                job, error, shapes, len(next(iter(inputs.values()))), fits
            ) from error
        except ParityError as error:
            raise ParityError(f"at inputs of size {shapes}, {error}") from error
        except HybridDeployError:
            raise
        except Exception as error:
            raise UnsupportedModelError(
                f"{user_line(error)}the model itself fails on inputs of size {shapes}, which the "
                f"dynamic axes allow: {first_line(error)[:120]}; narrow the range, or declare that "
                "the size varies in multiples (MIN..MAX:MULTIPLE)"
            ) from error
        parity.add_as_prompts(compared)
        parity.sizes.append(", ".join("x".join(map(str, a.shape[1:])) for a in inputs.values()))
    return parity


def _fits(
    job: ExportJob,
    backend: Backend,
    generation: GenerationDefaults,
    inputs: Inputs,
    choice: TokenChoice,
) -> bool:
    """Returns whether the graphs run for some inputs."""
    try:
        compare_random_prompts(job.model, backend, generation, inputs, choice)
    except BackendError:
        return False
    except ParityError:
        return True
    return True


def _failing_graphs(
    job: ExportJob, error: BackendError, shapes: str, batch: int, fits_two: bool
) -> UnsupportedModelError:
    """Returns the error for graphs that ONNX Runtime cannot run at a size.

    Args:
        job: the model and its varying axes.
        error: what the backend raised.
        shapes: shapes of the inputs, for the message.
        batch: their batch size.
        fits_two: whether the graphs run for the same sizes in a batch of two.
    """
    operator = _FAILING_OPERATOR.search(str(error))
    what = f", where {operator[1]} fails" if operator else ""
    if fits_two or not job.spec.dynamic:
        return UnsupportedModelError(
            f"the exported graphs do not work for a batch of {batch} (inputs of size {shapes})"
            f"{what}: the model divides the batch, as by split() or chunk(), or uses its size as a "
            "Python number; compute a whole batch of any size at once"
        )
    return UnsupportedModelError(
        f"the exported graphs do not work for inputs of size {shapes}, which the dynamic axes "
        f"allow{what}: a recurrent layer, adaptive pooling, or a size used as a Python number, "
        "makes it constant; change the encoder, or narrow the range"
    )


def checked_sizes(
    dynamic: DynamicAxes,
    multiples: Sequence[int],
    uncertain: Sequence[Mapping[str, int]] = (),
) -> list[tuple[dict[str, int], int]]:
    """Returns about a dozen sizes of the varying axes, by name of the dimension, with a batch each.

    Args:
        dynamic: the varying axes of the encoder's inputs.
        multiples: numbers that the encoder divides sizes by.
        uncertain: further sizes to check; of dimensions that it leaves out, typical sizes.
    """
    ranges = declared_ranges(dynamic)
    lists = {name: axis_sizes(dim, multiples) for name, dim in ranges.items()}
    shifts = {a.name: place for axes in dynamic.values() for place, a in enumerate(axes.values())}
    chosen: list[tuple[dict[str, int], int]] = []

    def add(sizes: dict[str, int], batch: int) -> None:
        if (sizes, batch) not in chosen:
            chosen.append((sizes, batch))

    count = max((len(sizes) for sizes in lists.values()), default=0)
    for index in range(max(count, len(_BATCHES))):
        # the first two are the ends of every axis together; later, axes of an input differ
        sizes = {
            name: values[index if index < 2 else _turn(index + shifts[name], len(values))]
            for name, values in lists.items()
        }
        add(sizes, _BATCHES[index % len(_BATCHES)])
    typical = {name: dim.typical for name, dim in ranges.items()}
    for extra in uncertain[:_MOST_UNCERTAIN_SIZES]:
        batch = min(extra.get(BATCH_DIM, _BATCHES[0]), _LARGEST_BATCH)
        add({name: extra.get(name, size) for name, size in typical.items()}, batch)
    return chosen


def axis_sizes(dim: DimRange, multiples: Sequence[int]) -> list[int]:
    """Returns sizes to check of one axis: its ends, beside each multiple, an odd one and a prime.

    Args:
        dim: the declared range; every size is a multiple of `dim.multiple`.
        multiples: numbers that the encoder divides sizes by, the most important first.
    """
    step = dim.multiple
    low, high = dim.min // step, dim.max // step
    units = list(dict.fromkeys(m // math.gcd(m, step) for m in multiples))
    divisors = [unit for unit in units if unit > 1]
    wanted = [
        number
        for index, unit in enumerate(divisors)
        for anchor in [_spread(low, high, index, len(divisors)) // unit * unit]
        for number in (anchor - 1, anchor + 1)
    ]
    middle = (low + high) // 2
    special = [middle | 1, _prime_near(middle)]
    inside = [n for n in [*special, *wanted] if low <= n <= high]
    return [n * step for n in dict.fromkeys([low, high, *inside])][:_MOST_SIZES_OF_AN_AXIS]


def graph_multiples(encoder: ir.Model) -> list[int]:
    """Returns the numbers that an encoder divides sizes by, the largest first.

    They are the strides of its convolutions and poolings, their products along each path, and the
    constants of integer divisions.
    """
    reductions: dict[ir.Value, int] = {}
    multiples: set[int] = set()
    for node in encoder.graph:
        before = max((reductions.get(v, 1) for v in node.inputs if v is not None), default=1)
        strides = node.attributes.get_ints("strides", [1]) if node.op_type in _WINDOWS else [1]
        after = before * max(strides)
        reductions |= dict.fromkeys(node.outputs, after)
        multiples |= {after, *strides}
        if node.op_type in ("Div", "Mod"):
            multiples |= set(_constant_divisor(node))
    return sorted((m for m in multiples if 1 < m <= _LARGEST_DIVISOR), reverse=True)


def _constant_divisor(node: ir.Node) -> Iterator[int]:
    divisor = node.inputs[1]
    constant = None if divisor is None else divisor.const_value
    if constant is not None and constant.size == 1 and constant.dtype is ir.DataType.INT64:
        yield int(constant.numpy().reshape(()))


def _turn(index: int, count: int) -> int:
    """Returns an index in turn, without the two ends of a range as long as there are others."""
    return 2 + (index - 2) % (count - 2) if count > 2 else index % count


def _spread(low: int, high: int, index: int, count: int) -> int:
    """Returns a number within a range, another one for each index."""
    return low + (high - low) * (index + 1) // (count + 1)


def _prime_near(number: int) -> int:
    """Returns the least prime that is not below a number."""
    while any(number % divisor == 0 for divisor in range(2, math.isqrt(number) + 1)) or number < 2:
        number += 1
    return number


def _batch_of(inputs: Inputs, size: int) -> Inputs:
    """Returns the first `size` inputs; a shorter batch repeats its last input."""
    return {
        name: value[np.minimum(np.arange(size), len(value) - 1)] for name, value in inputs.items()
    }
