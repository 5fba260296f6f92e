"""The rules for timestamps compared with the processor of transformers, on random logits."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from hybrid_deploy.runtime.generation.logits_processors import TimestampRules, stretch_of

END, NO_TIMESTAMPS, FIRST, VOCABULARY = 12, 15, 16, 40
PROMPT = [13, 14]

CONTINUATIONS = {
    "nothing": [],
    "a timestamp": [FIRST],
    "text": [FIRST, 3],
    "text and a timestamp": [FIRST, 3, FIRST + 5],
    "a pair": [FIRST, 3, FIRST + 5, FIRST + 5],
    "text after a pair": [FIRST, 3, FIRST + 5, FIRST + 6, 4],
    "text and another timestamp": [FIRST, 3, FIRST + 5, FIRST + 6, 4, FIRST + 9],
    "text alone": [3, 4],
    "the last timestamp": [FIRST, 3, VOCABULARY - 1],
}


@pytest.mark.parametrize("max_initial", [None, 0, 4])
@pytest.mark.parametrize("case", CONTINUATIONS)
def test_the_rules_are_those_of_transformers(case: str, max_initial: int | None) -> None:
    transformers = pytest.importorskip("transformers")
    import torch

    config = SimpleNamespace(
        no_timestamps_token_id=NO_TIMESTAMPS,
        eos_token_id=END,
        bos_token_id=END,
        max_initial_timestamp_index=max_initial,
    )
    reference = transformers.generation.WhisperTimeStampLogitsProcessor(config, len(PROMPT))
    rules = TimestampRules(FIRST, NO_TIMESTAMPS, END, max_initial)
    tokens = np.array([*PROMPT, *CONTINUATIONS[case]], np.int64)
    random, forced_times = np.random.default_rng(5), 0
    for spread in (0.2, 1.0, 4.0):
        for _ in range(20):
            logits = (spread * random.standard_normal(VOCABULARY)).astype(np.float32)
            expected = reference(torch.from_numpy(tokens)[None], torch.from_numpy(logits)[None])
            actual = logits.copy()
            rules(actual, tokens, len(PROMPT))
            np.testing.assert_array_equal(actual, expected[0].numpy())
            forced_times += bool(np.isinf(actual[:FIRST]).all())
    if case == "text":
        assert 0 < forced_times < 60, "the sum of all timestamps must decide"


def test_the_rules_need_exact_logits() -> None:
    assert stretch_of(TimestampRules(FIRST, NO_TIMESTAMPS, END)) is None
