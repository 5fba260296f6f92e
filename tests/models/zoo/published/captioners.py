"""Captioners with transformers: CPTR, ClipCap, GIT, CoCa, OFA, Flamingo with its resampler."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.zoo.captioner import FEATURES, HEADS, HIDDEN, POSITIONS, VOCABULARY, WIDTH
from tests.models.zoo.case import build
from tests.models.zoo.handwritten_decoders import GatedBlock, HandWrittenDecoder
from tests.models.zoo.published.case_makers import regions, squares
from tests.models.zoo.self_attentions import Fused

_SIZE = WIDTH // HEADS


class VisionTransformer(nn.Module):
    """A ViT of one layer over patches of eight pixels, with a class token first."""

    def __init__(self, side: int = 32) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, WIDTH, 8, 8)
        self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.randn(1, (side // 8) ** 2 + 1, WIDTH))
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, HIDDEN, batch_first=True, norm_first=True, activation="gelu"
        )
        self.blocks = nn.TransformerEncoder(layer, 1, nn.LayerNorm(WIDTH), False)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch_embed(image).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        rows: Tensor = self.blocks(x + self.pos_embed)
        return rows


class Cptr(nn.Module):
    """CPTR: patches without a CNN, nn.TransformerDecoder with an in-place mask."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = VisionTransformer()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.position = nn.Embedding(POSITIONS, WIDTH)
        layer = nn.TransformerDecoderLayer(WIDTH, HEADS, HIDDEN, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, 2)
        self.classifier = nn.Linear(WIDTH, VOCABULARY)

    def encode(self, image: Tensor) -> Tensor:
        return self.vit(image)[:, 1:]  # type: ignore[no-any-return]

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        length = tokens.size(1)
        mask = torch.zeros(length, length)
        mask.masked_fill_(torch.ones(length, length, dtype=torch.bool).triu_(1), -math.inf)
        positions = torch.arange(length, device=tokens.device).unsqueeze(0).expand_as(tokens)
        rows = self.embedding(tokens) + self.position(positions)
        logits: Tensor = self.classifier(self.decoder(rows, memory, tgt_mask=mask))
        return logits


class CausalSelfAttention(nn.Module):
    """minGPT's attention, with a registered triangle."""

    bias: Tensor

    def __init__(self, longest: int) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        triangle = torch.tril(torch.ones(longest, longest))
        self.register_buffer("bias", triangle.view(1, 1, longest, longest))

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.size()  # noqa: N806 - the names of minGPT
        q, k, v = (
            t.view(B, T, HEADS, C // HEADS).transpose(1, 2) for t in self.c_attn(x).split(C, dim=2)
        )
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf"))
        y = F.softmax(att, dim=-1) @ v
        rows: Tensor = self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))
        return rows


class GptBlock(nn.Module):
    def __init__(self, longest: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = CausalSelfAttention(longest)
        self.c_fc, self.c_proj = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        hidden = self.c_fc(self.ln_2(x))
        cubed = hidden + 0.044715 * torch.pow(hidden, 3.0)
        gelu = 0.5 * hidden * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * cubed))
        rows: Tensor = x + self.c_proj(gelu)
        return rows


