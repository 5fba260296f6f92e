"""A user's own class around a Hugging Face model, and its case."""

from __future__ import annotations

import transformers as hf
from torch import Tensor, nn

from tests.models.zoo.case import Case, random_floats
from tests.models.zoo.transformers.images import gpt2_config


class CnnWithGpt2(nn.Module):
    """A CNN encoder, and a decoder of transformers called as in its documentation."""

    def __init__(self) -> None:
        super().__init__()
        config = gpt2_config()
        config.add_cross_attention = True
        self.cnn = nn.Sequential(nn.Conv2d(3, 32, 8, 8), nn.ReLU())
        self.decoder = hf.GPT2LMHeadModel(config)

    def encode(self, image: Tensor) -> Tensor:
        maps: Tensor = self.cnn(image)
        return maps.flatten(2).transpose(1, 2).contiguous()

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        logits: Tensor = self.decoder(input_ids=tokens, encoder_hidden_states=memory).logits
        return logits


OWN_CLASS = (
    Case(
        "cnn-with-hf-gpt2",
        "own-class",
        CnnWithGpt2,
        lambda batch, size: {"image": random_floats(batch, 3, 16, size)},
        sizes=(32, 48),
        dynamic={"image": ((3, "width", 16, 64),)},
        gain=8.0,
    ),
)
