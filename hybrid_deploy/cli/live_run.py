"""Runs live sound: samples from a pipe or a microphone, and text as soon as it is firm."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from contextlib import closing
from typing import TYPE_CHECKING

from hybrid_deploy.cli.options.speech import SpeechOptions
from hybrid_deploy.cli.output import say
from hybrid_deploy.errors import UsageError
from hybrid_deploy.printable import one_line

if TYPE_CHECKING:
    from hybrid_deploy.runtime.generation.options import GenerateOptions
    from hybrid_deploy.runtime.preprocess.audio_features import Floats
    from hybrid_deploy.runtime.session.session import Session


def print_live(
    session: Session, options: GenerateOptions, speech: SpeechOptions, output_format: str
) -> None:
    """Prints the text of live sound while it is spoken, a line for each part.

    Args:
        session: session of the bundle.
        options: generation options.
        speech: options for speech, with the source of the sound.
        output_format: `text`, or `json` for a line with a record of each part.

    Raises:
        UsageError: the samples have another rate than the model takes, or an option does not go
            with live sound.
        InputError: the microphone cannot be read.
    """
    from hybrid_deploy.runtime.speech.live import LiveDecoder

    decoder = LiveDecoder(session, options)
    with closing(decoder.run(_blocks(decoder.rate, speech))) as pieces:  # type: ignore[type-var]
        line_begins = True
        for piece in pieces:
            if output_format == "text":
                text = piece.text.lstrip() if line_begins else piece.text
                line_begins = piece.part is not None or (line_begins and not text)
                say(one_line(text), nl=piece.part is not None)
                sys.stdout.flush()
            elif piece.part is not None:
                record = {
                    "begin_s": piece.part.begin_s,
                    "end_s": piece.part.end_s,
                    "text": piece.part_text,
                }
                say(json.dumps(record, ensure_ascii=False))
                sys.stdout.flush()


def _blocks(rate: int, speech: SpeechOptions) -> Iterable[Floats]:
    if speech.microphone:
        from hybrid_deploy.runtime.speech.microphone import microphone_blocks

        return microphone_blocks(rate, speech.step_s)
    from hybrid_deploy.runtime.preprocess.wav_files import raw_blocks

    assert speech.pcm is not None
    if speech.rate is None or speech.rate != rate:
        given = "no --rate" if speech.rate is None else f"--rate {speech.rate}"
        raise UsageError(
            f"raw samples come with {given}, the model takes {rate} per second; record so, or "
            f"convert them: ffmpeg -f {speech.pcm} -ar {speech.rate or 48000} -i - -f {speech.pcm} "
            f"-ar {rate} -ac 1 -"
        )
    return raw_blocks(sys.stdin.buffer, speech.pcm, max(1, int(speech.step_s * rate)))
