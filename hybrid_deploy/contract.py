"""The graph contract: names, shapes and roles of the tensors that cross a graph's border.

A bundle variant holds three ONNX graphs. Dimensions in words are symbolic, the rest is fixed when
the model is exported.

encoder   the model's own inputs            -> the memory tensors, once per input
prefill   tokens, position, last, memory, caches -> logits, caches     several tokens per row
step      token, position, memory, caches        -> logits, caches     one token per row

The memory tensors are whatever the decoder needs of the encoder's output, already projected:
`cross_key_i` and `cross_value_i` (batch, heads, memory, head_dim) for every cross-attention.
The caches are `self_key_i` and `self_value_i` (batch, heads, capacity, head_dim). A graph returns
every cache under its own name with `_next` appended; a backend binds both to one buffer. A cache is
empty (zeros) before the first token, unless the encoder graph returns it under its own name: in
decoder-only models the caches begin with the memory.
A decoder that steps by itself has no prefill graph, and in place of caches `recurrent_i`
(batch, ...): what every step computes anew. The encoder graph gives the first of each, a backend
keeps two buffers and uses them in turn.
A variant whose logits are rough has a fourth graph, and prefill and step return more:

step      ...                               -> logits (rough), hidden, margin, caches
refine    hidden, candidates                -> logits            the true ones of some tokens

Where its memory allows, a variant has a step for beam searches, whose memory tensors begin with
`inputs` in place of `batch`. `batch` is a multiple of it: the sequences of an input, its beams, lie
side by side and share its memory. Its logits are true in any variant. No engine is built of it.

beam_step token, position, memory, caches        -> logits, caches     one token per row

A TensorRT engine of a graph that returns `logits` returns `next_token`, `next_position` and `score`
too: what the next step is fed, without a way over the host.
A variant exported with another head returns `next_token`, or `top_scores` and `top_tokens`, where
the others return `logits`.
"""

from __future__ import annotations

from enum import Enum

FLOAT_VARIANT = "fp32"
"""The variant that the export writes and that every other one is made of."""

TOKEN = "token"
"""Step input, (batch,) int64: the newest token of each row."""

TOKENS = "tokens"
"""Prefill input, (batch, length) int64: prompts, padded on the right."""

POSITION = "position"
"""Step and prefill input, (batch,) int64: the position of each row's (first) token."""

LAST = "last"
"""Prefill input, (batch,) int64: index within `tokens` of each row's last real token."""

LOGITS = "logits"
"""Step and prefill output, (batch, vocabulary) float32: scores of the token that comes next."""

NEXT_TOKEN = "next_token"
"""Output in place of the logits, (batch,) int64: the likeliest token.

TensorRT engines return it beside the logits.
"""

NEXT_POSITION = "next_position"
"""Output of TensorRT engines beside the logits, (batch,) int64: where `next_token` goes.

The position of the newest token plus one, at most capacity - 1.
"""

SCORE = "score"
"""Output of TensorRT engines beside the logits, (batch,) float32: log-probability of `next_token`.

Not finite where the logits are not.
"""

TOP_SCORES = "top_scores"
"""Output in place of the logits, (batch, k) float32: the k largest logits, in falling order."""

TOP_TOKENS = "top_tokens"
"""Output beside `top_scores`, (batch, k) int64: their tokens."""

HIDDEN = "hidden"
"""Output beside rough logits, (batch, width) float32: the rows that are projected to them."""

MARGIN = "margin"
"""Output beside rough logits, (batch,) float32: how far each can be from the true one."""

CANDIDATES = "candidates"
"""Refine input, (candidates,) int64: the tokens whose true logits are wanted; and its dimension."""

NATIVE_OPSET = 24
"""The first ONNX opset with Attention and TensorScatter as the graphs use them.

Graphs of an older one write attention out and update caches with ScatterElements.
"""

BATCH_DIM = "batch"
INPUTS_DIM = "inputs"
"""First dimension of the memory tensors where several rows share them."""

BEAMS_DIM = "beams"
"""How many rows share a memory, inside of a graph: batch / inputs."""

LENGTH_DIM = "length"
MEMORY_DIM = "memory"
CAPACITY_DIM = "capacity"

_NEXT = "_next"
_CROSS = "cross_"
_RECURRENT = "recurrent_"


class Head(str, Enum):
    """What the decoder graphs return besides the caches."""

    LOGITS = "logits"
    ARGMAX = "argmax"
    TOPK = "topk"


class GraphRole(str, Enum):
    """The graphs of a variant."""

    ENCODER = "encoder"
    PREFILL = "prefill"
    STEP = "step"
    REFINE = "refine"
    BEAM_STEP = "beam_step"


def next_cache(name: str) -> str:
    """Returns the output name of the cache that enters a graph as `name`."""
    return name + _NEXT


def is_next_cache(name: str) -> bool:
    """Returns whether an output is an updated cache."""
    return name.endswith(_NEXT)


def cache_of(name: str) -> str:
    """Returns the input name of the cache that leaves a graph as `name`."""
    return name.removesuffix(_NEXT)


def is_memory(name: str) -> bool:
    """Returns whether a tensor holds what the encoder made, which no token changes.

    A step may return memory under the name of a cache; it is what it was.
    """
    return name.startswith(_CROSS)


def cross_name(kind: str, index: int) -> str:
    """Names a memory tensor; kind is `key`, `value`, `mask` or `state` (anything else)."""
    return f"{_CROSS}{kind}_{index}"


def head_name(index: int) -> str:
    """Names what a further head of the decoder returns, (batch, width); head 0 are the logits."""
    return f"head_{index}"


def recurrent_name(index: int) -> str:
    """Names what a decoder that steps by itself carries from token to token."""
    return f"{_RECURRENT}{index}"


def is_recurrent(name: str) -> bool:
    """Returns whether an input or output is carried, not written into: it needs two buffers."""
    return name.startswith(_RECURRENT)


def self_name(kind: str, index: int) -> str:
    """Names a cache; kind is `key`, `value` or `state`."""
    return f"self_{kind}_{index}"
