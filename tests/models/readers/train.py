"""Trains a reader and prints its accuracy.

Run as `python -m tests.models.readers.train --form deep`.
"""

from __future__ import annotations

import time
from pathlib import Path

import click
import torch

from hybrid_deploy.export.reference.evaluate import score_lines
from hybrid_deploy.export.reference.job import held_out_lines
from hybrid_deploy.export.reference.schedule import Schedule
from hybrid_deploy.export.reference.train import save_weights, train_model
from tests.models.readers.models import FORMS, ReaderForm, build, weights_path

STEPS: dict[ReaderForm, int] = {"deep": 1916, "hybrid": 2703}
"""Number of optimizer steps of the shipped weights, whose training a time limit ended."""

_STEPS_BETWEEN_REPORTS = 50


@click.command()
@click.option("--form", type=click.Choice(FORMS), required=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="File of weights.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--steps", type=click.IntRange(min=1), help="Optimizer steps.")
@click.option("--seconds-limit", type=float, help="Longest training time.")
def main(
    form: ReaderForm, out: Path | None, seed: int, steps: int | None, seconds_limit: float | None
) -> None:
    """Train one reader on one core; score it on the held-out lines."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    started = time.monotonic()
    step = 0

    def report(done: float, loss: float) -> None:
        nonlocal step
        step += 1
        if step % _STEPS_BETWEEN_REPORTS == 0:
            seconds = time.monotonic() - started
            click.echo(f"{done:.1%}, step {step}, {seconds:.0f} s: loss {loss:.4f}", err=True)

    schedule = Schedule(steps or STEPS[form], seconds_limit)
    model = train_model(build(form), schedule, seed=seed, report=report)
    seconds = time.monotonic() - started
    save_weights(model, out or weights_path(form))
    scores = score_lines(model, held_out_lines())
    click.echo(
        f"{form}: CER {scores.character_error_rate:.2%}, "
        f"exact match {scores.exact_match:.1%} on {scores.lines} test lines; "
        f"trained in {seconds:.0f} s, {step} steps"
    )


if __name__ == "__main__":
    main()
