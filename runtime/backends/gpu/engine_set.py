"""The engines of one variant, checked against the graph contract."""

from __future__ import annotations

from dataclasses import dataclass

from hybrid_deploy.contract import (
    LAST,
    LOGITS,
    NEXT_POSITION,
    NEXT_TOKEN,
    POSITION,
    SCORE,
    TOKEN,
    TOKENS,
)
from hybrid_deploy.errors import BackendError
from hybrid_deploy.runtime.backends.gpu.engine import BYTES, Engine, EngineContext
from hybrid_deploy.runtime.backends.gpu.kv_caches import cache_names, check_caches

_FROM_HOST = {TOKEN, TOKENS, POSITION, LAST}
_LOOP_OUTPUTS = {NEXT_TOKEN, NEXT_POSITION, SCORE}
_DTYPES = {NEXT_TOKEN: "int64", NEXT_POSITION: "int64", SCORE: "float32", LOGITS: "float32"}


@dataclass(frozen=True)
class EngineSet:
    """The engines of a variant, and the contexts that all batches share.

    The step engine has no shared context: each `Workspace` makes one, as a CUDA graph keeps the
    addresses of the context that it was recorded from.

    Attributes:
        encoder: engine of the encoder graph.
        step: engine of the step graph.
        prefill: engine of the prefill graph; None if the variant has none.
        encoder_context: the context of the encoder engine.
        prefill_context: the context of the prefill engine; None if there is none.
        capacity: number of token positions in a cache.
    """

    encoder: Engine
    step: Engine
    prefill: Engine | None
    encoder_context: EngineContext
    prefill_context: EngineContext | None
    capacity: int

    def close(self) -> None:
        """Frees the buffers of the shared contexts."""
        self.encoder_context.close()
        if self.prefill_context is not None:
            self.prefill_context.close()


def load_engine_set(
    encoder: Engine, step: Engine, prefill: Engine | None, capacity: int
) -> EngineSet:
    """Checks that engines fit together, and makes their shared contexts.

    Raises:
        BackendError: the engines do not fit together, or lack an output that the loop on the
            device needs.
    """
    check_caches(step, prefill)
    if prefill is not None and (additional := set(prefill.outputs) - set(step.outputs)):
        raise BackendError(f"only the prefill engine returns {', '.join(sorted(additional))}")
    for name, engine in (("step", step), ("prefill", prefill)):
        if engine is not None:
            _check_decoder(name, engine, encoder, set(cache_names(step)))
    encoder_context = encoder.context()
    prefill_context = None if prefill is None else prefill.context()
    return EngineSet(encoder, step, prefill, encoder_context, prefill_context, capacity)


def _check_decoder(graph: str, engine: Engine, encoder: Engine, caches: set[str]) -> None:
    unknown = set(engine.inputs) - set(encoder.outputs) - caches - _FROM_HOST
    if unknown:
        raise BackendError(
            f"the {graph} engine takes {', '.join(sorted(unknown))}, which the encoder engine does "
            "not return; build both again: hybrid-deploy build BUNDLE --target local"
        )
    required = {LOGITS} if TOKENS in engine.inputs else {LOGITS, *_LOOP_OUTPUTS}
    if POSITION not in engine.inputs:
        required -= {NEXT_POSITION}
    if absent := required - set(engine.outputs):
        raise BackendError(
            f"the {graph} engine does not return {', '.join(sorted(absent))}; build it again with "
            "this version: hybrid-deploy build BUNDLE --target local"
        )
    for name, info in {**engine.inputs, **engine.outputs}.items():
        expected = _DTYPES.get(name, info.dtype)
        if info.dtype not in BYTES or info.dtype != expected:
            raise BackendError(
                f"the {graph} engine has {name} in {info.dtype}, expected {expected}"
            )
