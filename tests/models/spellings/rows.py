"""Operators that treat tokens one by one: on rows, on embedded tokens and on logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.models.spellings.decoders import PAD, Spelled
from tests.models.zoo.captioner import (
    VOCABULARY,
    WIDTH,
)

RowFunction = Callable[[Spelled, Tensor, Tensor], Tensor]


def norm(order: float) -> RowFunction:
    """Returns rows divided by their norm of an order, with values around 1."""
    size = WIDTH ** (1 / order)

    def divided(decoder: Spelled, x: Tensor, tokens: Tensor) -> Tensor:
        result: Tensor = x / torch.linalg.vector_norm(x, ord=order, dim=-1, keepdim=True) * size
        return result

    return divided


def scale_norm(decoder: Spelled, x: Tensor, tokens: Tensor) -> Tensor:
    length = torch.norm(x, dim=-1, keepdim=True) * WIDTH**-0.5
    result: Tensor = x / length.clamp(min=1e-5) * 1.3
    return result


def geglu(decoder: Spelled, x: Tensor, tokens: Tensor) -> Tensor:
    value, gate = decoder.up(x).chunk(2, dim=-1)
    rows: Tensor = x + decoder.down(value * F.gelu(gate))
    return rows


def glu(decoder: Spelled, x: Tensor, tokens: Tensor) -> Tensor:
    rows: Tensor = x + decoder.down(F.glu(decoder.up(x)))
    return rows


def glu_over_channels_first(decoder: Spelled, x: Tensor, tokens: Tensor) -> Tensor:
    result: Tensor = x + decoder.down(F.glu(decoder.up(x).transpose(1, 2), dim=1).transpose(1, 2))
    return result


def flipped(decoder: Spelled, x: Tensor, tokens: Tensor) -> Tensor:
    return x + x.flip(-1) + x.roll(3, -1)


def channel_cumsum(decoder: Spelled, x: Tensor, tokens: Tensor) -> Tensor:
    return torch.tanh(x.cumsum(-1))


def padded_channels(decoder: Spelled, x: Tensor, tokens: Tensor) -> Tensor:
    return F.pad(x, (2, -2)) + F.pad(x[..., 1:], (0, 1), value=0.5)


def sorted_channels(decoder: Spelled, x: Tensor, tokens: Tensor) -> Tensor:
    return x + x.sort(-1).values


def most_and_least(decoder: Spelled, x: Tensor, tokens: Tensor) -> Tensor:
    height = (x - x.min(-1, keepdim=True).values) / (x.max(-1, keepdim=True).values + 1)
    return 4 * height - 2


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
    top = torch.zeros_like(x).scatter(-1, places, values)
    return x + top - x.gather(-1, places).mean(-1, True)


def grouped(decoder: Spelled, x: Tensor, tokens: Tensor) -> Tensor:
    return x.unfold(-1, 4, 4).amax(-1).repeat_interleave(4, -1) + x


def joined_infinities(decoder: Spelled, x: Tensor, tokens: Tensor) -> Tensor:
    high = torch.where(x > 0.5, float("inf"), x)
    table = decoder.embedding.weight[:1].expand(x.shape)
    first, second = torch.cat([high, table], -1).clamp(-2, 2).chunk(2, -1)
    return first + second


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
    result: Tensor = decoder.head(x)[..., order] + decoder.head(x).index_select(-1, order).roll(
        1, -1
    )
    return result


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


ROWS: dict[str, RowFunction] = {
    "x-norm": lambda decoder, x, tokens: x / x.norm(dim=-1, keepdim=True) * WIDTH**0.5,
    "normalize": lambda decoder, x, tokens: F.normalize(x, dim=-1) * WIDTH**0.5,
    "normalize-p1": lambda decoder, x, tokens: F.normalize(x, p=1.0, dim=2) * WIDTH,
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
    "joined-infinities": joined_infinities,
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
