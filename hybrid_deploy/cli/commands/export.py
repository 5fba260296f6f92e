"""`hybrid-deploy export`: a PyTorch model -> a bundle."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hybrid_deploy.bundle.paths import check_outside_bundles
from hybrid_deploy.cli.options.common import FORCE
from hybrid_deploy.cli.options.model import ModelOptions, model_options
from hybrid_deploy.cli.options.paths import PATH
from hybrid_deploy.cli.output import log, say
from hybrid_deploy.cli.progress import StageLines, progress_bar
from hybrid_deploy.errors import UnsupportedModelError, UsageError

if TYPE_CHECKING:
    from hybrid_deploy.export.export_job import ExportJob
    from hybrid_deploy.export.exporter import ExportReport

_FLOAT = "fp32"
_FOLDER_OPTIONS = ("--max-length", "--height", "--width")
_ENDS_AT_ONCE = 2
"""Golden samples of this many tokens or fewer say little about the caches."""


@click.command(
    epilog="Example: hybrid-deploy export my_reader:Reader --weights reader.safetensors "
    "--example line.png --dynamic image:3=32..512 --max-length 64 --start 1 --end 2 "
    "-o reader.bundle"
)
@click.argument("model", metavar="PACKAGE.MODULE:FACTORY | FOLDER")
@click.option("-o", "--out", required=True, type=PATH, help="The bundle.")
@click.option(
    "--weights", type=PATH,
    help="Loaded into the model: .safetensors, or .pt and .pth that hold tensors alone.",
)  # fmt: skip
@model_options
@click.option("--opset", type=int, help="24, or 21 and 18 for older runtimes.  [default: 24]")
@click.option("--head", help="logits, or argmax or topk in the graph.  [default: logits]")
@click.option("--batch", type=int, help="Fix the batch size.  [default: any]")
@click.option(
    "--dtype", type=click.Choice([_FLOAT, "fp16", "bf16"]), default=_FLOAT, show_default=True,
    help="fp16 and bf16 add a variant of 16 bits to the float one.",
)  # fmt: skip
@click.option(
    "--samples", type=PATH,
    help="Folder of real inputs, or .npz: compared before the bundle is written, and up to 8 kept.",
)  # fmt: skip
@click.option(
    "--prompt-template", metavar="TEXT",
    help="Text around the words that the decoder continues: 'Question: {prompt} Answer:'.",
)  # fmt: skip
@click.option("--default-prompt", metavar="WORDS", help="Words of a run that gives none.")
@click.option("--name", help="What the model is called.  [default: its class]")
@FORCE
def export(
    model: str,
    out: Path,
    weights: Path | None,
    opset: int | None,
    head: str | None,
    batch: int | None,
    dtype: str,
    samples: Path | None,
    prompt_template: str | None,
    default_prompt: str | None,
    name: str | None,
    force: bool,
    **described: Any,
) -> None:
    """Export a trained model into a bundle that decodes one token at a time.

    FACTORY takes no arguments and returns a torch.nn.Module with encode() and decode(), which the
    options describe, or a hybrid_deploy.export.ExportJob, which describes itself: only
    --weights, --opset, --head, --batch, --dtype, --prompt-template, --default-prompt and --name go
    with it, and replace its own values.
    FOLDER is the folder that save_pretrained wrote of a Hugging Face encoder-decoder model;
    --max-length goes with it too, --height and --width of a typical picture for a model that cuts
    it into tiles or a grid, and --samples with every model. Nothing is written unless the exported
    graphs decode the same tokens as the model.
    """
    check_output(out, force)
    options = ModelOptions(**described)
    with _one_line_refusal():
        job = _job(model, options, weights)
        job = _with_prompt(job, prompt_template, default_prompt)
        job = _adjusted(job, opset=opset, head=head, batch=batch, name=name)
        if samples is not None:
            job = _with_samples(job, samples)
        if dtype != _FLOAT:
            _check_half_variant(job, dtype)
        report = export_job(job, out, force=force)
    say(describe(report))
    for remark in report.remarks:
        log(remark)
    log(_golden_line(report.path))
    if dtype != _FLOAT:
        _add_half_variant(out, dtype)


def export_job(job: ExportJob, out: Path, *, force: bool) -> ExportReport:
    """Runs an export with its progress on stderr, and returns its report."""
    from hybrid_deploy.export.exporter import run_export
    from hybrid_deploy.export.parity.gate import CHECK

    inputs = sum(len(next(iter(batch.values()))) for batch in job.checks)
    with progress_bar(CHECK, inputs) as bar:
        return run_export(job, out, force=force, progress=StageLines(bar, CHECK))


def describe(report: ExportReport) -> str:
    """Returns the report of an export in one line: what was compared, and how close it is."""
    parity, seconds = report.parity, sum(report.stage_seconds.values())
    compared = [
        f"{_count(number, kind)} ({_count(tokens, 'token')})"
        for number, kind, tokens in (
            (parity.sequences, "input", parity.steps),
            (parity.prompts, "random prompt", parity.prompt_steps),
        )
        if number
    ]
    sizes = f" at input sizes {'; '.join(parity.sizes)}" if parity.sizes else ""
    ties = f" but {parity.ties} at ties" if parity.ties else ""
    return (
        f"{report.path}: {' and '.join(compared)}{sizes}, up to {_count(parity.longest, 'token')} "
        f"long: all tokens identical to the model{ties}, largest difference of a logit "
        f"{parity.largest_difference:.1e}, {seconds:.1f} s"
    )


def _count(number: int, kind: str) -> str:
    return f"{number} {kind}" if number == 1 else f"{number} {kind}s"


def check_output(out: Path, force: bool) -> None:
    """Refuses an output that exists, or lies in a bundle, before minutes of work are done for it.

    Raises:
        OutputExistsError: `out` exists and `force` is false.
        UsageError: `out` lies in another bundle, or is not replaced even with `force`.
    """
    from hybrid_deploy.bundle.bundle import check_bundle_output

    check_outside_bundles(out)
    check_bundle_output(out, force=force)


def _job(model: str, options: ModelOptions, weights: Path | None) -> ExportJob:
    from hybrid_deploy.cli.options.export_job import load_job

    if not os.path.isdir(model):  # False for a name that is longer than any path
        return load_job(model, options, weights)
    useless = [option for option in options.used_options() if option not in _FOLDER_OPTIONS]
    useless += ["--weights"] if weights is not None else []
    if useless:
        raise UsageError(f"the folder {model} describes itself; leave out {', '.join(useless)}")
    from hybrid_deploy.export.huggingface.folder_job import job_from_folder

    job, remarks = job_from_folder(Path(model), options.max_length, options.picture_size())
    for remark in remarks:
        log(remark)
    return job


def _adjusted(
    job: ExportJob,
    *,
    opset: int | None,
    head: str | None,
    batch: int | None,
    name: str | None,
) -> ExportJob:
    """Returns the job with the values of the command line in place of its own."""
    from hybrid_deploy.export.exporter import head_of

    form = job.form
    if opset is not None:
        form = replace(form, opset=opset)
    if head is not None:
        form = replace(form, head=head_of(head))
    if batch is not None:
        form = replace(form, batch=batch)
    spec = job.spec if name is None else replace(job.spec, name=name)
    return replace(job, form=form, spec=spec)


def _with_prompt(job: ExportJob, text: str | None, default: str | None) -> ExportJob:
    """Returns the job with a template or default words in place of its own."""
    from hybrid_deploy.bundle.prompt_template import prompt_template

    own = job.spec.prompt
    if own is not None and text is None:
        text, preceded_by = own.text, own.preceded_by
        default = own.default if default is None else default
    else:
        preceded_by = "" if own is None else own.preceded_by
    prompt = prompt_template(text, default, preceded_by)
    return replace(job, spec=replace(job.spec, prompt=prompt))


def _with_samples(job: ExportJob, folder: Path) -> ExportJob:
    from hybrid_deploy.export.job_samples import with_samples

    return with_samples(job, folder)


def _golden_line(path: Path) -> str:
    """Returns how much `verify` can check with the golden samples of a bundle, in one line."""
    from hybrid_deploy.bundle.manifest import decode_manifest
    from hybrid_deploy.bundle.paths import MANIFEST_FILE

    manifest = decode_manifest((path / MANIFEST_FILE).read_bytes(), str(path))
    lengths = [len(sample.tokens) for sample in manifest.golden]
    shortest, longest = min(lengths), max(lengths)
    sizes = f"{longest}" if shortest == longest else f"{shortest} to {longest}"
    line = f"golden samples for verify: {len(lengths)}, of {sizes} {_tokens(longest)}"
    if longest <= _ENDS_AT_ONCE:
        line += "; the model ends at once on all of them, so verify checks little"
    if not manifest.real_golden:
        line += "; the example alone: --samples FOLDER keeps real inputs"
    return line


def _tokens(count: int) -> str:
    return "token" if count == 1 else "tokens"


def _check_half_variant(job: ExportJob, dtype: str) -> None:
    """Refuses a 16-bit variant that could not be made, before the export runs."""
    from hybrid_deploy.calibration.recipes import recipe_for
    from hybrid_deploy.contract import Head

    if job.form.head is not Head.LOGITS:
        raise UsageError(
            f"--dtype {dtype} needs --head {Head.LOGITS.value}, got {job.form.head.value}"
        )
    if not job.spec.generation.start_tokens:
        raise UsageError(f"--dtype {dtype} decodes both variants to compare them; give --start")
    recipe = recipe_for(dtype)
    if job.form.opset < recipe.min_opset:
        raise UsageError(
            f"--dtype {dtype} needs --opset {recipe.export_opset}, got {job.form.opset}"
        )


def _add_half_variant(out: Path, dtype: str) -> None:
    from hybrid_deploy.calibration.quantize import quantize_bundle
    from hybrid_deploy.cli.commands.quantize import summary

    say(summary(quantize_bundle(out, dtype)))


@contextmanager
def _one_line_refusal() -> Iterator[None]:
    """Shortens a refusal to one line: its code example is in the README too."""
    try:
        yield
    except UnsupportedModelError as error:
        line, _, code = str(error).partition("\n\n")
        if not code:
            raise
        raise UnsupportedModelError(
            f"{line.removesuffix(':')} (the README shows one under 'Your own model')"
        ) from error
