"""Transformers for translation as well-known repositories and tutorials write them."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.zoo.captioner import (
    HEADS,
    HIDDEN,
    POSITIONS,
    VOCABULARY,
    WIDTH,
    SinusoidalPositions,
)
from tests.models.zoo.case import build
from tests.models.zoo.published.case_makers import PADDING, sentences

_SIZE = WIDTH // HEADS


def clones(module: nn.Module, count: int) -> nn.ModuleList:
    return nn.ModuleList([copy.deepcopy(module) for _ in range(count)])


class OwnLayerNorm(nn.Module):
    """The Annotated Transformer's norm, which divides by the standard deviation plus eps."""

    def __init__(self, eps: float = 1e-6) -> None:
        super().__init__()
        self.a_2, self.b_2 = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.zeros(WIDTH))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        return self.a_2 * (x - mean) / (std + self.eps) + self.b_2


class MultiHeadedAttention(nn.Module):
    """The Annotated Transformer's attention, which keeps its weights in `self.attn`."""

    def __init__(self) -> None:
        super().__init__()
        self.linears = clones(nn.Linear(WIDTH, WIDTH), 4)
        self.attn: Tensor | None = None
        self.dropout = nn.Dropout(0.1)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        mask = mask.unsqueeze(1)
        nbatches = query.size(0)
        query, key, value = [
            lin(x).view(nbatches, -1, HEADS, _SIZE).transpose(1, 2)
            for lin, x in zip(self.linears, (query, key, value), strict=False)
        ]
        scores = torch.matmul(query, key.transpose(-2, -1)) / math.sqrt(query.size(-1))
        scores = scores.masked_fill(mask == 0, -1e9)
        self.attn = self.dropout(scores.softmax(dim=-1))
        x = torch.matmul(self.attn, value)
        x = x.transpose(1, 2).contiguous().view(nbatches, -1, WIDTH)
        rows: Tensor = self.linears[-1](x)
        return rows


class Sublayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm = MultiHeadedAttention(), OwnLayerNorm()

    def forward(self, x: Tensor, keys: Tensor | None, mask: Tensor) -> Tensor:
        normed = self.norm(x)
        keys = normed if keys is None else keys
        rows: Tensor = x + self.attention(normed, keys, keys, mask)
        return rows


class AnnotatedLayer(nn.Module):
    def __init__(self, attentions: int) -> None:
        super().__init__()
        self.sublayers = clones(Sublayer(), attentions)
        self.norm = OwnLayerNorm()
        self.w_1, self.w_2 = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(
        self, x: Tensor, mask: Tensor, memory: Tensor | None = None, src_mask: Tensor | None = None
    ) -> Tensor:
        x = self.sublayers[0](x, None, mask)
        if memory is not None:
            x = self.sublayers[1](x, memory, src_mask)
        rows: Tensor = x + self.w_2(self.w_1(self.norm(x)).relu())
        return rows


class Annotated(nn.Module):
    """The Annotated Transformer: the memory is a tensor and the mask of the source.

    Args:
        padding: whether padding tokens are hidden too, as in the batches of its training.
    """

    def __init__(self, *, padding: bool = False) -> None:
        super().__init__()
        self.padding = padding
        self.src_embed, self.tgt_embed = (nn.Embedding(VOCABULARY, WIDTH) for _ in range(2))
        self.positions = SinusoidalPositions()
        self.encoder, self.decoder = clones(AnnotatedLayer(1), 1), clones(AnnotatedLayer(2), 2)
        self.encoder_norm, self.decoder_norm = OwnLayerNorm(), OwnLayerNorm()
        self.proj = nn.Linear(WIDTH, VOCABULARY)

    def encode(self, source: Tensor) -> tuple[Tensor, Tensor]:
        src_mask = (source != PADDING).unsqueeze(-2)
        x = self.positions(self.src_embed(source) * math.sqrt(WIDTH))
        for layer in self.encoder:
            x = layer(x, src_mask)
        return self.encoder_norm(x), src_mask

    def subsequent_mask(self, size: int) -> Tensor:
        subsequent = torch.triu(torch.ones((1, size, size)), diagonal=1).type(torch.uint8)
        return subsequent == 0

    def decode(self, tokens: Tensor, memory: Tensor, src_mask: Tensor) -> Tensor:
        mask = self.subsequent_mask(tokens.size(-1)).type_as(tokens)
        if self.padding:
            mask = (tokens != PADDING).unsqueeze(-2) & mask.bool()
        x = self.positions(self.tgt_embed(tokens) * math.sqrt(WIDTH))
        for layer in self.decoder:
            x = layer(x, mask, memory, src_mask)
        return F.log_softmax(self.proj(self.decoder_norm(x)), dim=-1)


