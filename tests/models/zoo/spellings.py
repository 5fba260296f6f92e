"""Decoders of one layer, each with one more spelling of an operator that treats tokens one by one.

A spelling changes the embedded rows, the self-attention or the logits of a decoder.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.zoo.captioner import (
    FEATURES,
    HEADS,
    HIDDEN,
    VOCABULARY,
    WIDTH,
    Captioner,
    LearnedPositions,
)
from tests.models.zoo.case import Case, random_floats
from tests.models.zoo.handwritten_decoders import CrossAttention
from tests.models.zoo.self_attentions import SIZE, Fused, HandWritten

MAX_LENGTH = 14
PAD = 3


class Spelled(Captioner):
    """A decoder of one layer; subclasses override one of its methods.

    Args:
        attention: builds the self-attention.
    """

    def __init__(self, attention: Callable[[], nn.Module] = Fused) -> None:
        super().__init__()
        self.positions, self.attention, self.cross = (
            LearnedPositions(),
            attention(),
            CrossAttention(),
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN // 2, WIDTH)
        self.pair = nn.Parameter(torch.randn(VOCABULARY, WIDTH))

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        x = self.rows(self.positions(self.embed(tokens)), tokens)
        x = x + self.attention(x)
        x = x + self.cross(x, memory)
        return self.logits(self.rows(self.norm(x), tokens), tokens, memory)

    def embed(self, tokens: Tensor) -> Tensor:
        """Returns the embedded tokens, (batch, length, WIDTH)."""
        rows: Tensor = self.embedding(tokens)
        return rows

    def rows(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Returns rows of the shape of `x`, (batch, length, WIDTH)."""
        return x

    def logits(self, x: Tensor, tokens: Tensor, memory: Tensor) -> Tensor:
        """Returns the logits of rows (batch, length, WIDTH)."""
        logits: Tensor = self.head(x)
        return logits


RowFunction = Callable[[Spelled, Tensor, Tensor], Tensor]


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


def norm(order: float) -> RowFunction:
    """Returns rows divided by their norm of an order."""

    def divided(decoder: Spelled, x: Tensor, tokens: Tensor) -> Tensor:
        return x / torch.linalg.vector_norm(x, ord=order, dim=-1, keepdim=True)

    return divided


def scale_norm(decoder: Spelled, x: Tensor, tokens: Tensor) -> Tensor:
    length = torch.norm(x, dim=-1, keepdim=True) * WIDTH**-0.5
    return x / length.clamp(min=1e-5) * 1.3


def geglu(decoder: Spelled, x: Tensor, tokens: Tensor) -> Tensor:
    value, gate = decoder.up(x).chunk(2, dim=-1)
    rows: Tensor = x + decoder.down(value * F.gelu(gate))
    return rows


def glu(decoder: Spelled, x: Tensor, tokens: Tensor) -> Tensor:
    rows: Tensor = x + decoder.down(F.glu(decoder.up(x)))
    return rows


def glu_over_channels_first(decoder: Spelled, x: Tensor, tokens: Tensor) -> Tensor:
    return x + decoder.down(F.glu(decoder.up(x).transpose(1, 2), dim=1).transpose(1, 2))


def flipped(decoder: Spelled, x: Tensor, tokens: Tensor) -> Tensor:
    return x + x.flip(-1) + x.roll(3, -1)


def channel_cumsum(decoder: Spelled, x: Tensor, tokens: Tensor) -> Tensor:
    return torch.tanh(x.cumsum(-1))


def padded_channels(decoder: Spelled, x: Tensor, tokens: Tensor) -> Tensor:
    return F.pad(x, (2, -2)) + F.pad(x[..., 1:], (0, 1), value=0.5)


def sorted_channels(decoder: Spelled, x: Tensor, tokens: Tensor) -> Tensor:
    return x + x.sort(-1).values


def most_and_least(decoder: Spelled, x: Tensor, tokens: Tensor) -> Tensor:
    return (x - x.min(-1, keepdim=True).values) / (x.max(-1, keepdim=True).values + 1)


def spread(decoder: Spelled, x: Tensor, tokens: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True) * x.logsumexp(-1, keepdim=True)


def in_place(decoder: Spelled, x: Tensor, tokens: Tensor) -> Tensor:
    y = x.clone()
    y.mul_(2).add_(1)
    y.masked_fill_((tokens == PAD).unsqueeze(-1), 0.25)
    y[..., 0] = 0.5
    y[:, :, 1:3] = x[:, :, 2:4]
    y[..., 5] += x[..., 6]
    return y


def where_pad(decoder: Spelled, x: Tensor, tokens: Tensor) -> Tensor:
    return torch.where((tokens == PAD)[..., None], torch.zeros_like(x), x)


