"""Trains the reference model: `python -m hybrid_deploy.export.reference.train --help`."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import click
import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hybrid_deploy.bundle.atomic_write import write_file
from hybrid_deploy.export.reference.evaluate import score_lines
from hybrid_deploy.export.reference.lines import (
    TEST_LINES,
    TEST_SEED,
    Line,
    batch_images,
    compose_lines,
)
from hybrid_deploy.export.reference.model import (
    FORMS,
    DigitReader,
    EncoderForm,
    LineReader,
    weights_name,
)
from hybrid_deploy.export.reference.schedule import Schedule
from hybrid_deploy.export.reference.vocabulary import END, PAD, VOCABULARY, tokens_from_text

BATCH_LINES = 64
POOL_LINES = 16 * BATCH_LINES
POOL_PASSES = 4
FROZEN_STATISTICS_FROM = 0.5
LARGEST_PADDING_PX = 160
SPOTTING_SHARE = 0.3
STEPS: dict[EncoderForm, int] = {"feature-map": 1500, "pooled": 1500}
CHOICES: dict[str, tuple[EncoderForm, ...]] = {**{form: (form,) for form in FORMS}, "both": FORMS}

Report = Callable[[float, float], None]
"""Called after every step with the finished share of the training, 0 to 1, and the loss."""

Reader = TypeVar("Reader", bound=LineReader)
_moving_average = get_ema_multi_avg_fn(0.99)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Batch:
    """One training batch.

    Attributes:
        image: (batch, 1, 32, width) float32, padded with white.
        tokens: (batch, length) int64, padded with PAD.
    """

    image: Tensor
    tokens: Tensor


def train_reader(
    form: EncoderForm,
    *,
    seed: int = 0,
    steps: int | None = None,
    seconds_limit: float | None = None,
    report: Report | None = None,
) -> DigitReader:
    """Returns a model trained from scratch, in eval mode.

    Args:
        form: form of the encoder.
        seed: seed of the first weights and of the lines.
        steps: number of optimizer steps; None takes that of the shipped weights.
        seconds_limit: longest training time in seconds; the schedule becomes shorter to fit.
        report: called after every step with the finished share of the training and the loss.
    """
    torch.manual_seed(seed)
    schedule = Schedule(steps or STEPS[form], seconds_limit)
    return train_model(DigitReader(form), schedule, seed=seed, report=report)


def train_model(
    model: Reader, schedule: Schedule, *, seed: int = 0, report: Report | None = None
) -> Reader:
    """Trains a model, and returns a copy with the moving average of its weights, in eval mode.

    The first lines are short: a model learns the reading order within a few hundred steps on short
    lines, and much later on long ones.

    Args:
        model: model with new weights, which training overwrites.
        schedule: length of the training.
        seed: seed of the lines.
        report: called after every step with the finished share of the training and the loss.
    """
    # channels-last convolutions train faster on a CPU
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    spotter = nn.Linear(model.embedding.embedding_dim, len(VOCABULARY))
    parameters = [*model.parameters(), *spotter.parameters()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.05)
    # the average of the last weights reads unseen digits better than the last weights
    averaged = AveragedModel(model, multi_avg_fn=_moving_average, use_buffers=True)
    for batch in _batches(schedule, seed):
        if schedule.done >= FROZEN_STATISTICS_FROM:
            _freeze_statistics(model)
        token_loss, spotter_loss = _loss(model, spotter, batch)
        optimizer.zero_grad()
        (token_loss + spotter_loss).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate
        optimizer.step()
        averaged.update_parameters(model)
        schedule.advance()
        if report is not None:
            report(schedule.done, token_loss.item())
    return cast("Reader", averaged.module).eval()


def _batches(schedule: Schedule, seed: int) -> Iterator[Batch]:
    """Yields batches of lines of similar width until the schedule ends, each a few times."""
    rng = np.random.default_rng(seed)
    while True:
        pool_seed = int(rng.integers(2**31))
        lines = compose_lines("train", POOL_LINES, pool_seed, schedule.longest_line)
        lines.sort(key=lambda line: line.image.shape[1])
        starts = np.tile(np.arange(0, POOL_LINES, BATCH_LINES), POOL_PASSES)
        for start in rng.permutation(starts):
            if schedule.done >= 1.0:
                return
            yield _batch(lines[start : start + BATCH_LINES], rng)


def _batch(lines: Sequence[Line], rng: np.random.Generator) -> Batch:
    """Returns the lines as one batch; half of the batches get more white paper on the right."""
    image = batch_images([line.image for line in lines])
    if rng.random() < 0.5:
        extra = 16 * int(rng.integers(1, LARGEST_PADDING_PX // 16 + 1))
        image = np.pad(image, ((0, 0), (0, 0), (0, 0), (0, extra)))
    rows = [torch.tensor(tokens_from_text(line.text)) for line in lines]
    tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
    return Batch(torch.from_numpy(image), tokens)


def _loss(model: LineReader, spotter: nn.Linear, batch: Batch) -> tuple[Tensor, Tensor]:
    """Returns the cross-entropy of the next tokens, and a share of the spotter's loss.

    The spotter reads the digits from the columns alone, by connectionist temporal classification.
    It is used in training only: with it the columns learn the digits and their borders long before
    the decoder learns to attend to them. Both losses are trained together as in
    https://arxiv.org/abs/1609.06773.
    """
    columns = model.encoder.columns(batch.image)
    logits = model.decode(batch.tokens[:, :-1], model.encoder.memory_from_columns(columns))
    token_loss = nn.functional.cross_entropy(
        logits.flatten(0, 1), batch.tokens[:, 1:].flatten(), ignore_index=PAD
    )
    # (batch, d_model, 1, columns) -> (columns, batch, vocabulary)
    spotter_scores = spotter(columns.squeeze(2).permute(2, 0, 1)).log_softmax(dim=2)
    digit_counts = (batch.tokens > END).sum(dim=1)
    column_counts = torch.full_like(digit_counts, len(spotter_scores))
    spotter_loss = nn.functional.ctc_loss(
        spotter_scores,
        batch.tokens[:, 1:],
        column_counts,
        digit_counts,
        blank=PAD,
        zero_infinity=True,
    )
    return token_loss, SPOTTING_SHARE * spotter_loss


def _freeze_statistics(model: LineReader) -> None:
    """Makes batch normalization use its running statistics, as in eval mode.

    The statistics of a batch depend on its width and padding, which must not change the reading.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.eval()