class TutorialSeq2Seq(nn.Module):
    """PyTorch's translation tutorial: nn.Transformer, length first, boolean padding masks."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.Transformer(WIDTH, HEADS, 1, 2, HIDDEN, 0.1)
        self.generator = nn.Linear(WIDTH, VOCABULARY)
        self.src_tok_emb, self.tgt_tok_emb = (nn.Embedding(VOCABULARY, WIDTH) for _ in range(2))
        self.positional_encoding = SinusoidalPositions(batch_first=False)

    def encode(self, source: Tensor) -> tuple[Tensor, Tensor]:
        src = source.transpose(0, 1)
        src_mask = torch.zeros((src.shape[0], src.shape[0])).type(torch.bool)
        padding = (src == PADDING).transpose(0, 1)
        rows = self.positional_encoding(self.src_tok_emb(src.long()) * math.sqrt(WIDTH))
        memory = self.transformer.encoder(rows, src_mask, src_key_padding_mask=padding)
        return memory.transpose(0, 1), padding

    def decode(self, tokens: Tensor, memory: Tensor, padding: Tensor) -> Tensor:
        tgt = tokens.transpose(0, 1)
        size = tgt.shape[0]
        mask = (torch.triu(torch.ones((size, size))) == 1).transpose(0, 1)
        mask = mask.float().masked_fill(mask == 0, float("-inf")).masked_fill(mask == 1, 0.0)
        rows = self.positional_encoding(self.tgt_tok_emb(tgt.long()) * math.sqrt(WIDTH))
        rows = self.transformer.decoder(
            rows, memory.transpose(0, 1), mask, memory_key_padding_mask=padding
        )
        logits: Tensor = self.generator(rows).transpose(0, 1)
        return logits


class WholeCall(nn.Module):
    """nn.Transformer used whole: `decode` runs the encoder again on the source."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.Transformer(WIDTH, HEADS, 1, 1, HIDDEN, batch_first=True)
        self.embedding, self.positions = nn.Embedding(VOCABULARY, WIDTH), SinusoidalPositions()
        self.out = nn.Linear(WIDTH, VOCABULARY)

    def encode(self, source: Tensor) -> Tensor:
        rows: Tensor = self.positions(self.embedding(source))
        return rows

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        mask = self.transformer.generate_square_subsequent_mask(tokens.size(1))
        target = self.positions(self.embedding(tokens))
        logits: Tensor = self.out(self.transformer(memory, target, tgt_mask=mask))
        return logits


