"""The glossary of the toolkit, and the graph contract: the tensors that graphs take and return.

Glossary

A bundle is a folder with everything that a device needs to run a model: a manifest, the graphs and
weights of one or more variants, tokenizer files and golden samples. A variant is the model in one
precision (float32, float16, int8 and so on): its own ONNX graphs over its own weights.
Memory is the encoder's output in the form in which the decoder reads it: the keys and values of
every cross-attention. It is computed once for an input, and no token changes it.
A cache holds the keys or values of self-attention for every token that the decoder has read. It has
room for `capacity` tokens, and each call of the decoder writes the rows of its new tokens into it.
Prefill is the call of the decoder that reads all tokens of a prompt at once. A step is a call that
reads one token of each sequence. Both return the logits of the token that comes next.
A beam step is a step for beam search. The beams of one input, the sequences that the search extends
side by side, share the input's memory instead of reading a copy each.
Approximate logits are computed from weights of few bits, and come with an error bound: how far a
logit of the row can be from its exact value. A token whose approximate logit is more than
two error bounds below the largest one cannot be the likeliest. The refine graph computes the exact
logits of the tokens that remain, the candidates.
A golden sample is an input file of the bundle together with the tokens and the text that the
original PyTorch model computes from it; `hybrid-deploy verify` decodes it again.
An engine is what TensorRT builds from one graph for one kind of GPU. Engines are kept in the cache
folder of a machine, not in the bundle.

Graph contract

A variant holds these three ONNX graphs; exceptions are below. Dimensions in words are symbolic, the
other ones are fixed when the model is exported.

encoder   inputs of the model                    -> memory             once per input
prefill   tokens, position, last, memory, caches -> logits, caches     several tokens per row
step      token, position, memory, caches        -> logits, caches     one token per row

The memory tensors are `cross_key_i` and `cross_value_i` (batch, heads, memory, head_dim) of the
i-th cross-attention. A mask of memory is `cross_mask_i`, and anything else that the decoder reads
of the encoder's output is `cross_state_i`. The first dimension of each is the batch, unless it is
the same for all inputs: a backend chooses, repeats and drops sequences along it.
The caches are `self_key_i` and `self_value_i` (batch, heads, capacity, head_dim) of the i-th
self-attention. A graph returns every cache under its own name with `_next` appended; a backend
binds both to one buffer. A cache is zeros before the first token, unless the encoder graph returns
it under its own name: in decoder-only models the caches begin with the memory.

A decoder that was written to read one token at a time, such as an LSTM, has no prefill graph, and
its step has no position. In place of caches it has states `recurrent_i` (batch, ...), which every
step replaces as a whole. The encoder graph returns the first value of each; a backend holds two
buffers and uses them in turn.

A variant with approximate logits has a refine graph, and prefill and step have two more outputs,
`hidden` and the error bound, whose tensor is named `margin`:

step      token, position, memory, caches        -> approximate logits, hidden, margin, caches
refine    hidden, candidates                     -> logits             exact, of the candidates

A variant has a beam step if its graph allows one. There the first dimension of the memory tensors
is `inputs` in place of `batch`. `batch` is a multiple of `inputs`: the beams of an input are
neighbouring rows. It returns no approximate logits. No engine is built from a beam step.

beam_step token, position, memory, caches        -> logits, caches     one token per row

A TensorRT engine of a graph with the output `logits` also returns `next_token`, `next_position` and
`score`. The first two are the inputs of the next step, so they stay on the device.
A variant that is exported with another head returns `next_token`, or `top_scores` and `top_tokens`,
in place of `logits`.
"""

from __future__ import annotations

from enum import Enum

FLOAT_VARIANT = "fp32"
"""The float32 variant: the export writes it, and every other variant is made from it."""

TOKEN = "token"
"""Step input, (batch,) int64: newest token of each row."""

TOKENS = "tokens"
"""Prefill input, (batch, length) int64: tokens of the prompts, padded on the right."""

POSITION = "position"
"""Step and prefill input, (batch,) int64: position of the first token that each row reads."""

LAST = "last"
"""Prefill input, (batch,) int64: index in `tokens` of each row's last token before the padding."""

