"""Arguments and options that several commands share."""

from __future__ import annotations

import click

from hybrid_deploy.cli.options.paths import INPUT, PATH
from hybrid_deploy.contract import FLOAT_VARIANT
from hybrid_deploy.report import FORMATS

BUNDLE = click.argument("bundle", type=PATH)
FILES = click.argument("files", nargs=-1, required=True, type=INPUT)
FORCE = click.option("--force", is_flag=True, help="Replace what is already there.")
FORMAT = click.option(
    "--format", "output_format", type=click.Choice(FORMATS), default="table", show_default=True,
    help="How the records are printed.",
)  # fmt: skip
VARIANT = click.option(
    "--variant", default=FLOAT_VARIANT, show_default=True, help="Which variant of the bundle."
)
BACKEND = click.option(
    "--backend", default="onnxruntime", show_default=True,
    help="What computes: onnxruntime, onnxruntime-cuda or tensorrt.",
)  # fmt: skip
THREADS = click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads; default: the backend's own choice."
)
