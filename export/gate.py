"""The gate of an export: which inputs and prompts the model and its graphs are compared on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from hybrid_deploy.bundle import Bundle
from hybrid_deploy.export.job import ExportJob
from hybrid_deploy.export.parity import Inputs, Parity, check_parity, check_prompts
from hybrid_deploy.export.writing import FLOAT
from hybrid_deploy.runtime.backend import DEFAULT_BACKEND, Options, load_backend

_EXAMPLES = 2


def check_export(
    job: ExportJob,
    bundle: Bundle,
    vocabulary_size: int,
    checked: Callable[[int], None] | None = None,
) -> Parity:
    """Compares random prompts on the example, then every input of the job.

    Args:
        job: the model and the inputs.
        bundle: the graphs, which return logits; it need not be sealed.
        vocabulary_size: of the model.
        checked: told how many inputs were compared, batch by batch.

    Raises:
        ParityError: a token differs, or a logit by more than parity.LARGEST_DIFFERENCE.
    """
    backend = load_backend(DEFAULT_BACKEND, bundle, FLOAT, Options())
    model, generation, batch = job.model, job.spec.generation, job.form.batch
    example = {name: value.numpy() for name, value in job.example.items()}
    examples = _resized(example, batch or _EXAMPLES)
    prompts = check_prompts(model, backend, generation, examples, vocabulary_size)
    parity = Parity(largest_difference=prompts.largest_difference)
    checks = job.checks if batch is None else rebatched(job.checks, batch)
    if generation.start_tokens:
        parity.add(check_parity(model, backend, generation, checks, checked))
        return parity
    for inputs in checks:
        parity.add(check_prompts(model, backend, generation, inputs, vocabulary_size))
        if checked is not None:
            checked(len(next(iter(inputs.values()))))
    return parity


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
