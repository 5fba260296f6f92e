"""The cases: decoders of one layer, each with one more spelling of a row-wise operator."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.spellings.attentions import (
    TalkingHeads,
    filled_in_place,
    l1_attention,
    linear_attention,
    mean_attention,
    softmax_by_logsumexp,
    softmax_by_max,
    softmax_plus_one,
    weakly_masked,
)
from tests.models.spellings.decoders import (
    Experts,
    IntegerMask,
    NoSelfAttention,
    PositionQueries,
    Registers,
    Spelled,
)
from tests.models.spellings.rows import EMBEDDINGS, LOGITS, ROWS, RowFunction
from tests.models.spellings.shifts import SHIFTED_EMBEDDINGS, SHIFTS
from tests.models.zoo.captioner import (
    FEATURES,
)
from tests.models.zoo.case import Case, random_floats
from tests.models.zoo.self_attentions import HandWritten

MAX_LENGTH = 14


def rows_of(function: RowFunction) -> Callable[[], nn.Module]:
    """Returns a builder of a decoder whose rows are `function(decoder, rows, tokens)`."""
    return lambda: type("Rows", (Spelled,), {"rows": function})()


def embed_of(function: Callable[[Spelled, Tensor], Tensor]) -> Callable[[], nn.Module]:
    """Returns a builder of a decoder that embeds tokens by `function(decoder, tokens)`."""
    return lambda: type("Embed", (Spelled,), {"embed": function})()


def logits_of(
    function: Callable[[Spelled, Tensor, Tensor, Tensor], Tensor],
) -> Callable[[], nn.Module]:
    """Returns a builder of a decoder with `function(decoder, rows, tokens, memory)` as logits."""
    return lambda: type("Logits", (Spelled,), {"logits": function})()


def attention_of(function: Callable[..., Tensor]) -> Callable[[], nn.Module]:
    """Returns a builder of a decoder that attends by `function(attention, q, k, v)`."""
    return lambda: Spelled(type("Attention", (HandWritten,), {"attend": function}))


ATTENTIONS: dict[str, Callable[..., Tensor]] = {
    "softmax-plus-one": softmax_plus_one,
    "softmax-by-max": softmax_by_max,
    "softmax-by-logsumexp": softmax_by_logsumexp,
    "linear-attention": linear_attention,
    "l1-attention": l1_attention,
    "filled-in-place": filled_in_place,
}
DECODERS: dict[str, Callable[[], nn.Module]] = {
    "experts-dense": lambda: Experts("dense"),
    "experts-masked": lambda: Experts("masked"),
    "experts-scattered": lambda: Experts("scattered"),
    "experts-one-hot": lambda: Experts("one-hot"),
    "experts-gathered": lambda: Experts("gathered"),
    "talking-heads": lambda: Spelled(TalkingHeads),
    "registers": Registers,
    "no-self-attention": lambda: NoSelfAttention(prefix=False),
    "prefix-without-self-attention": lambda: NoSelfAttention(prefix=True),
    "position-queries": lambda: PositionQueries(fused=False),
    "position-queries-fused": lambda: PositionQueries(fused=True),
    "integer-mask": lambda: IntegerMask(only_causal=True),
    "integer-mask-and-padding": lambda: IntegerMask(only_causal=False),
}


def _case(name: str, make: Callable[[], nn.Module]) -> Case:
    return Case(
        name=name,
        family="spelling",
        make=make,
        inputs=lambda batch, size: {"features": random_floats(batch, size, FEATURES)},
        sizes=(5, 7),
        dynamic={"features": ((1, "size", 2, 12),)},
        prompts=(1, 4),
        max_length=MAX_LENGTH,
    )


SPELLINGS = (
    *(_case(name, rows_of(function)) for name, function in (ROWS | SHIFTS).items()),
    *(
        _case(name, embed_of(function))
        for name, function in (EMBEDDINGS | SHIFTED_EMBEDDINGS).items()
    ),
    *(_case(name, logits_of(function)) for name, function in LOGITS.items()),
    *(_case(name, attention_of(function)) for name, function in ATTENTIONS.items()),
    *(_case(name, make) for name, make in DECODERS.items()),
)


MIXING = (
    (
        _case("token-cumsum", rows_of(lambda decoder, x, tokens: x.cumsum(1).tanh())),
        "mixes tokens.*cumsum",
    ),
    (
        _case("token-flip", rows_of(lambda decoder, x, tokens: x + x.flip(1))),
        "mixes tokens.*flip",
    ),
    (
        _case("token-sort", rows_of(lambda decoder, x, tokens: x + x.sort(1).values)),
        "mixes tokens.*sort",
    ),
    (
        _case("noise", rows_of(lambda decoder, x, tokens: x + torch.rand_like(x))),
        "is random.*rand_like",
    ),
    (
        _case("batch-roll", rows_of(lambda decoder, x, tokens: x + x.roll(1, 0))),
        "mixes the sequences.*roll",
    ),
    (
        _case("normalize-over-tokens", rows_of(lambda decoder, x, tokens: F.normalize(x, dim=1))),
        "over the token axis.*vector_norm",
    ),
    (
        _case("shifted-left", rows_of(lambda decoder, x, tokens: x + F.pad(x, (0, 0, -1, 1)))),
        "pads along the token axis",
    ),
    (
        _case(
            "next-row",
            rows_of(
                lambda decoder, x, tokens: x + torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], 1)
            ),
        ),
        "reads the row of a token after it.*cat",
    ),
    (
        _case("third-row", rows_of(lambda decoder, x, tokens: x + x[:, 2:3])),
        "that of the first token alone.*slice",
    ),
    (
        _case("every-second-row", rows_of(lambda decoder, x, tokens: x[:, ::2])),
        r"along the token axis.*slice|logits of shape \(2, 4, 97\) for tokens \(2, 14\)",
    ),
    (
        _case("longer-rows", rows_of(lambda decoder, x, tokens: F.pad(x, (0, 0, 1, 0)))),
        r"before the first token are .*pad|logits of shape \(2, 16, 97\) for tokens \(2, 14\)",
    ),
    (_case("mean-of-weights", attention_of(mean_attention)), "along the keys.*mean"),
    (_case("weak-mask", attention_of(weakly_masked)), "along the keys.*sum"),
)
"""Decoders that mix tokens or sequences, with the message of their refusal."""
