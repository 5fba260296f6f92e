"""The published models by family."""

from __future__ import annotations

from tests.models.zoo.published import (
    captioners,
    language,
    meshed_memory,
    parseq,
    pix2tex,
    recurrent_readers,
    scene_text,
    speech,
    translation,
    vietocr,
)

READERS = (
    *parseq.CASES,
    *vietocr.CASES,
    *pix2tex.CASES,
    *scene_text.CASES,
)
CAPTIONERS = (*meshed_memory.CASES, *captioners.CASES)
SPEECH = speech.CASES
TRANSLATION = translation.CASES
LANGUAGE = language.CASES
RECURRENT = (
    *recurrent_readers.CASES,
    *vietocr.RECURRENT_CASES,
    *speech.RECURRENT_CASES,
    *language.RECURRENT_CASES,
)