class ClipCap(nn.Module):
    """ClipCap: an MLP turns one vector into a prefix of rows for a GPT with tied weights."""

    prefix_length = 5

    def __init__(self) -> None:
        super().__init__()
        longest = POSITIONS + self.prefix_length
        wide = WIDTH * self.prefix_length
        self.clip_project = nn.Sequential(
            nn.Linear(FEATURES, wide // 2), nn.Tanh(), nn.Linear(wide // 2, wide)
        )
        self.wte, self.wpe = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(longest, WIDTH)
        nn.init.normal_(self.wte.weight, std=0.1)
        self.h = nn.ModuleList(GptBlock(longest) for _ in range(2))
        self.ln_f = nn.LayerNorm(WIDTH)

    def encode(self, features: Tensor) -> Tensor:
        prefix: Tensor = F.normalize(features.mean(1), dim=-1)
        return self.clip_project(prefix).view(-1, self.prefix_length, WIDTH)  # type: ignore[no-any-return]

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        x = torch.cat((memory, self.wte(tokens)), dim=1)
        x = x + self.wpe(torch.arange(0, x.shape[1], dtype=torch.long).unsqueeze(0))
        for block in self.h:
            x = block(x)
        x = self.ln_f(x[:, self.prefix_length :])
        logits: Tensor = x @ self.wte.weight.t()
        return logits


class Git(nn.Module):
    """GIT: image rows and text in one sequence; image rows see the image, text sees all before."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = VisionTransformer()
        self.visual_projection = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH))
        self.words, self.positions = (
            nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(POSITIONS, WIDTH)
        )  # fmt: skip
        self.layer_norm = nn.LayerNorm(WIDTH, eps=1e-8)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, batch_first=True)
        self.transformer = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.output = nn.Linear(WIDTH, VOCABULARY)

    def encode(self, image: Tensor) -> Tensor:
        memory: Tensor = self.visual_projection(self.image_encoder(image))
        return memory

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        num_memory, num_tgt = memory.shape[1], tokens.shape[1]
        text = self.layer_norm(
            self.words(tokens) + self.positions(torch.arange(num_tgt).unsqueeze(0))
        )
        future = torch.triu(torch.ones(num_tgt, num_tgt) * float("-inf"), diagonal=1)
        top_left = torch.zeros((num_memory, num_memory))
        top_right = torch.full((num_memory, num_tgt), float("-inf"))
        bottom_left = torch.zeros((num_tgt, num_memory))
        left = torch.cat((top_left, bottom_left), dim=0)
        right = torch.cat((top_right, future), dim=0)
        mask = torch.cat((left, right), dim=1)
        rows = self.transformer(torch.cat((memory, text), dim=1), mask=mask)
        logits: Tensor = self.output(rows[:, num_memory:])
        return logits


class Coca(nn.Module):
    """CoCa: causal layers for the text alone, then layers with cross-attention to pooled rows."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = VisionTransformer()
        self.img_queries = nn.Parameter(torch.randn(6, WIDTH))
        self.img_attn_pool = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.token_emb = nn.Embedding(VOCABULARY, WIDTH)
        self.unimodal = GptBlock(POSITIONS)
        self.multimodal = GptBlock(POSITIONS)
        self.norm, self.to_q = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.to_kv = nn.Linear(WIDTH, 2 * _SIZE, bias=False)
        self.to_logits = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)
        )
        self.positions = nn.Embedding(POSITIONS, WIDTH)

    def encode(self, image: Tensor) -> Tensor:
        rows = self.vit(image)
        queries = self.img_queries.unsqueeze(0).repeat(rows.shape[0], 1, 1)
        pooled: Tensor = self.img_attn_pool(queries, rows, rows)[0]
        return pooled

    def cross(self, x: Tensor, context: Tensor) -> Tensor:
        """Cross-attention whose heads share one key and value head."""
        q = self.to_q(self.norm(x)).unflatten(-1, (HEADS, _SIZE)).transpose(1, 2) * _SIZE**-0.5
        k, v = self.to_kv(context).chunk(2, dim=-1)
        sim = torch.einsum("b h i d, b j d -> b h i j", q, k)
        sim = sim - sim.amax(dim=-1, keepdim=True)
        out = torch.einsum("b h i j, b j d -> b h i d", sim.softmax(dim=-1), v)
        return out.transpose(1, 2).flatten(2)

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        x = self.token_emb(tokens) + self.positions.weight[: tokens.shape[1]]
        x = self.multimodal(self.unimodal(x))
        x = x + self.cross(x, memory)
        logits: Tensor = self.to_logits(x)
        return logits


