"""Models whose encoder reads the prompt: the tokens of generate() for pictures and prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hybrid_deploy.export.exporter import export_model
from hybrid_deploy.runtime.session.session import load_session
from tests.models.zoo.vision_language.prompted import CASES, MODELS, asked, model_and_adapter

ANSWER = 12
SLOW = [pytest.mark.slow]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("instructblip-t5", "paligemma") else SLOW)
        for name in MODELS
    ],
)
def test_tokens_equal_generate(name: str, tmp_path: Path) -> None:
    model, adapter = model_and_adapter(name)
    case, original = CASES[name], model
    export_model(
        adapter, case.inputs(2, 6), tmp_path / "b", max_length=ANSWER + 1, start_tokens=1,
        dynamic={
            name: {axis: (dim, small, large) for axis, dim, small, large in axes}
            for name, axes in case.dynamic.items()
        },
    )  # fmt: skip
    session = load_session(tmp_path / "b")
    answers = set()
    for seed in (1, 2):
        for length in (5, 11):
            inputs = asked(name, 1, length, seed)
            kinds = {"token_type_ids": 0 * inputs["input_ids"]} if "paligemma" in name else {}
            generate: Any = original.generate
            expected = generate(
                **inputs, **kinds, max_new_tokens=ANSWER, do_sample=False, eos_token_id=None,
                num_beams=1,
            )[0, -ANSWER:].tolist()  # fmt: skip
            arrays = {key: value.numpy() for key, value in inputs.items()}
            (result,), _ = session.run_arrays(arrays)
            assert list(result.tokens) == expected
            answers.add(result.tokens)
    assert len(answers) == 4, "every picture and prompt must have an answer of its own"
    if "attention_mask" not in case.inputs(1, 6):
        return  # texts of unlike lengths do not form a batch
    both = asked(name, 2, 11, 1)
    results, _ = session.run_arrays({key: value.numpy() for key, value in both.items()})
    for row, result in enumerate(results):
        kept = both["attention_mask"][row].sum()
        alone = {k: v[row : row + 1] for k, v in both.items()}
        for key, value in alone.items():
            if key.startswith("qformer"):
                alone[key] = value[:, : kept - 4]
            elif value.dim() == 2:
                alone[key] = value[:, :kept]
        (single,), _ = session.run_arrays({key: value.numpy() for key, value in alone.items()})
        assert single.tokens == result.tokens, "padding must not matter"