def top_channels(decoder: Spelled, x: Tensor, tokens: Tensor) -> Tensor:
    values, places = x.topk(8, dim=-1)
    return torch.zeros_like(x).scatter(-1, places, values) + x.gather(-1, places).sum(-1, True)


def grouped(decoder: Spelled, x: Tensor, tokens: Tensor) -> Tensor:
    return x.unfold(-1, 4, 4).amax(-1).repeat_interleave(4, -1) + x


def convolved_channels(decoder: Spelled, x: Tensor, tokens: Tensor) -> Tensor:
    batch, length, width = x.shape
    kernel = torch.tensor([[[0.2, 0.5, 0.3]]])
    return F.conv1d(x.reshape(batch * length, 1, width), kernel, padding=1).view(x.shape)


def cosine(decoder: Spelled, x: Tensor, tokens: Tensor, memory: Tensor) -> Tensor:
    return 10 * F.linear(F.normalize(x, dim=-1), F.normalize(decoder.head.weight, dim=-1))


def banned(decoder: Spelled, x: Tensor, tokens: Tensor, memory: Tensor) -> Tensor:
    logits = decoder.head(x)
    logits[..., 5] = -30.0
    logits[:, :, [6, 7]] = -1e4
    result: Tensor = logits
    return result


def masked_words(decoder: Spelled, x: Tensor, tokens: Tensor, memory: Tensor) -> Tensor:
    banned_words = torch.arange(VOCABULARY) % 7 == 0
    logits: Tensor = decoder.head(x).masked_fill_(banned_words, -1e4)
    return logits


def indexed_words(decoder: Spelled, x: Tensor, tokens: Tensor, memory: Tensor) -> Tensor:
    order = torch.arange(VOCABULARY).flip(0)
    return decoder.head(x)[..., order] + decoder.head(x).index_select(-1, order).roll(1, -1)


def top_words(decoder: Spelled, x: Tensor, tokens: Tensor, memory: Tensor) -> Tensor:
    logits: Tensor = decoder.head(x)
    least = logits.topk(20, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < least, -50.0)


def widened(decoder: Spelled, x: Tensor, tokens: Tensor, memory: Tensor) -> Tensor:
    return F.pad(decoder.head(x)[..., :-2], (0, 2), value=-1e4)


def pointer(decoder: Spelled, x: Tensor, tokens: Tensor, memory: Tensor) -> Tensor:
    """Adds the attention to each memory row to the word that the row stands for."""
    weights = (x @ memory.transpose(1, 2)).softmax(-1)  # (batch, length, memory)
    words = (memory.sum(-1).abs() * 1000).long() % VOCABULARY  # (batch, memory)
    words = words.unsqueeze(1).expand(-1, x.shape[1], -1)
    copied = torch.zeros(x.shape[0], x.shape[1], VOCABULARY).scatter_add(2, words, weights)
    logits: Tensor = decoder.head(x) + 5 * copied
    return logits


def pointer_in_place(decoder: Spelled, x: Tensor, tokens: Tensor, memory: Tensor) -> Tensor:
    weights = (x @ memory.transpose(1, 2)).softmax(-1)
    words = (memory.sum(-1).abs() * 1000).long() % VOCABULARY
    logits = decoder.head(x)
    result: Tensor = logits.scatter_add_(2, words[:, None].expand_as(weights), 5 * weights)
    return result


def one_hot(decoder: Spelled, tokens: Tensor) -> Tensor:
    return F.one_hot(tokens, VOCABULARY).float() @ decoder.pair


def one_hot_linear(decoder: Spelled, tokens: Tensor) -> Tensor:
    return F.linear(F.one_hot(tokens, VOCABULARY).to(torch.float32), decoder.pair.t())


def indexed_table(decoder: Spelled, tokens: Tensor) -> Tensor:
    return decoder.pair[tokens]


def indexed_flat(decoder: Spelled, tokens: Tensor) -> Tensor:
    return decoder.pair.index_select(0, tokens.reshape(-1)).view(*tokens.shape, WIDTH)


def gathered_table(decoder: Spelled, tokens: Tensor) -> Tensor:
    places = tokens.unsqueeze(-1).expand(-1, -1, WIDTH)
    table = decoder.pair.unsqueeze(0).expand(tokens.shape[0], -1, -1)
    return table.gather(1, places)


