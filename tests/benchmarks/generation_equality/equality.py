"""Compares our generation with generate() of transformers on the same model, token by token."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import transformers as hf
from torch import Tensor
from transformers import PreTrainedModel

from hybrid_deploy.bundle.manifest import GenerationDefaults
from hybrid_deploy.runtime.generation.beam_search import BeamSearch
from hybrid_deploy.runtime.generation.logits_processors import processors_of
from hybrid_deploy.runtime.generation.sequences import Limits, SequenceResult
from hybrid_deploy.runtime.generation.settings import Beams, DecodingSettings
from hybrid_deploy.runtime.generation.token_loop import TokenLoop
from tests.models.zoo.case import random_tokens
from tests.models.zoo.reference import Start
from tests.models.zoo.transformers.models import CASES

LENGTH, BATCH, BEAMS, N_BEST, PAD = 16, 3, 4, 2, 0
SCORE_TOLERANCE = 1e-4
"""Allowed difference of a sequence score, as a share of 1 plus its magnitude.

Both sides add float32 log-probabilities in another order. A log-probability has the absolute error
of the logits, about 7 in the zoo, even where it is nearly 0: the added 1 covers that case.
"""

SEARCH_OPTIONS = tuple(
    {"num_beams": BEAMS, "early_stopping": early, "length_penalty": penalty}
    for early in (False, True, "never")
    for penalty in (1.0, 2.0, 0.0, -1.0)
)
PROCESSOR_OPTIONS: dict[str, Any] = {
    "repetition_penalty": 1.3,
    "no_repeat_ngram_size": 2,
    "min_length": 6,
    "suppress_tokens": [7, 11],
    "begin_suppress_tokens": [12],
    "bad_words_ids": [[5], [9]],
}
FORCED_OPTIONS: dict[str, Any] = {
    **PROCESSOR_OPTIONS,
    "forced_bos_token_id": 20,
    "forced_eos_token_id": 21,
}
GREEDY_OPTIONS: tuple[dict[str, Any], ...] = ({}, PROCESSOR_OPTIONS, FORCED_OPTIONS)
BEAM_OPTIONS: tuple[dict[str, Any], ...] = (
    *SEARCH_OPTIONS,
    SEARCH_OPTIONS[0] | PROCESSOR_OPTIONS,
    SEARCH_OPTIONS[1] | FORCED_OPTIONS,
)


@dataclasses.dataclass
class Equality:
    """Result of a comparison.

    Attributes:
        sequences: number of compared sequences.
        same: number of sequences with equal tokens and an equal score.
        difference: description of the first sequence that differs; empty if none does.
    """

    sequences: int = 0
    same: int = 0
    difference: str = ""

    def record(
        self, label: str, expected: list[int], actual: SequenceResult, score: float | None
    ) -> None:
        """Counts one sequence; `score` is the one by which transformers ranks it."""
        self.sequences += 1
        tolerance = 0.0 if score is None else SCORE_TOLERANCE * (1 - score)
        score_differs = score is not None and abs((actual.sequence_score or 0) - score) > tolerance
        if list(actual.tokens) == expected and not score_differs:
            self.same += 1
        elif not self.difference:
            self.difference = (
                f"{label}: {list(actual.tokens)} ({actual.sequence_score}), "
                f"not {expected} ({score})"
            )


def compare(
    name: str,
    model: PreTrainedModel,
    start: Start,
    options: Sequence[Mapping[str, Any]],
    prompt: int = 0,
) -> Equality:
    """Generates with both implementations and compares the sequences token by token.

    Args:
        name: name of the model in the zoo.
        model: the model of transformers.
        start: function that starts to decode a batch of encoder inputs, at most LENGTH tokens.
        options: options of generate(), one mapping per run.
        prompt: number of prompt tokens behind the start token.
    """
    model.generation_config.eos_token_id = model.generation_config.forced_eos_token_id = None
    inputs = CASES[name].inputs(BATCH, CASES[name].sizes[0])
    unlimited = generate(model, inputs, num_beams=BEAMS)["sequences"]
    start_token = int(unlimited[0, 0])
    end = 2 if is_blip(model) else ragged_end(unlimited[:, 1:].tolist())
    prompts = [[start_token, *row] for row in random_tokens(90, BATCH, prompt).tolist()]
    equality = Equality()
    for run_options in options:
        generated = generate(
            model, inputs, prompts if prompt else None, eos_token_id=end, **run_options
        )
        decoded = decode(start, inputs, prompts, end, run_options)
        for label, expected, actual, score in _pairs(generated, decoded, len(prompts[0]), end):
            equality.record(f"{dict(run_options)} {label}", expected, actual, score)
    return equality


def generate(
    model: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    prompts: list[list[int]] | None = None,
    **options: Any,
) -> Any:
    """Calls generate(); for Whisper the general one, its own needs a checkpoint with languages."""
    if options.get("num_beams", 1) > 1 and "eos_token_id" in options:
        options["num_return_sequences"] = N_BEST
    if prompts is not None:
        options["decoder_input_ids"] = torch.tensor(prompts)
    if is_blip(model):
        options.pop("eos_token_id", None)  # its generate() passes its own
    settings = {"do_sample": False, "max_length": LENGTH, "pad_token_id": PAD} | options
    settings |= {"return_dict_in_generate": True, "output_scores": True}
    if isinstance(model, hf.WhisperForConditionalGeneration):
        return hf.GenerationMixin.generate(model, **inputs, **settings)
    if is_blip(model):
        settings.pop("pad_token_id")
    return model.generate(**inputs, **settings)


def is_blip(model: PreTrainedModel) -> bool:
    """Returns whether the model is BLIP, whose generate() sets its own end token."""
    return isinstance(model, hf.BlipForConditionalGeneration)


def ragged_end(rows: list[list[int]]) -> int:
    """Returns the token that ends the sequences at the most different positions."""

    def spread(token: int) -> tuple[int, int]:
        positions = [row.index(token) for row in rows if token in row]
        return len({*positions}), len(positions)

    return max(sorted({token for row in rows for token in row}), key=spread)


def decode(
    start: Start,
    inputs: Mapping[str, Tensor],
    prompts: list[list[int]],
    end: int,
    options: Mapping[str, Any],
) -> tuple[SequenceResult, ...]:
    """Decodes with our generation under the options of generate()."""
    limits = Limits((end,), PAD, LENGTH, LENGTH)
    defaults = _defaults(end, options)
    beams = Beams(
        count=options.get("num_beams", 1),
        n_best=N_BEST,
        length_penalty=options.get("length_penalty", 1.0),
        early_stopping=options.get("early_stopping", False),
    )
    decoding = start({name: value.numpy() for name, value in inputs.items()})
    settings = DecodingSettings(
        limits, processors_of(defaults, limits), beams=beams if beams.count > 1 else None
    )
    loop = TokenLoop if settings.beams is None else BeamSearch
    return loop(decoding, prompts, settings).run().sequences


def _defaults(end: int, options: Mapping[str, Any]) -> GenerationDefaults:
    """Returns the options of generate() as our generation defaults."""
    forced = options.get("forced_bos_token_id")
    # generate() does not forbid the end token as a word
    words = (token for (token,) in options.get("bad_words_ids", ()) if token != end)
    return GenerationDefaults(
        start_tokens=(),
        end_tokens=(end,),
        pad_token=PAD,
        max_length=LENGTH,
        min_length=options.get("min_length", 0),
        suppressed=(*options.get("suppress_tokens", ()), *words),
        begin_suppressed=tuple(options.get("begin_suppress_tokens", ())),
        forced=() if forced is None else ((1, forced),),
        forced_end=options.get("forced_eos_token_id"),
        repetition_penalty=options.get("repetition_penalty", 1.0),
        no_repeat_ngram=options.get("no_repeat_ngram_size", 0),
    )


def _pairs(
    generated: Any, decoded: Sequence[SequenceResult], prompt: int, end: int
) -> Iterator[tuple[str, list[int], SequenceResult, float | None]]:
    """Yields label, expected tokens, our sequence and expected score of each pair, best first."""
    rows = [without_padding(row[prompt:], end) for row in generated["sequences"].tolist()]
    scores = generated.get("sequences_scores")
    per_input = len(rows) // len(decoded)
    for index, best in enumerate(decoded):
        for rank, actual in enumerate((best, *best.alternatives)[:per_input]):
            flat = index * per_input + rank
            score = None if scores is None else float(scores[flat])
            yield f"[{index}.{rank}]", rows[flat], actual, score


def without_padding(row: list[int], end: int) -> list[int]:
    """Returns a row without the padding behind its end token."""
    return row[: row.index(end) + 1] if end in row else row
