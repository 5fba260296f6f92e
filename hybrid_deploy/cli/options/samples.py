"""The options of samples and of their texts, and the log of samples that are left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from hybrid_deploy.accuracy.normalizers import NORMALIZERS
from hybrid_deploy.cli.output import log

if TYPE_CHECKING:
    from hybrid_deploy.calibration.samples.samples import SkippedSample

GOLDEN = click.option(
    "--golden", is_flag=True, help="Take the bundle's golden samples, alone or with --samples."
)
SKIP_BAD = click.option(
    "--skip-bad", is_flag=True, help="Leave out samples that cannot be read, and name them."
)
NORMALIZE = click.option(
    "--normalize", type=click.Choice(NORMALIZERS),
    help="What texts pass before CER, WER and exact matches are measured: the English normaliser "
    "of Whisper; case, punctuation and Unicode form of any language; or nothing. Default: whisper "
    "for speech in English, basic for other speech, none for the rest.",
)  # fmt: skip
_MOST_NAMED = 10


def log_skipped(skipped: Sequence[SkippedSample]) -> None:
    """Prints the samples that were left out on stderr, ten at most, with the reason of each."""
    for sample in skipped[:_MOST_NAMED]:
        log(f"left out: {sample.reason}")
    if len(skipped) > _MOST_NAMED:
        log(f"... and {len(skipped) - _MOST_NAMED} more")