class OfaDecoderLayer(nn.Module):
    """OFA's layer: norms inside the blocks, scaled heads, positions as biases of the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.cross_q, self.cross_k, self.cross_v, self.cross_out = (
            nn.Linear(WIDTH, WIDTH) for _ in range(4)
        )
        self.c_attn, self.cross_c_attn = (
            nn.Parameter(torch.ones(HEADS)),
            nn.Parameter(torch.ones(HEADS)),
        )
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(6))
        self.fc1, self.fc2 = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.ffn_norm, self.w_resid = nn.LayerNorm(HIDDEN), nn.Parameter(torch.ones(WIDTH))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scales: Tensor) -> Tensor:
        """Attention by torch.bmm over heads folded into the batch, length first."""
        tgt_len, bsz, _ = q.size()
        q, k, v = (t.contiguous().view(-1, bsz * HEADS, _SIZE).transpose(0, 1) for t in (q, k, v))
        weights = torch.bmm(q * float(_SIZE * 2) ** -0.5, k.transpose(1, 2)) + bias
        attn = torch.bmm(torch.softmax(weights, dim=-1), v)
        attn = attn.transpose(0, 1).contiguous().view(tgt_len, bsz, HEADS, _SIZE)
        return torch.einsum("tbhd,h->tbhd", attn, scales).reshape(tgt_len, bsz, WIDTH)

    def forward(self, x: Tensor, memory: Tensor, self_bias: Tensor, cross_bias: Tensor) -> Tensor:
        norms = self.norms
        normed = norms[0](x)
        mixed = self.attend(self.q(normed), self.k(normed), self.v(normed), self_bias, self.c_attn)
        x = x + norms[1](self.out(mixed))
        keys, values = self.cross_k(memory), self.cross_v(memory)
        mixed = self.attend(self.cross_q(norms[2](x)), keys, values, cross_bias, self.cross_c_attn)
        x = x + norms[3](self.cross_out(mixed))
        hidden = self.ffn_norm(F.gelu(self.fc1(norms[4](x)).float()).type_as(x))
        return norms[5](self.fc2(hidden)) + torch.mul(self.w_resid, x)  # type: ignore[no-any-return]


class Ofa(nn.Module):
    """OFA's decoder: positions enter as biases of the scores only, in both attentions."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(FEATURES, WIDTH)
        self.embed_tokens = nn.Embedding(VOCABULARY, WIDTH)
        nn.init.normal_(self.embed_tokens.weight, std=WIDTH**-0.5)
        self.embed_positions, self.embed_image_positions = (
            nn.Embedding(POSITIONS, WIDTH) for _ in range(2)
        )
        self.pos_ln, self.image_pos_ln = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.self_pos_q, self.self_pos_k, self.cross_pos_q, self.cross_pos_k = (
            nn.Linear(WIDTH, WIDTH) for _ in range(4)
        )
        self.layers = nn.ModuleList(OfaDecoderLayer() for _ in range(2))
        self.layer_norm = nn.LayerNorm(WIDTH)

    def encode(self, features: Tensor) -> tuple[Tensor, Tensor]:
        rows = torch.tanh(self.project(features))
        positions = self.embed_image_positions(torch.arange(rows.shape[1]))
        return rows, self.image_pos_ln(positions).expand(rows.shape[0], -1, -1)

    def bias(self, pos_q: Tensor, pos_k: Tensor) -> Tensor:
        """Returns (batch, heads, queries, keys), the products of positions."""
        q, k = (t.view(t.shape[0], -1, HEADS, _SIZE).transpose(1, 2) for t in (pos_q, pos_k))
        return torch.matmul(q * float(_SIZE * 2) ** -0.5, k.transpose(2, 3))

    def decode(self, tokens: Tensor, memory: Tensor, memory_positions: Tensor) -> Tensor:
        bsz, length = tokens.shape
        positions = torch.arange(length).unsqueeze(0).expand(bsz, -1).contiguous()
        embedded = self.pos_ln(self.embed_positions(positions))
        self_bias = self.bias(self.self_pos_q(embedded), self.self_pos_k(embedded))
        future = torch.triu(torch.zeros([length, length]).fill_(-math.inf), 1)
        self_bias = (self_bias + future).reshape(-1, length, length)
        cross_bias = self.bias(self.cross_pos_q(embedded), self.cross_pos_k(memory_positions))
        cross_bias = cross_bias.reshape(-1, *cross_bias.size()[-2:])
        x = self.embed_tokens(tokens).transpose(0, 1)
        for layer in self.layers:
            x = layer(x, memory.transpose(0, 1), self_bias, cross_bias)
        x = self.layer_norm(x).transpose(0, 1)
        return F.linear(x, self.embed_tokens.weight)


class PerceiverResampler(nn.Module):
    """Flamingo's resampler: latents attend to features and to themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(6, WIDTH))
        self.project = nn.Linear(FEATURES, WIDTH)
        self.norm_media, self.norm_latents = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.to_q = nn.Linear(WIDTH, WIDTH, bias=False)
        self.to_kv, self.to_out = nn.Linear(WIDTH, 2 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)

    def forward(self, features: Tensor) -> Tensor:
        x = self.norm_media(self.project(features))
        latents = self.latents.unsqueeze(0).repeat(x.shape[0], 1, 1)
        normed = self.norm_latents(latents)
        k, v = self.to_kv(torch.cat((x, normed), dim=-2)).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (self.to_q(normed), k, v))
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        rows: Tensor = latents + self.to_out(out)
        return rows


class Flamingo(HandWrittenDecoder):
    """Gated cross-attention to resampled features."""

    def __init__(self) -> None:
        super().__init__(Fused, block=GatedBlock)
        self.resampler = PerceiverResampler()

    def encode(self, features: Tensor) -> Tensor:
        memory: Tensor = self.resampler(features)
        return memory


CASES = (
    squares("cptr", Cptr, gain=2.5),
    regions("clipcap", ClipCap),
    squares("git", Git, gain=1.5),
    regions("ofa", Ofa),
    regions("flamingo-resampler", build(Flamingo)),
)
