"""Chooses the inputs and prompts on which an export compares the model with its graphs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.contract import FLOAT_VARIANT
from hybrid_deploy.export.export_job import ExportJob
from hybrid_deploy.export.model.interface import Inputs, arrays_of, as_batch_of_two
from hybrid_deploy.export.parity.compare import (
    Parity,
    compare_greedy,
    compare_random_prompts,
)
from hybrid_deploy.export.parity.decode_checks import with_distinct_rows
from hybrid_deploy.export.parity.size_checks import check_sizes
from hybrid_deploy.progress import Progress, silent
from hybrid_deploy.runtime.backends.registry import (
    DEFAULT_BACKEND,
    BackendOptions,
    load_backend,
)

CHECK = "check"
"""Name of the stage in which an export compares the graphs with the model."""

_EXAMPLE_BATCH = 2


def check_export(
    job: ExportJob,
    bundle: Bundle,
    vocabulary_size: int,
    progress: Progress = silent,
    uncertain_sizes: Sequence[Mapping[str, int]] = (),
) -> Parity:
    """Compares the graphs with the model: random prompts on the example, then every check input.

    Args:
        job: the model, its example and the batches to check.
        bundle: holds the graphs, which return logits; it need not be sealed.
        vocabulary_size: number of tokens in the model's vocabulary.
        progress: called in stage `CHECK` with the number of inputs compared so far.
        uncertain_sizes: sizes of the encoder's inputs to check besides, by name of the dimension.

    Returns:
        Sequences and steps of the check inputs, and the largest difference of any logit.

    Raises:
        ParityError: a token differs, or a logit by more than `Parity.note` accepts.
        UnsupportedModelError: the model or the encoder graph fails at a declared size.
    """
    backend = load_backend(DEFAULT_BACKEND, bundle, FLOAT_VARIANT, BackendOptions())
    model, generation, batch = job.model, job.spec.generation, job.form.batch
    example = {
        name: with_distinct_rows(as_batch_of_two(value)) for name, value in job.example.items()
    }
    batch_inputs = _with_batch(arrays_of(example), batch or _EXAMPLE_BATCH)
    prompts = compare_random_prompts(model, backend, generation, batch_inputs, vocabulary_size)
    parity = Parity(largest_difference=prompts.largest_difference)
    check_sizes(job, bundle, backend, example, vocabulary_size, uncertain_sizes)
    checks = job.checks if batch is None else rebatched(job.checks, batch)
    reported_checks = _reported(checks, input_count(job.checks), progress)
    if generation.start_tokens:
        parity.add(compare_greedy(model, backend, generation, reported_checks))
        return parity
    for inputs in reported_checks:
        parity.add(compare_random_prompts(model, backend, generation, inputs, vocabulary_size))
    return parity


def input_count(batches: Iterable[Inputs]) -> int:
    """Returns the number of inputs in several batches."""
    return sum(len(next(iter(inputs.values()))) for inputs in batches)


def _reported(batches: Iterable[Inputs], total: int, progress: Progress) -> Iterator[Inputs]:
    """Yields the batches, and reports each of them before it yields the next."""
    done = 0
    for inputs in batches:
        yield inputs
        done += input_count([inputs])
        progress(CHECK, min(done, total), total)  # a fixed batch ends with repeated inputs


def rebatched(batches: Iterable[Inputs], size: int) -> Iterator[Inputs]:
    """Yields batches of a fixed size; the last one of each given batch repeats its last input."""
    for inputs in batches:
        count = len(next(iter(inputs.values())))
        for start in range(0, count, size):
            slice_inputs = {name: value[start : start + size] for name, value in inputs.items()}
            yield _with_batch(slice_inputs, size)


def _with_batch(inputs: Inputs, size: int) -> Inputs:
    """Returns the first `size` inputs; a shorter batch repeats its last input."""
    return {
        name: value[np.minimum(np.arange(size), len(value) - 1)] for name, value in inputs.items()
    }
