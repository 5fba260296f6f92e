"""Processors compared with the logits processors of transformers, on random logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hybrid_deploy.bundle.manifest import GenerationDefaults
from hybrid_deploy.errors import BackendError
from hybrid_deploy.runtime.backends.protocol import FloatArray, IntArray
from hybrid_deploy.runtime.generation.logits_processors import processors_of
from hybrid_deploy.runtime.generation.sequences import Limits
from hybrid_deploy.runtime.generation.token_loop import decode_greedily

VOCABULARY, MAX_LENGTH = 23, 12
NEUTRAL = GenerationDefaults((1,), (2, 3), 0, MAX_LENGTH)

SETTINGS: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 1.7},
    "repetition_reward": {"repetition_penalty": 0.6},
    "no_repeat_ngram_1": {"no_repeat_ngram_size": 1},
    "no_repeat_ngram_2": {"no_repeat_ngram_size": 2},
    "no_repeat_ngram_3": {"no_repeat_ngram_size": 3},
    "min_length": {"min_length": 6},
    "forced_bos": {"forced_bos_token_id": 9},
    "forced_eos": {"forced_eos_token_id": 3},
    "suppress": {"suppress_tokens": [4, 5, 17, 99]},
    "begin_suppress": {"begin_suppress_tokens": [2, 6]},
    "begin_suppress_after_forced": {"begin_suppress_tokens": [2, 6], "forced_bos_token_id": 9},
    "bad_words": {"bad_words_ids": [[4], [7]]},
    "everything": {
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 2,
        "min_length": 6,
        "forced_bos_token_id": 9,
        "forced_eos_token_id": 2,
        "suppress_tokens": [4, 5],
        "begin_suppress_tokens": [6],
    },
}


def defaults_from(settings: dict[str, Any]) -> GenerationDefaults:
    """Returns our generation defaults for generation settings of transformers."""
    forced = settings.get("forced_bos_token_id")
    return GenerationDefaults(
        start_tokens=(1,),
        end_tokens=(2, 3),
        pad_token=0,
        max_length=MAX_LENGTH,
        min_length=settings.get("min_length", 0),
        suppressed=(
            *settings.get("suppress_tokens", ()),
            *(token for (token,) in settings.get("bad_words_ids", ())),
        ),
        begin_suppressed=tuple(settings.get("begin_suppress_tokens", ())),
        forced=() if forced is None else ((1, forced),),
        forced_end=settings.get("forced_eos_token_id"),
        repetition_penalty=settings.get("repetition_penalty", 1.0),
        no_repeat_ngram=settings.get("no_repeat_ngram_size", 0),
    )


def transformers_processors(settings: dict[str, Any], prompt: int) -> Any:
    """Returns the processors of generate(), in its order."""
    transformers = pytest.importorskip("transformers")
    import torch

    config = transformers.GenerationConfig(
        **settings, eos_token_id=[2, 3], max_length=MAX_LENGTH, num_beams=1
    )
    config._eos_token_tensor = torch.tensor([2, 3])

    class Model(transformers.generation.GenerationMixin):  # type: ignore[misc, name-defined]
        config = transformers.BartConfig(vocab_size=VOCABULARY)

    return Model()._get_logits_processor(config, input_ids_seq_length=prompt, device="cpu")


@pytest.mark.parametrize("prompt", [1, 3])
@pytest.mark.parametrize("name", SETTINGS)
def test_processors_do_the_same_as_those_of_transformers(name: str, prompt: int) -> None:
    import torch

    settings = SETTINGS[name]
    reference = transformers_processors(settings, prompt)
    processors = processors_of(defaults_from(settings))
    assert len(reference) > 0
    rng, changed = np.random.default_rng(7), 0
    for length in range(prompt, MAX_LENGTH):
        for _ in range(20):
            tokens = rng.integers(0, 8, length)
            logits = rng.standard_normal(VOCABULARY).astype(np.float32)
            expected = reference(
                torch.from_numpy(tokens)[None], torch.from_numpy(logits.copy())[None]
            )
            actual = logits.copy()
            for processor in processors:
                processor(actual, tokens, prompt)
            np.testing.assert_allclose(actual, expected[0].numpy(), rtol=1e-6)
            changed += bool((actual != logits).any())
    never_changes = name == "forced_bos" and prompt > 1
    assert never_changes or changed, "the processors must change some logits"


def test_neutral_defaults_have_no_processors() -> None:
    assert processors_of(NEUTRAL) == ()


class ScriptedDecoding:
    """A decoding with random logits that depend only on the token and its position."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        rng = np.random.default_rng(3)
        self.table = rng.standard_normal((MAX_LENGTH + 1, VOCABULARY, VOCABULARY))

    def prefill(self, tokens: IntArray, position: IntArray, last: IntArray) -> FloatArray:
        return self.step(tokens[np.arange(self.batch), last], position + last)

    def step(self, token: IntArray, position: IntArray) -> FloatArray:
        logits = self.table[position, token].astype(np.float32)
        logits.setflags(write=False)
        return logits


def limits(generation: GenerationDefaults) -> Limits:
    return Limits(generation.end_tokens, generation.pad_token, MAX_LENGTH, MAX_LENGTH)


def greedy(generation: GenerationDefaults, prompts: list[list[int]]) -> list[tuple[int, ...]]:
    decoding = ScriptedDecoding(len(prompts))
    result = decode_greedily(decoding, prompts, limits(generation), processors_of(generation))
    return [row.tokens for row in result.sequences]


def test_every_row_is_processed_with_its_own_prompt() -> None:
    generation = defaults_from(SETTINGS["everything"])
    prompts = [[1], [1, 9, 8], [1, 8]]
    together = greedy(generation, prompts)
    assert together == [greedy(generation, [prompt])[0] for prompt in prompts]
    assert together[0][0] == 9, "forced at position 1"
    assert together[1][0] != 9, "position 1 is in its prompt"
    for prompt, tokens in zip(prompts, together, strict=True):
        assert not {4, 5} & set(tokens)
        assert all(len(prompt) + i >= 6 for i, t in enumerate(tokens) if t in (2, 3))
        pairs = list(zip([*prompt, *tokens], [*prompt, *tokens][1:], strict=False))
        assert len(pairs) == len(set(pairs))


def test_forced_end_is_the_last_token_with_probability_1() -> None:
    generation = GenerationDefaults((1,), (2,), 0, MAX_LENGTH, suppressed=(2,), forced_end=2)
    decoding = ScriptedDecoding(1)
    (row,) = decode_greedily(
        decoding, [[1]], limits(generation), processors_of(generation), scores=True
    ).sequences
    assert row.scores is not None
    assert len(row.tokens) == MAX_LENGTH - 1
    assert (row.tokens[-1], row.scores[-1], row.finish) == (2, 0.0, "end")


def test_processors_that_exclude_all_tokens() -> None:
    generation = GenerationDefaults((1,), (2,), 0, 8, suppressed=tuple(range(VOCABULARY)))
    with pytest.raises(
        BackendError, match="the generation settings allow no token for sequence 0 at step 0"
    ):
        greedy(generation, [[1]])