def save_weights(model: LineReader, path: Path) -> None:
    """Writes the weights as safetensors; an interrupted write leaves an existing file unchanged."""
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    write_file(path, save(weights))


@click.command()
@click.option("--form", type=click.Choice(list(CHOICES)), default="both", show_default=True)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(__file__).parent,
    help="Folder for the weights; by default the package itself.",
)
@click.option("--steps", type=click.IntRange(min=1), help="Optimizer steps of each form.")
@click.option("--seconds-limit", type=float, help="Longest training time of each form.")
@click.option("--test-lines", type=int, default=TEST_LINES, show_default=True)
def main(
    form: str, out: Path, steps: int | None, seconds_limit: float | None, test_lines: int
) -> None:
    """Train the reference model and print how well it reads lines of held-out scans."""
    out.mkdir(parents=True, exist_ok=True)
    run = TrainingRun(steps, seconds_limit, test_lines)
    for summary in train_forms(CHOICES[form], out, run):
        click.echo(summary)


@dataclass(frozen=True)
class TrainingRun:
    """The options of the training of each form.

    Attributes:
        steps: number of optimizer steps; None takes that of the shipped weights.
        seconds_limit: longest training time in seconds; None sets no limit.
        test_lines: number of held-out lines to score.
    """

    steps: int | None
    seconds_limit: float | None
    test_lines: int


def train_forms(forms: Sequence[EncoderForm], out: Path, run: TrainingRun) -> list[str]:
    """Trains each form in a separate process on one core, with a progress bar for each.

    Args:
        forms: forms to train.
        out: existing folder of the weights.
        run: options of the training.

    Returns:
        For each form a line with its accuracy on held-out lines and its training time.
    """
    context = multiprocessing.get_context("spawn")
    loss_column = TextColumn("loss {task.fields[loss]:.4f}")
    columns = (*Progress.get_default_columns(), TimeElapsedColumn(), loss_column)
    with (
        context.Manager() as manager,
        Progress(*columns, console=Console(stderr=True)) as progress,
        ProcessPoolExecutor(len(forms), mp_context=context) as pool,
    ):
        reports = manager.Queue()
        bars = {form: progress.add_task(form, total=1.0, loss=math.nan) for form in forms}
        futures = [pool.submit(_train_form, form, out, run, reports) for form in forms]
        while not all(future.done() for future in futures):
            with contextlib.suppress(queue.Empty):
                form, done, loss = reports.get(timeout=1)
                progress.update(bars[form], completed=done, loss=loss)
        return [future.result() for future in futures]


def _train_form(
    form: EncoderForm,
    out: Path,
    run: TrainingRun,
    reports: queue.Queue[tuple[EncoderForm, float, float]],
) -> str:
    torch.set_num_threads(1)
    started = time.monotonic()
    model = train_reader(
        form,
        steps=run.steps,
        seconds_limit=run.seconds_limit,
        report=lambda done, loss: reports.put((form, done, loss)),
    )
    seconds = time.monotonic() - started
    save_weights(model, out / weights_name(form))
    scores = score_lines(model, compose_lines("test", run.test_lines, TEST_SEED))
    return (
        f"{form}: CER {scores.character_error_rate:.2%}, "
        f"exact match {scores.exact_match:.1%} on {scores.lines} test lines; "
        f"trained in {seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
