"""The decoders of the zoo as cases; all encoders read features (batch, size, FEATURES)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from tests.models.zoo.captioner import FEATURES, SinusoidalPositions
from tests.models.zoo.case import GAIN, Case, build, random_floats
from tests.models.zoo.handwritten_decoders import (
    GatedBlock,
    HandWrittenDecoder,
    MeanPooledMemory,
    ParallelBlock,
    TwoHeads,
    WrittenOutCrossAttention,
)
from tests.models.zoo.positional_attentions import (
    Alibi,
    AlibiFused,
    MusicTransformer,
    RelativeBias,
    RopeCached,
    RopeComplex,
    RopeHalf,
    RopeInterleaved,
    TransformerXl,
)
from tests.models.zoo.prefix_decoders import PrefixDecoder
from tests.models.zoo.self_attentions import (
    Einsum,
    FoldedHeads,
    Functional,
    Fused,
    GroupedEnableGqa,
    GroupedRepeatInterleave,
    GroupedRepeatKv,
    MaskedFill,
    MultiQuery,
    QueryKeyNorm,
    SlidingWindow,
    Unbound,
)
from tests.models.zoo.torch_decoders import (
    LengthFirst,
    PaddingFromTokens,
    SwiGLUDecoder,
    TiedAndScaled,
    TorchDecoder,
    WholeTransformer,
    WithWeights,
)

_ANY_SIZE = {"features": ((1, "size", 2, 40),)}


def _features(batch: int, size: int) -> dict[str, Tensor]:
    return {"features": random_floats(batch, size, FEATURES)}


def _case(
    family: str,
    name: str,
    make: Callable[[], nn.Module],
    *,
    fixed: bool = False,
    fast: bool = False,
    prompts: tuple[int, ...] = (1, 3),
    gain: float = GAIN,
) -> Case:
    return Case(
        name=name,
        family=family,
        make=make,
        inputs=_features,
        sizes=(9,) if fixed else (9, 14),
        dynamic={} if fixed else _ANY_SIZE,
        prompts=prompts,
        fast=fast,
        gain=gain,
    )


def _handwritten(name: str, attention: Callable[[], nn.Module], *, fast: bool = False) -> Case:
    return _case("handwritten", name, build(HandWrittenDecoder, attention), fast=fast)


def _without_positions(
    name: str, attention: Callable[[], nn.Module], *, fast: bool = False
) -> Case:
    """Returns a case whose attention encodes the positions, so no positions are added to tokens."""
    make = build(HandWrittenDecoder, attention, positions=nn.Identity)
    return _case("handwritten", name, make, fast=fast)


TORCH = (
    _case("torch", "post-norm", TorchDecoder),
    _case("torch", "post-norm-gelu-hint", build(TorchDecoder, activation="gelu", hint=True)),
    _case("torch", "pre-norm-final-norm", build(TorchDecoder, norm_first=True, final_norm=True)),
    _case("torch", "pre-norm-hint-false", build(TorchDecoder, norm_first=True, hint=False)),
    _case("torch", "length-first", LengthFirst, gain=2.5),
    _case(
        "torch",
        "length-first-pre-norm",
        build(LengthFirst, norm_first=True, activation="gelu"),
        gain=2.5,
    ),
    _case("torch", "padding-from-tokens", PaddingFromTokens),
    _case("torch", "tied-and-scaled", TiedAndScaled),
    _case("torch", "whole-transformer", WholeTransformer, gain=1.0),
    _case("torch", "whole-transformer-pre-norm", build(WholeTransformer, norm_first=True)),
    _case("torch", "swiglu-layers", SwiGLUDecoder),
    _case("torch", "attention-with-weights", WithWeights),
)

HANDWRITTEN = (
    _handwritten("fused", Fused),
    _handwritten("unbound", Unbound),
    _handwritten("masked-fill", MaskedFill),
    _handwritten("einsum", Einsum),
    _handwritten("folded-heads", FoldedHeads),
    _handwritten("functional", Functional),
    _handwritten("sliding-window", SlidingWindow),
    _handwritten("query-key-norm", QueryKeyNorm),
    _handwritten("gqa-enable-gqa", GroupedEnableGqa),
    _handwritten("gqa-repeat-interleave", GroupedRepeatInterleave),
    _handwritten("gqa-repeat-kv", GroupedRepeatKv, fast=True),
    _handwritten("multi-query", MultiQuery),
    _without_positions("rope-interleaved", RopeInterleaved),
    _without_positions("rope-half", RopeHalf),
    _without_positions("rope-cached", RopeCached),
    _without_positions("rope-complex", RopeComplex),
    _without_positions("alibi", Alibi),
    _without_positions("alibi-fused", AlibiFused),
    _without_positions("relative-bias", RelativeBias),
    _without_positions("transformer-xl", TransformerXl),
    _without_positions("music-transformer", MusicTransformer),
    _case(
        "handwritten",
        "parallel-rmsnorm",
        build(HandWrittenDecoder, MaskedFill, block=ParallelBlock, positions=SinusoidalPositions),
    ),
    _case("handwritten", "flamingo-gate", build(HandWrittenDecoder, Fused, block=GatedBlock)),
    _case(
        "handwritten",
        "written-out-cross-attention",
        build(HandWrittenDecoder, Einsum, cross=WrittenOutCrossAttention),
    ),
    _case("handwritten", "pooled-memory", MeanPooledMemory),
    _case("handwritten", "two-heads", TwoHeads),
    _case("handwritten", "question-as-prompt", HandWrittenDecoder, prompts=(2, 7)),
)

PREFIX = (
    _case("prefix", "prefix-causal-fixed", PrefixDecoder, fixed=True),
    _case("prefix", "prefix-causal", PrefixDecoder),
    _case(
        "prefix", "prefix-seen-whole-fixed", build(PrefixDecoder, bidirectional=True), fixed=True
    ),
    _case("prefix", "prefix-seen-whole", build(PrefixDecoder, bidirectional=True)),
)