LOGITS = "logits"
"""Step and prefill output, (batch, vocabulary) float32: unnormalised scores of the next token."""

NEXT_TOKEN = "next_token"
"""Output in place of the logits, (batch,) int64: likeliest token of each row.

TensorRT engines return it together with the logits.
"""

NEXT_POSITION = "next_position"
"""Output of TensorRT engines whose graph has `position`, (batch,) int64: position of `next_token`.

It is the position of the newest token plus one, and capacity - 1 at most.
"""

SCORE = "score"
"""Output of TensorRT engines, (batch,) float32: log-probability of `next_token`.

It is not finite where the logits of the row are not.
"""

TOP_SCORES = "top_scores"
"""Output in place of the logits, (batch, k) float32: k largest logits of each row, falling."""

TOP_TOKENS = "top_tokens"
"""Output beside `top_scores`, (batch, k) int64: tokens that these logits belong to."""

HIDDEN = "hidden"
"""Output beside approximate logits, (batch, width) float32: rows that are projected to logits."""

ERROR_BOUND = "margin"
"""Output beside approximate logits, (batch,) float32: error bound of the logits of each row."""

CANDIDATES = "candidates"
"""Refine input, (candidates,) int64: tokens to compute exact logits of; also its dimension."""

NATIVE_OPSET = 24
"""First ONNX opset with the operators Attention and TensorScatter as the graphs use them.

In graphs of an older opset, attention is products and Softmax, and ScatterElements updates caches.
"""

BATCH_DIM = "batch"
"""Dimension: number of rows, one for each sequence."""

INPUTS_DIM = "inputs"
"""Dimension of a beam step: number of inputs, the first one of the memory tensors."""

BEAMS_DIM = "beams"
"""Dimension of values inside a beam step: number of beams of each input, batch / inputs."""

LENGTH_DIM = "length"
"""Dimension: number of tokens that each row of prefill reads."""

MEMORY_DIM = "memory"
"""Dimension: number of positions in the memory of an input."""

CAPACITY_DIM = "capacity"
"""Dimension: number of tokens that a cache has room for."""

_NEXT = "_next"
_CROSS = "cross_"
_RECURRENT = "recurrent_"


class Head(str, Enum):
    """Output of the decoder graphs besides the caches: logits, likeliest token, or k likeliest."""

    LOGITS = "logits"
    ARGMAX = "argmax"
    TOPK = "topk"


class GraphRole(str, Enum):
    """Role of a graph in its variant."""

    ENCODER = "encoder"
    PREFILL = "prefill"
    STEP = "step"
    REFINE = "refine"
    BEAM_STEP = "beam_step"


def next_cache(name: str) -> str:
    """Returns the output name of the cache whose input name is `name`."""
    return name + _NEXT


def is_next_cache(name: str) -> bool:
    """Returns whether an output is an updated cache, by its name."""
    return name.endswith(_NEXT)


def cache_of(name: str) -> str:
    """Returns the input name of the cache whose output name is `name`."""
    return name.removesuffix(_NEXT)


def is_memory(name: str) -> bool:
    """Returns whether a tensor is memory, by its name.

    A step may return memory as `cross_..._next`, like a cache; its content is the same as before.
    """
    return name.startswith(_CROSS)


def cross_name(kind: str, index: int) -> str:
    """Returns the name of a memory tensor; kind is `key`, `value`, `mask` or `state`."""
    return f"{_CROSS}{kind}_{index}"


def head_name(index: int) -> str:
    """Returns the name of the output (batch, width) of a further head; head 0 is the logits."""
    return f"head_{index}"


def recurrent_name(index: int) -> str:
    """Returns the name of a recurrent state, which every step replaces as a whole."""
    return f"{_RECURRENT}{index}"


def is_recurrent(name: str) -> bool:
    """Returns whether a tensor is a recurrent state, by its name; a state needs two buffers."""
    return name.startswith(_RECURRENT)


def self_name(kind: str, index: int) -> str:
    """Returns the name of a cache; kind is `key`, `value` or `state`."""
    return f"self_{kind}_{index}"
