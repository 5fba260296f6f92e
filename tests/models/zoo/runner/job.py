"""Checks one model of the zoo in a separate process."""

from __future__ import annotations

import time

import click
import torch

from tests.models.zoo.cases import all_refusals, find
from tests.models.zoo.check import Result, check, check_refusal


def check_by_name(
    name: str, label: str, opsets: tuple[int, ...], tensorrt: bool, *, refused: bool = False
) -> Result:
    """Checks the model with the given name, and prints its stages on stderr.

    Args:
        name: name of the case, or of the refusal.
        label: number of the case in the run, printed before its name: `[3/82]`.
        opsets: opsets to export with.
        tensorrt: whether to build the step for TensorRT.
        refused: whether the name is that of a refusal.
    """
    torch.set_num_threads(1)
    began = time.perf_counter()

    def report(stage: str) -> None:
        click.echo(f"{label} {name}: {stage}", err=True)

    if refused:
        result = check_refusal(next(r for r in all_refusals() if r.name == name))
    else:
        result = check(find(name), opsets=opsets, tensorrt=tensorrt, progress=report)
    result.seconds = time.perf_counter() - began
    report(f"{result.verdict} ({result.seconds:.0f} s)")
    return result