class Experts(Spelled):
    """Four experts; each row takes two of them, by one of three spellings."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, 4)
        self.experts = nn.Parameter(torch.randn(4, WIDTH, WIDTH) / 10)
        self.spelling = spelling

    def rows(self, x: Tensor, tokens: Tensor) -> Tensor:
        scores = self.gate(x)
        values, places = scores.topk(2, dim=-1)
        every = torch.einsum("bld,edh->bleh", x, self.experts)
        if self.spelling == "dense":
            return torch.einsum("ble,bleh->blh", scores.softmax(-1), every)
        if self.spelling == "masked":
            kept = scores.masked_fill(scores < values[..., -1:], float("-inf")).softmax(-1)
            return (kept.unsqueeze(-1) * every).sum(2)
        if self.spelling == "scattered":
            kept = torch.full_like(scores, float("-inf")).scatter(-1, places, values).softmax(-1)
            return torch.einsum("ble,bleh->blh", kept, every)
        if self.spelling == "one-hot":
            chosen = F.one_hot(places, 4).to(x.dtype)  # (batch, length, 2, 4)
            kept = (values.softmax(-1).unsqueeze(-1) * chosen).sum(-2)
            return torch.einsum("ble,bleh->blh", kept, every)
        gathered = every.gather(2, places.unsqueeze(-1).expand(*places.shape, WIDTH))
        return (values.softmax(-1).unsqueeze(-1) * gathered).sum(2)


def _scores(q: Tensor, k: Tensor) -> Tensor:
    length = q.shape[2]
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    return (q @ k.transpose(-1, -2) / SIZE**0.5).masked_fill(future, float("-inf"))


def softmax_plus_one(attention: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = _scores(q, k)
    highest = scores.amax(-1, keepdim=True).clamp(min=0)
    weights = (scores - highest).exp()
    return weights / (weights.sum(-1, keepdim=True) + (-highest).exp()) @ v


def softmax_by_max(attention: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = _scores(q, k)
    weights = (scores - scores.max(-1, keepdim=True).values).exp()
    return (weights / weights.sum(-1, keepdim=True)) @ v


def softmax_by_logsumexp(attention: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = _scores(q, k)
    return (scores - scores.logsumexp(-1, keepdim=True)).exp() @ v


def linear_attention(attention: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    past = torch.ones(q.shape[2], q.shape[2]).tril()
    weights = ((F.elu(q) + 1) @ (F.elu(k) + 1).transpose(-1, -2)) * past
    return weights @ v / (weights.sum(-1, keepdim=True) + 1e-6)


def l1_attention(attention: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    past = torch.ones(q.shape[2], q.shape[2]).tril()
    return F.normalize((q @ k.transpose(-1, -2)).relu() * past, p=1.0, dim=-1) @ v


def filled_in_place(attention: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    steps = torch.arange(q.shape[2])
    scores = torch.einsum("bhid,bhjd->bhij", q, k)
    scores.mul_(SIZE**-0.5)
    scores.masked_fill_(steps[None, None, :, None] < steps[None, None, None, :], -1e30)
    return F.softmax(scores, dim=-1) @ v


class TalkingHeads(HandWritten):
    """Heads mixed before and after the softmax by a convolution of size one (x-transformers)."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(HEADS, HEADS, 1, bias=False)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mixed = self.mix(q @ k.transpose(-1, -2) / SIZE**0.5)
        future = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu(1)
        weights: Tensor = self.mix(mixed.masked_fill(future, float("-inf")).softmax(-1))
        return weights @ v


class Registers(Spelled):
    """Learned rows before the tokens, which every token sees."""

    def __init__(self) -> None:
        super().__init__()
        self.registers = nn.Parameter(torch.randn(1, 3, WIDTH))

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        registers = self.registers.expand(tokens.shape[0], -1, -1)
        x = torch.cat([registers, self.positions(self.embedding(tokens))], dim=1)
        x = x + self.attention(x)
        x = x + self.cross(x, memory)
        logits: Tensor = self.head(self.norm(x[:, 3:]))
        return logits


class IntegerMask(Spelled):
    """A mask made of sums of integers: later tokens and padding keys are positive.

    Args:
        only_causal: whether the padding is constant.
    """

    def __init__(self, *, only_causal: bool) -> None:
        super().__init__(lambda: nn.Linear(WIDTH, WIDTH))
        self.only_causal = only_causal

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        x, length = self.positions(self.embedding(tokens)), tokens.shape[1]
        future = torch.triu(torch.ones(length, length, dtype=torch.uint8), diagonal=1)
        padding = torch.zeros_like(tokens) if self.only_causal else tokens.eq(PAD)
        hidden = (future + padding.unsqueeze(1)).gt(0)  # (batch, length, length)
        k = self.attention(x)
        scores = (x @ k.transpose(1, 2) / WIDTH).masked_fill(hidden, -1e9)
        x = x + scores.softmax(-1) @ k
        return self.logits(x + self.cross(x, memory), tokens, memory)


