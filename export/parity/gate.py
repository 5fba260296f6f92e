"""Chooses the inputs and prompts on which an export compares the model with its graphs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec
import numpy as np
from torch import Tensor

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.bundle.manifest import GenerationDefaults
from hybrid_deploy.contract import FLOAT_VARIANT, GraphRole
from hybrid_deploy.export.export_job import ExportJob
from hybrid_deploy.export.model.interface import Inputs, arrays_of, as_batch_of_two
from hybrid_deploy.export.parity.compare import (
    compare_beams,
    compare_copies,
    compare_greedy,
    compare_prefill,
    compare_random_prompts,
)
from hybrid_deploy.export.parity.decode_checks import with_distinct_rows
from hybrid_deploy.export.parity.named_graphs import NamedGraphs
from hybrid_deploy.export.parity.parity import Parity
from hybrid_deploy.export.parity.size_checks import check_sizes
from hybrid_deploy.export.parity.special_tokens import TokenChoice
from hybrid_deploy.progress import Progress, silent
from hybrid_deploy.runtime.backends.protocol import Backend

CHECK = "check"
"""Name of the stage in which an export compares the graphs with the model."""

_EXAMPLE_BATCH = 2
_COPIED_MEMORY_TOKENS = 8  # the step is compared elsewhere: here its memory is chosen by row
_BEAM_TOKENS = 64  # the beam step differs from the step in how it reads memory alone


def check_export(
    job: ExportJob,
    bundle: Bundle,
    choice: TokenChoice,
    progress: Progress = silent,
    uncertain_sizes: Sequence[Mapping[str, int]] = (),
) -> Parity:
    """Compares every graph with the model: random prompts on the example, then every check input.

    Args:
        job: the model, its example and the batches to check.
        bundle: holds the graphs, which return logits; it need not be sealed.
        choice: tokens to draw prompts from.
        progress: called in stage `CHECK` with the number of inputs compared so far.
        uncertain_sizes: sizes of the encoder's inputs to check besides, by name of the dimension.

    Returns:
        Counts of what was compared, and the largest difference of any logit.

    Raises:
        ParityError: a token differs without a tie, or a logit by more than rounding.
        UnsupportedModelError: the model or the encoder graph fails at a declared size.
        AssertionError: a graph of the bundle was not run, which is a defect of this check.
    """
    example = {
        name: with_distinct_rows(as_batch_of_two(value)) for name, value in job.example.items()
    }
    roles = set(bundle.graphs(FLOAT_VARIANT))
    backend = NamedGraphs(bundle, FLOAT_VARIANT)
    parity = _check_prompts(job, bundle, backend, example, choice, uncertain_sizes)
    parity.add(_check_inputs(job, backend, choice, progress))
    runs = backend.runs
    del backend  # its sessions hold the weights
    if GraphRole.BEAM_STEP in roles:
        beams = NamedGraphs(bundle, FLOAT_VARIANT, beams=True)
        few = _with_max_length(job, _BEAM_TOKENS)
        inputs = arrays_of(example)
        parity.add_as_prompts(compare_beams(job.model, beams, few, inputs, choice))
        runs += beams.runs
    unused = sorted(role.value for role in roles if not runs[role])
    if unused:
        raise AssertionError(f"the export has not compared {', '.join(unused)} with the model")
    return parity


def _check_prompts(
    job: ExportJob,
    bundle: Bundle,
    backend: Backend,
    example: Mapping[str, Tensor],
    choice: TokenChoice,
    uncertain_sizes: Sequence[Mapping[str, int]],
) -> Parity:
    """Compares random prompts on the example, and a few tokens at other sizes of the inputs."""
    parity, generation = Parity(), job.spec.generation
    inputs = _with_batch(arrays_of(example), job.form.batch or _EXAMPLE_BATCH)
    has_prefill = GraphRole.PREFILL in bundle.graphs(FLOAT_VARIANT)
    comparisons = [compare_random_prompts, *([compare_prefill] if has_prefill else [])]
    for compare in comparisons:
        parity.add_as_prompts(compare(job.model, backend, generation, inputs, choice))
    parity.sizes.append(_size_text(inputs))
    if job.form.batch is None:
        few = _with_max_length(job, _COPIED_MEMORY_TOKENS)
        parity.add_as_prompts(compare_copies(job.model, backend, few, inputs, choice))
    parity.add(check_sizes(job, bundle, backend, example, choice, uncertain_sizes))
    return parity


def _check_inputs(
    job: ExportJob, backend: Backend, choice: TokenChoice, progress: Progress
) -> Parity:
    """Compares what the check inputs decode to, from the start tokens or from random prompts."""
    parity, generation, batch = Parity(), job.spec.generation, job.form.batch
    checks = job.checks if batch is None else rebatched(job.checks, batch)
    reported_checks = _reported(checks, input_count(job.checks), progress)
    if generation.start_tokens:
        return compare_greedy(job.model, backend, generation, reported_checks)
    for inputs in reported_checks:
        parity.add(compare_random_prompts(job.model, backend, generation, inputs, choice))
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


def _with_max_length(job: ExportJob, most: int) -> GenerationDefaults:
    generation = job.spec.generation
    return msgspec.structs.replace(generation, max_length=min(most, generation.max_length))


def _size_text(inputs: Inputs) -> str:
    return ", ".join("x".join(map(str, array.shape[1:])) for array in inputs.values())


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
