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
_OF_THE_LOOP = {NEXT_TOKEN, NEXT_POSITION, SCORE}
_DTYPES = {NEXT_TOKEN: "int64", NEXT_POSITION: "int64", SCORE: "float32", LOGITS: "float32"}


@dataclass(frozen=True)
class EngineSet:
    """The engines of a variant, with the contexts that all batches share.

    Attributes:
        capacity: positions that the caches hold.
    """

    encoder: Engine
    step: Engine
    prefill: Engine | None
    encoder_context: EngineContext
    prefill_context: EngineContext | None
    capacity: int

    def close(self) -> None:
        """Returns the memory of the contexts back."""
        self.encoder_context.close()
        if self.prefill_context is not None:
            self.prefill_context.close()


def load_engine_set(
    encoder: Engine, step: Engine, prefill: Engine | None, capacity: int
) -> EngineSet:
    """Puts engines together.

    Raises:
        BackendError: they do not fit together, or lack what a loop on the device needs.
    """
    check_caches(step, prefill)
    if prefill is not None and (others := set(prefill.outputs) - set(step.outputs)):
        raise BackendError(f"only the prefill engine returns {', '.join(sorted(others))}")
    for name, engine in (("step", step), ("prefill", prefill)):
        if engine is not None:
            _check_decoder(name, engine, encoder, set(cache_names(step)))
    encoder_context = encoder.context()
    prefill_context = None if prefill is None else prefill.context()
    return EngineSet(encoder, step, prefill, encoder_context, prefill_context, capacity)


def _check_decoder(graph: str, engine: Engine, encoder: Engine, caches: set[str]) -> None:
    missing = set(engine.inputs) - set(encoder.outputs) - caches - _FROM_HOST
    if missing:
        raise BackendError(f"the {graph} engine takes {', '.join(sorted(missing))}, from nowhere")
    wanted = {LOGITS} if TOKENS in engine.inputs else {LOGITS, *_OF_THE_LOOP}
    if POSITION not in engine.inputs:
        wanted -= {NEXT_POSITION}
    if absent := wanted - set(engine.outputs):
        raise BackendError(
            f"the {graph} engine does not return {', '.join(sorted(absent))}; build it again with "
            "this version: hybrid-deploy build BUNDLE --target local"
        )
    for name, info in {**engine.inputs, **engine.outputs}.items():
        wanted_dtype = _DTYPES.get(name, info.dtype)
        if info.dtype not in BYTES or info.dtype != wanted_dtype:
            raise BackendError(
                f"the {graph} engine has {name} in {info.dtype}, expected {wanted_dtype}"
            )
