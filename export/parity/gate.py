"""The gate of an export: which inputs and prompts the model and its graphs are compared on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec
import numpy as np
from torch import Tensor

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.contract import FLOAT_VARIANT
from hybrid_deploy.errors import BackendError, UnsupportedModelError
from hybrid_deploy.export.export_job import ExportJob
from hybrid_deploy.export.model.dynamic_axes import resized
from hybrid_deploy.export.model.interface import Inputs, arrays_of, as_batch_of_two
from hybrid_deploy.export.parity.compare import (
    Parity,
    compare_greedy,
    compare_random_prompts,
)
from hybrid_deploy.export.parity.decode_checks import varied
from hybrid_deploy.export.trace.refusal import first_line
from hybrid_deploy.progress import Progress, silent
from hybrid_deploy.runtime.backends.protocol import Backend
from hybrid_deploy.runtime.backends.registry import (
    DEFAULT_BACKEND,
    BackendOptions,
    load_backend,
)

CHECK = "check"
"""Stage of an export in which the graphs are compared with the model."""

_EXAMPLES = 2
_FEW_TOKENS = 4


def check_export(
    job: ExportJob,
    bundle: Bundle,
    vocabulary_size: int,
    progress: Progress = silent,
) -> Parity:
    """Compares random prompts on the example, at all its sizes, then every input of the job.

    Args:
        job: the model and the inputs.
        bundle: the graphs, which return logits; it need not be sealed.
        vocabulary_size: of the model.
        progress: called with the number of inputs compared so far, as stage `CHECK`.

    Raises:
        ParityError: a token differs, or a logit by more than parity.LARGEST_DIFFERENCE.
    """
    backend = load_backend(DEFAULT_BACKEND, bundle, FLOAT_VARIANT, BackendOptions())
    model, generation, batch = job.model, job.spec.generation, job.form.batch
    pairs = {name: varied(as_batch_of_two(value)) for name, value in job.example.items()}
    examples = _resized(arrays_of(pairs), batch or _EXAMPLES)
    prompts = compare_random_prompts(model, backend, generation, examples, vocabulary_size)
    parity = Parity(largest_difference=prompts.largest_difference)
    if job.spec.dynamic:
        _check_sizes(job, backend, pairs, vocabulary_size)
    checks = job.checks if batch is None else rebatched(job.checks, batch)
    compared = _reported(checks, input_count(job.checks), progress)
    if generation.start_tokens:
        parity.add(compare_greedy(model, backend, generation, compared))
        return parity
    for inputs in compared:
        parity.add(compare_random_prompts(model, backend, generation, inputs, vocabulary_size))
    return parity


def input_count(batches: Iterable[Inputs]) -> int:
    """Returns the number of inputs in several batches."""
    return sum(len(next(iter(inputs.values()))) for inputs in batches)


def _reported(batches: Iterable[Inputs], total: int, progress: Progress) -> Iterator[Inputs]:
    """Yields the batches, and reports each as done when the next one is asked for."""
    done = 0
    for inputs in batches:
        yield inputs
        done += input_count([inputs])
        progress(CHECK, min(done, total), total)  # a fixed batch repeats inputs to fill up


def _check_sizes(
    job: ExportJob, backend: Backend, pairs: Mapping[str, Tensor], vocabulary_size: int
) -> None:
    """Compares a few tokens at both ends of the sizes that the inputs may have."""
    few = msgspec.structs.replace(
        job.spec.generation, max_length=min(_FEW_TOKENS, job.spec.generation.max_length)
    )
    for bound in ("min", "max"):
        inputs = arrays_of(resized(pairs, job.spec.dynamic, bound))
        inputs = _resized(inputs, job.form.batch or _EXAMPLES)
        sizes = ", ".join("x".join(map(str, array.shape[1:])) for array in inputs.values())
        try:
            compare_random_prompts(job.model, backend, few, inputs, vocabulary_size)
        except BackendError as error:
            raise UnsupportedModelError(
                f"the exported encoder does not work for inputs of size {sizes}, which the "
                "dynamic axes allow: a recurrent layer, or a size used as a Python number, fixes "
                f"it; change that, or narrow the range ({first_line(error)[:120]})"
            ) from error


def rebatched(batches: Iterable[Inputs], size: int) -> Iterator[Inputs]:
    """Cuts batches into batches of one size; the last of each repeats its last input."""
    for inputs in batches:
        count = len(next(iter(inputs.values())))
        for start in range(0, count, size):
            part = {name: value[start : start + size] for name, value in inputs.items()}
            yield _resized(part, size)


def _resized(inputs: Inputs, size: int) -> Inputs:
    return {
        name: value[np.minimum(np.arange(size), len(value) - 1)] for name, value in inputs.items()
    }