class PositionQueries(Spelled):
    """PARSeq's decoder: the queries are a table per position, keys and values are the tokens.

    Args:
        fused: whether the attention returns no weights, so that it is one operator.
    """

    def __init__(self, *, fused: bool) -> None:
        super().__init__(lambda: nn.MultiheadAttention(WIDTH, HEADS, batch_first=True))
        self.fused = fused

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        x, length = self.positions(self.embedding(tokens)), tokens.shape[1]
        queries = self.norm(self.pair[:length].expand(tokens.shape[0], -1, -1))
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        x = (
            queries
            + self.attention(queries, x, x, attn_mask=future, need_weights=not self.fused)[0]
        )
        return self.logits(x + self.cross(x, memory), tokens, memory)


ROWS: dict[str, RowFunction] = {
    "x-norm": lambda decoder, x, tokens: x / x.norm(dim=-1, keepdim=True),
    "normalize": lambda decoder, x, tokens: F.normalize(x, dim=-1),
    "normalize-p1": lambda decoder, x, tokens: F.normalize(x, p=1.0, dim=2),
    "vector-norm-1": norm(1),
    "vector-norm-2": norm(2),
    "vector-norm-3": norm(3),
    "vector-norm-inf": norm(float("inf")),
    "scale-norm": scale_norm,
    "glu": glu,
    "glu-channels-first": glu_over_channels_first,
    "geglu": geglu,
    "flip-and-roll": flipped,
    "channel-cumsum": channel_cumsum,
    "padded-channels": padded_channels,
    "sorted-channels": sorted_channels,
    "max-and-min": most_and_least,
    "spread": spread,
    "in-place": in_place,
    "where-pad": where_pad,
    "top-channels": top_channels,
    "unfolded-channels": grouped,
    "convolved-channels": convolved_channels,
}
EMBEDDINGS: dict[str, Callable[[Spelled, Tensor], Tensor]] = {
    "one-hot": one_hot,
    "one-hot-linear": one_hot_linear,
    "indexed-table": indexed_table,
    "indexed-flat": indexed_flat,
    "gathered-table": gathered_table,
}
LOGITS: dict[str, Callable[[Spelled, Tensor, Tensor, Tensor], Tensor]] = {
    "cosine": cosine,
    "banned-words": banned,
    "masked-words": masked_words,
    "indexed-words": indexed_words,
    "top-words": top_words,
    "widened": widened,
    "pointer": pointer,
    "pointer-in-place": pointer_in_place,
}
ATTENTIONS: dict[str, Callable[..., Tensor]] = {
    "softmax-plus-one": softmax_plus_one,
    "softmax-by-max": softmax_by_max,
    "softmax-by-logsumexp": softmax_by_logsumexp,
    "linear-attention": linear_attention,
    "l1-attention": l1_attention,
    "filled-in-place": filled_in_place,
}
DECODERS: dict[str, Callable[[], nn.Module]] = {
    **{
        f"experts-{s}": (lambda s=s: Experts(s))
        for s in ("dense", "masked", "scattered", "one-hot", "gathered")
    },
    "talking-heads": lambda: Spelled(TalkingHeads),
    "registers": Registers,
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
    *(_case(name, rows_of(function)) for name, function in ROWS.items()),
    *(_case(name, embed_of(function)) for name, function in EMBEDDINGS.items()),
    *(_case(name, logits_of(function)) for name, function in LOGITS.items()),
    *(_case(name, attention_of(function)) for name, function in ATTENTIONS.items()),
    *(_case(name, make) for name, make in DECODERS.items()),
)


def mean_attention(attention: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q @ k.transpose(-1, -2)) * torch.ones(q.shape[2], q.shape[2]).tril()
    return weights @ v / (weights.abs().mean(-1, keepdim=True) + 1)


def weakly_masked(attention: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q @ k.transpose(-1, -2) - 20 * torch.ones(q.shape[2], q.shape[2]).triu(1)).exp()
    return weights @ v / weights.sum(-1, keepdim=True)


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
        _case("batch-roll", rows_of(lambda decoder, x, tokens: x + x.roll(1, 0))),
        "mixes the sequences.*roll",
    ),
    (
        _case("norm-over-tokens", rows_of(lambda decoder, x, tokens: F.normalize(x, dim=1))),
        "over the token axis.*vector_norm",
    ),
    (_case("mean-of-weights", attention_of(mean_attention)), "along the keys.*mean"),
    (_case("weak-mask", attention_of(weakly_masked)), "along the keys.*sum"),
)
"""Decoders that mix tokens or sequences, with the message of their refusal."""
