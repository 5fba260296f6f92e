"""Our generation against generate() of transformers: the same tokens from the same model."""

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
from tests.models.zoo.huggingface import CASES
from tests.models.zoo.reference import Start

LENGTH, BATCH, BEAMS, N_BEST, PAD = 16, 3, 4, 2, 0
TOTALS_DIFFER = 1e-4
"""Of a sum of float32 logarithms and 1: both sides round in another order.

A logarithm of a probability is as far off as the logits, which are some 7 in the zoo, even where
it is nearly 0: so 1 is added to what the difference is a share of.
"""

SEARCHES = tuple(
    {"num_beams": BEAMS, "early_stopping": early, "length_penalty": penalty}
    for early in (False, True, "never")
    for penalty in (1.0, 2.0, 0.0, -1.0)
)
PROCESSED: dict[str, Any] = {
    "repetition_penalty": 1.3,
    "no_repeat_ngram_size": 2,
    "min_length": 6,
    "suppress_tokens": [7, 11],
    "begin_suppress_tokens": [12],
    "bad_words_ids": [[5], [9]],
}
FORCED: dict[str, Any] = {**PROCESSED, "forced_bos_token_id": 20, "forced_eos_token_id": 21}
GREEDY: tuple[dict[str, Any], ...] = ({}, PROCESSED, FORCED)
BEAMED: tuple[dict[str, Any], ...] = (*SEARCHES, SEARCHES[0] | PROCESSED, SEARCHES[1] | FORCED)


@dataclasses.dataclass
class Equality:
    """How many sequences were compared, how many were the same, and the first that was not."""

    sequences: int = 0
    same: int = 0
    difference: str = ""

    def note(
        self, what: str, wanted: list[int], given: SequenceResult, total: float | None
    ) -> None:
        """Counts one sequence; `total` is what transformers ranks it by."""
        self.sequences += 1
        far = total is not None and abs((given.sequence_score or 0) - total) > TOTALS_DIFFER * (
            1 - total
        )
        if list(given.tokens) == wanted and not far:
            self.same += 1
        elif not self.difference:
            self.difference = (
                f"{what}: {list(given.tokens)} ({given.sequence_score}), not {wanted} ({total})"
            )


def compare(
    name: str,
    model: PreTrainedModel,
    start: Start,
    options: Sequence[Mapping[str, Any]],
    prompt: int = 0,
) -> Equality:
    """Generates with both sides and compares token by token.

    Args:
        name: of the model in the zoo.
        model: transformers' own.
        start: begins to decode a batch of encoder inputs, in at most LENGTH tokens.
        options: of generate(), for one run each.
        prompt: how many tokens follow the start token before anything is generated.
    """
    model.generation_config.eos_token_id = model.generation_config.forced_eos_token_id = None
    inputs = CASES[name].inputs(BATCH, CASES[name].sizes[0])
    free = generate(model, inputs, num_beams=BEAMS)["sequences"]
    begin = int(free[0, 0])
    end = 2 if is_blip(model) else ragged_end(free[:, 1:].tolist())
    prompts = [[begin, *row] for row in random_tokens(90, BATCH, prompt).tolist()]
    found = Equality()
    for chosen in options:
        theirs = generate(model, inputs, prompts if prompt else None, eos_token_id=end, **chosen)
        ours = decode(start, inputs, prompts, end, chosen)
        for what, wanted, given, total in _pairs(theirs, ours, len(prompts[0]), end):
            found.note(f"{dict(chosen)} {what}", wanted, given, total)
    return found


def generate(
    model: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    prompts: list[list[int]] | None = None,
    **options: Any,
) -> Any:
    """Calls generate(); of Whisper the plain one, its own is for checkpoints with languages."""
    if options.get("num_beams", 1) > 1 and "eos_token_id" in options:
        options["num_return_sequences"] = N_BEST
    if prompts is not None:
        options["decoder_input_ids"] = torch.tensor(prompts)
    if is_blip(model):
        options.pop("eos_token_id", None)  # it gives its own
    settings = {"do_sample": False, "max_length": LENGTH, "pad_token_id": PAD} | options
    settings |= {"return_dict_in_generate": True, "output_scores": True}
    if isinstance(model, hf.WhisperForConditionalGeneration):
        return hf.GenerationMixin.generate(model, **inputs, **settings)
    if is_blip(model):
        settings.pop("pad_token_id")
    return model.generate(**inputs, **settings)


def is_blip(model: PreTrainedModel) -> bool:
    """Returns whether generate() has an end token of its own."""
    return isinstance(model, hf.BlipForConditionalGeneration)


def ragged_end(rows: list[list[int]]) -> int:
    """Chooses an end token that comes in most sequences, and in each at another place."""

    def spread(token: int) -> tuple[int, int]:
        places = [row.index(token) for row in rows if token in row]
        return len({*places}), len(places)

    return max(sorted({token for row in rows for token in row}), key=spread)


def decode(
    start: Start,
    inputs: Mapping[str, Tensor],
    prompts: list[list[int]],
    end: int,
    options: Mapping[str, Any],
) -> tuple[SequenceResult, ...]:
    """Decodes as the options of generate() say."""
    limits = Limits((end,), PAD, LENGTH, LENGTH)
    defaults = _defaults(end, options)
    beams = Beams(
        count=options.get("num_beams", 1),
        n_best=N_BEST,
        length_penalty=options.get("length_penalty", 1.0),
        early_stopping=options.get("early_stopping", False),
    )
    decoding = start({name: value.numpy() for name, value in inputs.items()})
    rules = DecodingSettings(
        limits, processors_of(defaults, limits), beams=beams if beams.count > 1 else None
    )
    search = TokenLoop if rules.beams is None else BeamSearch
    return search(decoding, prompts, rules).run().sequences


def _defaults(end: int, options: Mapping[str, Any]) -> GenerationDefaults:
    """Writes options of generate() as ours."""
    forced = options.get("forced_bos_token_id")
    words = (token for (token,) in options.get("bad_words_ids", ()))
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
    theirs: Any, ours: Sequence[SequenceResult], prompt: int, end: int
) -> Iterator[tuple[str, list[int], SequenceResult, float | None]]:
    """Pairs the sequences of both sides, the next best behind each best."""
    rows = [until(row[prompt:], end) for row in theirs["sequences"].tolist()]
    totals = theirs.get("sequences_scores")
    each = len(rows) // len(ours)
    for index, best in enumerate(ours):
        for place, given in enumerate((best, *best.alternatives)[:each]):
            at = index * each + place
            total = None if totals is None else float(totals[at])
            yield f"[{index}.{place}]", rows[at], given, total


def until(row: list[int], end: int) -> list[int]:
    """Leaves out the padding behind an end token."""
    return row[: row.index(end) + 1] if end in row else row