class FairseqAttention(nn.Module):
    """fairseq's MultiheadAttention: length first, heads folded into the batch, masks by kind."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(WIDTH, WIDTH) for _ in range(4)
        )
        self.scaling = _SIZE**-0.5

    def forward(
        self, query: Tensor, key: Tensor, attn_mask: Tensor | None, key_padding_mask: Tensor | None
    ) -> Tensor:
        tgt_len, bsz, embed_dim = query.size()
        q = self.q_proj(query) * self.scaling
        q = q.contiguous().view(tgt_len, bsz * HEADS, _SIZE).transpose(0, 1)
        k = self.k_proj(key).contiguous().view(-1, bsz * HEADS, _SIZE).transpose(0, 1)
        v = self.v_proj(key).contiguous().view(-1, bsz * HEADS, _SIZE).transpose(0, 1)
        src_len = k.size(1)
        attn_weights = torch.bmm(q, k.transpose(1, 2))
        if attn_mask is not None:
            attn_weights += attn_mask.unsqueeze(0)
        if key_padding_mask is not None:
            attn_weights = attn_weights.view(bsz, HEADS, tgt_len, src_len)
            hidden = key_padding_mask.unsqueeze(1).unsqueeze(2).to(torch.bool)
            attn_weights = attn_weights.masked_fill(hidden, float("-inf"))
            attn_weights = attn_weights.view(bsz * HEADS, tgt_len, src_len)
        attn_probs = F.softmax(attn_weights, dim=-1, dtype=torch.float32).type_as(attn_weights)
        attn = torch.bmm(attn_probs, v)
        attn = attn.transpose(0, 1).contiguous().view(tgt_len, bsz, embed_dim)
        rows: Tensor = self.out_proj(attn)
        return rows


class Fairseq(nn.Module):
    """fairseq's transformer, post-norm, with a cached future mask.

    Args:
        from_tokens: whether positions count the tokens that are no padding, as published; if not,
            they count from the start.
    """

    _future_mask: Tensor

    def __init__(self, *, from_tokens: bool = False) -> None:
        super().__init__()
        self.from_tokens = from_tokens
        self.embed_tokens = nn.Embedding(VOCABULARY, WIDTH, PADDING)
        nn.init.normal_(self.embed_tokens.weight, std=0.5 * WIDTH**-0.5)
        self.embed_positions = nn.Embedding(POSITIONS + 1, WIDTH, PADDING)
        self.encoder_attn, self.self_attn, self.cross_attn = (FairseqAttention() for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self._future_mask = torch.empty(0)

    def buffered_future_mask(self, tensor: Tensor) -> Tensor:
        dim = tensor.size(0)
        if self._future_mask.size(0) == 0 or self._future_mask.size(0) < dim:
            self._future_mask = torch.triu(torch.full([dim, dim], float("-inf")), 1)
        return self._future_mask[:dim, :dim]

    def encode(self, source: Tensor) -> tuple[Tensor, Tensor]:
        padding = source.eq(PADDING)
        x = math.sqrt(WIDTH) * self.embed_tokens(source)
        x = x + self.embed_positions(self.make_positions(source))
        x = x * (1 - padding.unsqueeze(-1).type_as(x))
        x = x.transpose(0, 1)
        x = self.norms[0](x + self.encoder_attn(x, x, None, padding))
        return x.transpose(0, 1), padding

    def make_positions(self, tokens: Tensor) -> Tensor:
        mask = tokens.ne(PADDING).int()
        return (torch.cumsum(mask, dim=1).type_as(mask) * mask).long() + PADDING

    def decode(self, tokens: Tensor, memory: Tensor, padding: Tensor) -> Tensor:
        if self.from_tokens:
            positions = self.make_positions(tokens)
        else:
            positions = torch.arange(1, tokens.size(1) + 1).unsqueeze(0)
        x = math.sqrt(WIDTH) * self.embed_tokens(tokens) + self.embed_positions(positions)
        x, memory = x.transpose(0, 1), memory.transpose(0, 1)
        x = self.norms[1](x + self.self_attn(x, x, self.buffered_future_mask(x), None))
        x = self.norms[2](x + self.cross_attn(x, memory, None, padding))
        x = self.norms[3](x + self.fc2(F.relu(self.fc1(x))))
        return F.linear(x.transpose(0, 1), self.embed_tokens.weight)


class OpenNmt(nn.Module):
    """OpenNMT-py's decoder with Shaw's relative positions: vectors for keys and values.

    Args:
        furthest: distance from which all distances share one vector.
    """

    def __init__(self, furthest: int = 8) -> None:
        super().__init__()
        self.furthest = furthest
        self.embedding = nn.Embedding(VOCABULARY, WIDTH, padding_idx=PADDING)
        self.relative_positions_embeddings = nn.Embedding(2 * furthest + 1, _SIZE)
        self.linear_query, self.linear_keys, self.linear_values, self.final_linear = (
            nn.Linear(WIDTH, WIDTH) for _ in range(4)
        )
        self.context_attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.layer_norm_1, self.layer_norm_2 = (nn.LayerNorm(WIDTH, eps=1e-6) for _ in range(2))
        self.generator = nn.Linear(WIDTH, VOCABULARY)

    def encode(self, source: Tensor) -> tuple[Tensor, Tensor]:
        return self.embedding(source) * math.sqrt(WIDTH), source.eq(PADDING)

    def relative_matrix(self, length: int) -> Tensor:
        range_vec = torch.arange(length)
        range_mat = range_vec.unsqueeze(-1).expand(-1, length).transpose(0, 1)
        distance = range_mat - range_mat.transpose(0, 1)
        return torch.clamp(distance, -self.furthest, self.furthest) + self.furthest

    def relative_matmul(self, x: Tensor, z: Tensor, transpose: bool) -> Tensor:
        """Multiplies x (batch, heads, length, a) by z (length, length, size), row by row."""
        batch, heads, length, _ = x.size()
        x = x.permute(2, 0, 1, 3).reshape(length, heads * batch, -1)
        x = torch.matmul(x, z.transpose(1, 2) if transpose else z)
        return x.reshape(length, batch, heads, -1).permute(1, 2, 0, 3)

    def self_attention(self, x: Tensor, hidden: Tensor) -> Tensor:
        query, key, value = (
            linear(x).view(x.size(0), -1, HEADS, _SIZE).transpose(1, 2)
            for linear in (self.linear_query, self.linear_keys, self.linear_values)
        )
        relative = self.relative_positions_embeddings(self.relative_matrix(x.size(1)))
        query = query / math.sqrt(_SIZE)
        scores = torch.matmul(query, key.transpose(2, 3))
        scores = scores + self.relative_matmul(query, relative, True)
        scores = scores.masked_fill(hidden.unsqueeze(1), -1e18)
        attn = torch.softmax(scores.float(), -1).to(query.dtype)
        context = torch.matmul(attn, value) + self.relative_matmul(attn, relative, False)
        rows: Tensor = self.final_linear(context.transpose(1, 2).contiguous().flatten(2))
        return rows

    def decode(self, tokens: Tensor, memory: Tensor, padding: Tensor) -> Tensor:
        length = tokens.size(1)
        future = torch.ones([length, length], dtype=torch.uint8).triu_(1).view(1, length, length)
        hidden = torch.gt(tokens.eq(PADDING).unsqueeze(1) + future, 0)
        x = self.embedding(tokens) * math.sqrt(WIDTH)
        x = x + self.self_attention(self.layer_norm_1(x), hidden)
        query = self.layer_norm_2(x)
        x = x + self.context_attn(query, memory, memory, key_padding_mask=padding)[0]
        return F.log_softmax(self.generator(x), dim=-1)


CASES = (
    sentences("annotated-transformer", Annotated),
    sentences("annotated-transformer-padding", build(Annotated, padding=True)),
    sentences("tutorial-translation", TutorialSeq2Seq, gain=1.0, seed=1),
    sentences("whole-call", WholeCall, gain=1.0),
    sentences("fairseq", Fairseq),
)
