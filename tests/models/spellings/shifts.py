"""Rows that read the row before them, or the first token's row."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.models.spellings.decoders import Spelled
from tests.models.spellings.rows import RowFunction


def shifted_by_padding(decoder: Spelled, x: Tensor, tokens: Tensor) -> Tensor:
    """Mixes each row with the one before it, as RWKV's token shift does."""
    return 0.7 * x + 0.3 * F.pad(x, (0, 0, 1, -1))


def shifted_by_pad_and_slice(decoder: Spelled, x: Tensor, tokens: Tensor) -> Tensor:
    rows: Tensor = x - F.pad(x, (0, 0, 1, 0))[:, :-1].tanh()
    return rows


def shifted_by_zeros(decoder: Spelled, x: Tensor, tokens: Tensor) -> Tensor:
    return x + torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)


def repeated_first(decoder: Spelled, x: Tensor, tokens: Tensor) -> Tensor:
    before = torch.cat([x[:, :1], x[:, :-1]], dim=1)
    rows: Tensor = x + decoder.down(F.glu(decoder.up(before)))
    return rows


def shifted_by_two(decoder: Spelled, x: Tensor, tokens: Tensor) -> Tensor:
    """Reads the row two tokens earlier, after two learned rows."""
    start = decoder.pair[:2].expand(x.shape[0], -1, -1)
    result: Tensor = x + torch.cat([start, x], dim=1)[:, :-2]
    return result


def cut_and_joined(decoder: Spelled, x: Tensor, tokens: Tensor) -> Tensor:
    return torch.cat([x[:, :1].tanh(), x[:, 1:] * 2 + decoder.pair[: x.shape[1] - 1]], dim=1)


def differences(decoder: Spelled, x: Tensor, tokens: Tensor) -> Tensor:
    """Adds to each row its difference from the row before it, none to the first."""
    return x + F.pad(x[:, 1:] - x[:, :-1], (0, 0, 1, 0))


def shifted_channels(decoder: Spelled, x: Tensor, tokens: Tensor) -> Tensor:
    """Shifts half of the channels by one token."""
    kept, moved = x.chunk(2, dim=-1)
    return torch.cat([kept, F.pad(moved, (0, 0, 1, -1), value=0.5)], dim=-1)


def shifted_columns(decoder: Spelled, x: Tensor, tokens: Tensor) -> Tensor:
    y = x.transpose(1, 2)
    rows: Tensor = x + F.pad(y, (1, 0))[..., :-1].transpose(1, 2)
    return rows


def first_row(decoder: Spelled, x: Tensor, tokens: Tensor) -> Tensor:
    rows: Tensor = x + decoder.norm(x[:, :1])
    return rows


def first_row_selected(decoder: Spelled, x: Tensor, tokens: Tensor) -> Tensor:
    scale, shift = decoder.up(x[:, 0]).chunk(2, dim=-1)
    rows: Tensor = x * (1 + scale.unsqueeze(1)) + shift[:, None]
    return rows


def first_row_expanded(decoder: Spelled, x: Tensor, tokens: Tensor) -> Tensor:
    task = x[:, 0].unsqueeze(1).expand(-1, x.shape[1], -1)
    rows: Tensor = x + decoder.down(F.glu(decoder.up(task * x)))
    return rows


def first_row_repeated(decoder: Spelled, x: Tensor, tokens: Tensor) -> Tensor:
    task = x[:, :1].repeat(1, x.shape[1], 1)
    return torch.cat([x, task], dim=-1)[..., ::2]


SHIFTS: dict[str, RowFunction] = {
    "shifted-by-padding": shifted_by_padding,
    "shifted-by-pad-and-slice": shifted_by_pad_and_slice,
    "shifted-by-zeros": shifted_by_zeros,
    "shifted-by-two": shifted_by_two,
    "shifted-channels": shifted_channels,
    "shifted-columns": shifted_columns,
    "repeated-first": repeated_first,
    "cut-and-joined": cut_and_joined,
    "differences": differences,
    "first-row": first_row,
    "first-row-selected": first_row_selected,
    "first-row-expanded": first_row_expanded,
    "first-row-repeated": first_row_repeated,
}


def previous_token(decoder: Spelled, tokens: Tensor) -> Tensor:
    """Adds the token before each token, as n-gram embeddings do."""
    start = torch.full_like(tokens[:, :1], 2)
    before = torch.cat([start, tokens[:, :-1]], dim=1)
    rows: Tensor = decoder.embedding(tokens) + F.embedding(before, decoder.pair)
    return rows


def first_token(decoder: Spelled, tokens: Tensor) -> Tensor:
    rows: Tensor = decoder.embedding(tokens) + F.embedding(tokens[:, :1], decoder.pair)
    return rows


def null_context(decoder: Spelled, tokens: Tensor) -> Tensor:
    """Embeds as PARSeq: positions are added to all tokens but the first."""
    start = decoder.embedding(tokens[:, :1]) * 1.5
    others = decoder.pair[None, : tokens.shape[1] - 1] + decoder.embedding(tokens[:, 1:])
    return torch.cat([start, others], dim=1)


SHIFTED_EMBEDDINGS = {
    "previous-token": previous_token,
    "first-token": first_token,
    "null-context": null_context,
}
