"""The reference hybrid model: a CNN reads the image, a Transformer decoder writes the digits.

It is written the ordinary way, with a decoder over the whole sequence and no key-value cache.
`hybrid_deploy.export` derives the incremental decoder.
"""

from __future__ import annotations

import math
from importlib import resources
from typing import Literal, TypeGuard

from safetensors.torch import load
from torch import Tensor, nn

from hybrid_deploy.errors import InputError
from hybrid_deploy.export.reference.encoder import (
    FeatureMapEncoder,
    MemoryEncoder,
    PooledEncoder,
)
from hybrid_deploy.export.reference.positions import sinusoidal_positions
from hybrid_deploy.export.reference.vocabulary import MAX_LENGTH, PAD, VOCABULARY

EncoderForm = Literal["feature-map", "pooled"]
FORMS: tuple[EncoderForm, ...] = ("feature-map", "pooled")


class LineReader(nn.Module):
    """The interface of a model that reads lines, for training and scoring.

    Attributes:
        encoder: encoder of the image.
        embedding: embedding of the tokens, whose width is d_model.
    """

    encoder: MemoryEncoder
    embedding: nn.Embedding

    def encode(self, image: Tensor) -> Tensor:
        """Returns the memory of a batch of images.

        Args:
            image: (batch, 1, 32, width) float32, 0 for paper and -2 for black ink; the width is a
                multiple of 16 and at most 2048.

        Returns:
            (batch, memory tokens, d_model) float32.
        """
        memory: Tensor = self.encoder(image)
        return memory

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        """Returns the logits of the token after each given token.

        Args:
            tokens: (batch, length) int64 with the start token first and at most MAX_LENGTH tokens.
            memory: memory that `encode` returns.

        Returns:
            (batch, length, vocabulary) float32.
        """
        raise NotImplementedError

    def forward(self, image: Tensor, tokens: Tensor) -> Tensor:
        """Returns `decode(tokens, encode(image))`."""
        return self.decode(tokens, self.encode(image))


class DigitReader(LineReader):
    """A model that reads a line of handwritten digits, one digit per decoding step.

    Args:
        encoder: "feature-map" makes one memory token for every 8 pixels of width; "pooled" makes
            one memory token by global average pooling.
        d_model: width of the memory and of the decoder.
        heads: number of attention heads.
        layers: number of decoder layers.
        d_feedforward: hidden width of the feed-forward blocks.
        dropout: dropout probability inside the decoder during training.
    """

    positions: Tensor

    def __init__(
        self,
        encoder: EncoderForm = "feature-map",
        *,
        d_model: int = 96,
        heads: int = 4,
        layers: int = 2,
        d_feedforward: int = 192,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder = (
            FeatureMapEncoder(d_model) if encoder == "feature-map" else PooledEncoder(d_model)
        )
        self.embedding = nn.Embedding(len(VOCABULARY), d_model, padding_idx=PAD)
        # decode multiplies by sqrt(d_model), so the product has unit variance like the positions
        nn.init.normal_(self.embedding.weight, std=d_model**-0.5)
        self.register_buffer(
            "positions", sinusoidal_positions(MAX_LENGTH, d_model), persistent=False
        )
        layer = nn.TransformerDecoderLayer(d_model, heads, d_feedforward, dropout, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, layers)
        self.head = nn.Linear(d_model, len(VOCABULARY))

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        """Returns the logits (batch, length, vocabulary) of the token after each given token."""
        length = tokens.shape[1]
        embedded = self.embedding(tokens) * math.sqrt(self.embedding.embedding_dim)
        embedded = embedded + self.positions[:length]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=tokens.device)
        decoded = self.decoder(embedded, memory, tgt_mask=mask, tgt_is_causal=True)
        logits: Tensor = self.head(decoded)
        return logits


def load_reference(form: str) -> DigitReader:
    """Returns the trained reference model of one form, in eval mode.

    Raises:
        InputError: `form` is not "feature-map" or "pooled".
    """
    if not _is_form(form):
        raise InputError(f"expected a reference form of {' or '.join(FORMS)}, got {form!r}")
    model = DigitReader(form)
    weights = resources.files(__package__).joinpath(weights_name(form)).read_bytes()
    model.load_state_dict(load(weights))
    return model.eval()


def weights_name(form: EncoderForm) -> str:
    """Returns the name of the file that holds the weights of one form."""
    return f"digits-{form}.safetensors"


def _is_form(form: str) -> TypeGuard[EncoderForm]:
    return form in FORMS
