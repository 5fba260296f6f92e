"""Models that the exporter must refuse, with the expected message of each refusal.

A refusal is useful only if it names the operator, the module and the line of the user's code; here
this line is in this file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.zoo.captioner import FEATURES, VOCABULARY, WIDTH
from tests.models.zoo.case import Case, random_floats
from tests.models.zoo.handwritten_decoders import HandWrittenDecoder, heads
from tests.models.zoo.refusal import Refusal
from tests.models.zoo.self_attentions import SIZE
from tests.models.zoo.torch_decoders import TorchDecoder


class Embedded(TorchDecoder):
    """A correct decoder; subclasses make an error in `embedded`, before it."""

    def embedded(self, tokens: Tensor) -> Tensor:
        """Returns the input of the decoder, (batch, length, WIDTH)."""
        rows: Tensor = self.positions(self.embedding(tokens))
        return rows

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.size(1))
        logits: Tensor = self.head(self.decoder(self.embedded(tokens), memory, tgt_mask=mask))
        return logits


class NoMask(Embedded):
    """nn.TransformerDecoder without a mask."""

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        rows = self.decoder(self.embedded(tokens), memory)
        logits: Tensor = self.head(rows)
        return logits


class NoMaskByHand(nn.Module):
    """Hand-written self-attention without a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads(t) for t in self.qkv(x).chunk(3, dim=-1))
        weights = F.softmax(q @ k.transpose(-1, -2) / SIZE**0.5, dim=-1)
        return (weights @ v).transpose(1, 2).flatten(2)


class Convolution(Embedded):
    """A convolution over each token and its two neighbors, so also the next token."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)

    def embedded(self, tokens: Tensor) -> Tensor:
        rows: Tensor = super().embedded(tokens).transpose(1, 2)
        rows = self.mix(rows)
        return rows.transpose(1, 2)


class CausalConvolution(Embedded):
    """A convolution over each token and two earlier ones: causal, but it needs its own state."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv1d(WIDTH, WIDTH, 3)

    def embedded(self, tokens: Tensor) -> Tensor:
        rows = super().embedded(tokens).transpose(1, 2)
        rows = torch.tanh(self.mix(F.pad(rows, (2, 0))))
        return rows.transpose(1, 2)


class RunningSum(Embedded):
    """Every row is the sum of the rows up to it."""

    def embedded(self, tokens: Tensor) -> Tensor:
        rows = super().embedded(tokens)
        return torch.tanh(rows.cumsum(dim=1))


class Recurrence(Embedded):
    """A recurrent network under the attention."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True)

    def embedded(self, tokens: Tensor) -> Tensor:
        rows, _ = self.gru(super().embedded(tokens))
        result: Tensor = rows
        return result


class NormOverTokens(Embedded):
    """Subtracts the mean over the tokens from every channel."""

    def embedded(self, tokens: Tensor) -> Tensor:
        rows = super().embedded(tokens)
        rows = rows - rows.mean(dim=1, keepdim=True)
        return rows


class InstanceNorm(Embedded):
    """A norm module over the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.standard = nn.InstanceNorm1d(WIDTH)

    def embedded(self, tokens: Tensor) -> Tensor:
        rows: Tensor = super().embedded(tokens).transpose(1, 2)
        rows = self.standard(rows)
        return rows.transpose(1, 2)


class LooksAtLastToken(Embedded):
    """Adds the last row to all rows."""

    def embedded(self, tokens: Tensor) -> Tensor:
        rows = super().embedded(tokens)
        return rows + rows[:, -1:]


class DataDependent(Embedded):
    """A Python condition depends on the value of a tensor."""

    def embedded(self, tokens: Tensor) -> Tensor:
        rows = super().embedded(tokens)
        if tokens.sum() > 0:
            rows = rows * 2
        return rows


class LengthDependent(Embedded):
    """An odd number of tokens runs other operators."""

    def embedded(self, tokens: Tensor) -> Tensor:
        rows = super().embedded(tokens)
        if tokens.shape[1] % 2:
            rows = torch.tanh(rows)
        return rows


class LeftInTraining(Embedded):
    """One dropout stays in training mode."""

    def eval(self) -> LeftInTraining:
        super().eval()
        self.positions_dropout.train()
        return self

    def __init__(self) -> None:
        super().__init__()
        self.positions_dropout = nn.Dropout(0.1)

    def embedded(self, tokens: Tensor) -> Tensor:
        rows: Tensor = self.positions_dropout(super().embedded(tokens))
        return rows


class FunctionalDropout(Embedded):
    """F.dropout without `training=self.training` is active even after eval()."""

    def embedded(self, tokens: Tensor) -> Tensor:
        rows = super().embedded(tokens)
        return F.dropout(rows, 0.1)


