"""The reference hybrid model: reads lines of handwritten digits.

`load_reference` gives the trained model and `compose_lines` images to read.
`python -m hybrid_deploy.export.reference.train` makes the weights beside this file again.
"""

from hybrid_deploy.export.reference.evaluate import Reading, read_lines, score_lines
from hybrid_deploy.export.reference.lines import Line, batch_images, compose_lines
from hybrid_deploy.export.reference.model import FORMS, DigitReader, load_reference
from hybrid_deploy.export.reference.vocabulary import (
    END,
    MAX_LENGTH,
    PAD,
    START,
    VOCABULARY,
    text_from_tokens,
    tokens_from_text,
)

__all__ = [
    "END",
    "FORMS",
    "MAX_LENGTH",
    "PAD",
    "START",
    "VOCABULARY",
    "DigitReader",
    "Line",
    "Reading",
    "batch_images",
    "compose_lines",
    "load_reference",
    "read_lines",
    "score_lines",
    "text_from_tokens",
    "tokens_from_text",
]