class FeaturesAtPlaceholders(Embedded):
    """Features take the places of certain tokens, wherever the prompt has them."""

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        places = (tokens == PLACEHOLDER).unsqueeze(-1)
        rows = self.embedded(tokens).masked_scatter(places, memory)
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.size(1))
        logits: Tensor = self.head(self.decoder(rows, memory, tgt_mask=mask))
        return logits


class CountedPlaceholders(Embedded):
    """The n-th placeholder token takes the n-th feature."""

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        is_feature = tokens == PLACEHOLDER
        count = is_feature.cumsum(1) - 1
        index = count.clamp(0, memory.shape[1] - 1).unsqueeze(-1).expand(-1, -1, WIDTH)
        rows = torch.where(is_feature.unsqueeze(-1), memory.gather(1, index), self.embedded(tokens))
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.size(1))
        logits: Tensor = self.head(self.decoder(rows, memory, tgt_mask=mask))
        return logits


class BatchCoupled(Embedded):
    """Subtracts the mean over the batch."""

    def embedded(self, tokens: Tensor) -> Tensor:
        rows = super().embedded(tokens)
        return rows - rows.mean(dim=0, keepdim=True)


class BatchCoupledEncoder(Embedded):
    """The memory of one input depends on the other inputs of its batch."""

    def encode(self, features: Tensor) -> Tensor:
        memory = super().encode(features)
        return memory - memory.mean(dim=0, keepdim=True)


class NoDecode(nn.Module):
    """A model with encode() and forward(), but without decode()."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(FEATURES, VOCABULARY)

    def encode(self, features: Tensor) -> Tensor:
        return features

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(features)
        return logits


PLACEHOLDER = 3
_FEATURES_FIRST = r"places of these values.*let the features stand before the text"
_MIXES_TOKENS = "this operator mixes tokens"


def _refusal(
    name: str, make: Callable[[], nn.Module], message: str, line: str | None = None
) -> Refusal:
    return Refusal(
        Case(
            name=name,
            family="refused",
            make=make,
            inputs=lambda batch, size: {"features": random_floats(batch, size, FEATURES)},
            sizes=(9,),
        ),
        message,
        line,
        Path(__file__),
    )


REFUSED = (
    _refusal(
        "no-mask",
        NoMask,
        r"causal mask.*scaled_dot_product_attention.*decoder\.layers\.0\.self_attn",
        "rows = self.decoder(self.embedded(tokens), memory)",
    ),
    _refusal(
        "no-mask-by-hand",
        lambda: HandWrittenDecoder(NoMaskByHand),
        r"causal mask.*blocks\.0\.attention",
        "weights = F.softmax(q @ k.transpose(-1, -2) / SIZE**0.5, dim=-1)",
    ),
    _refusal("convolution", Convolution, r"conv1d.*module \S*mix\b", "rows = self.mix(rows)"),
    _refusal(
        "causal-convolution",
        CausalConvolution,
        r"aten\.pad",
        "rows = torch.tanh(self.mix(F.pad(rows, (2, 0))))",
    ),
    _refusal(
        "running-sum",
        RunningSum,
        rf"{_MIXES_TOKENS}.*cumsum",
        "return torch.tanh(rows.cumsum(dim=1))",
    ),
    _refusal(
        "recurrence",
        Recurrence,
        rf"{_MIXES_TOKENS}.*gru.*module \S*gru\b",
        "rows, _ = self.gru(super().embedded(tokens))",
    ),
    _refusal(
        "norm-over-tokens",
        NormOverTokens,
        r"over the token axis.*mean",
        "rows = rows - rows.mean(dim=1, keepdim=True)",
    ),
    _refusal(
        "instance-norm", InstanceNorm, r"token.*module \S*standard\b", "rows = self.standard(rows)"
    ),
    _refusal(
        "last-token", LooksAtLastToken, r"along the token axis.*slice", "return rows + rows[:, -1:]"
    ),
    _refusal(
        "features-at-placeholders",
        FeaturesAtPlaceholders,
        rf"{_FEATURES_FIRST}.*masked_scatter",
        "rows = self.embedded(tokens).masked_scatter(places, memory)",
    ),
    _refusal(
        "counted-placeholders",
        CountedPlaceholders,
        rf"{_FEATURES_FIRST}.*cumsum",
        "count = is_feature.cumsum(1) - 1",
    ),
    _refusal("data-dependent", DataDependent, r"cannot be traced", "if tokens.sum() > 0:"),
    _refusal("length-dependent", LengthDependent, r"different program.*number of tokens"),
    _refusal("left-in-training", LeftInTraining, r"training mode.*positions_dropout"),
    _refusal("functional-dropout", FunctionalDropout, r"dropout", "return F.dropout(rows, 0.1)"),
    _refusal(
        "batch-coupled",
        BatchCoupled,
        r"batch.*mean",
        "return rows - rows.mean(dim=0, keepdim=True)",
    ),
    _refusal("batch-coupled-encoder", BatchCoupledEncoder, r"encode\(\).*batch"),
    _refusal("no-decode", NoDecode, r"NoDecode has no decode\(\)"),
)
