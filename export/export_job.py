"""The request for an export: a model, an example of its inputs, and its description."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from numpy.typing import NDArray
from torch import Tensor, nn

from hybrid_deploy.bundle.input_specs import Preprocess
from hybrid_deploy.bundle.manifest import GenerationDefaults, Tokenizer, Vocabulary
from hybrid_deploy.bundle.prompt_template import PromptTemplate
from hybrid_deploy.bundle.speech.speech_tokens import SpeechTokens
from hybrid_deploy.contract import Head
from hybrid_deploy.errors import UsageError
from hybrid_deploy.export.model.dynamic_axes import (
    DynamicAxes,
    DynamicAxis,
)
from hybrid_deploy.export.model.interface import Inputs

OPSET = 24
OPSETS = (24, 21, 18)
LARGEST_BATCH = 1024
"""Largest fixed batch: the parity gate runs the model with it."""
TOP_K = 8
"""Number of tokens that the `topk` head returns; a smaller vocabulary is returned whole."""

Arrays: TypeAlias = "Tensor | Sequence[Tensor | NDArray[Any]] | Mapping[str, Tensor | NDArray[Any]]"
"""Encoder inputs: one tensor, several in the order of `encode`'s parameters, or by name."""

SimpleAxis: TypeAlias = "tuple[str, int, int] | tuple[str, int, int, int] | DynamicAxis"
"""(name, smallest size, largest size), with the number that sizes are multiples of if there is one;
or a DynamicAxis."""
SimpleAxes = Mapping[str, Mapping[int, SimpleAxis]]
"""By encoder input and axis."""


@dataclass(frozen=True)
class GraphForm:
    """The form of the exported graphs.

    Attributes:
        opset: version of the ONNX operator set: 24, or 21 and 18 for older runtimes.
        head: output of prefill and step besides the caches: logits, argmax or topk.
        batch: the only batch size that the graphs accept; None accepts every size.

    Raises:
        UsageError: the opset is not supported, or the batch size is below 1 or above
            `LARGEST_BATCH`.
    """

    opset: int = OPSET
    head: Head = Head.LOGITS
    batch: int | None = None

    def __post_init__(self) -> None:
        if self.opset not in OPSETS:
            supported = ", ".join(map(str, OPSETS))
            raise UsageError(f"opset {self.opset} is not supported; choose one of: {supported}")
        if self.batch is not None and self.batch < 1:
            raise UsageError(f"a batch of {self.batch} is not possible; give 1 or more")
        if self.batch is not None and self.batch > LARGEST_BATCH:
            raise UsageError(
                f"a fixed batch of {self.batch} is above {LARGEST_BATCH}: the export runs the "
                "model with it; give a smaller one, or none, which leaves the batch variable"
            )


@dataclass(frozen=True)
class InputOptions:
    """The preprocessing of the encoder inputs, and the range of their sizes.

    Attributes:
        preprocess: steps that turn a file into the encoder's input; None reads arrays unchanged.
        dynamic: varying axes besides the batch, by encoder input.
        max_batch: largest batch size that engines are built for.
    """

    preprocess: Preprocess | None = None
    dynamic: SimpleAxes = field(default_factory=dict)
    max_batch: int = 8


@dataclass(frozen=True)
class ModelSpec:
    """The description of a model that the bundle stores beside the graphs.

    Attributes:
        name: name of the model.
        generation: start tokens, end tokens and the other defaults of decoding; its `max_length`
            becomes the capacity of the caches in tokens.
        preprocess: steps that turn a file into the encoder's input.
        vocabulary: text of each token, or a tokenizer; None if the tokens are no text.
        dynamic: varying axes besides the batch, by encoder input.
        max_batch: largest batch size that engines are built for.
        files: additional files of the bundle, by name; a tokenizer, for example.
        prompt: text around the words that the decoder continues; needs a tokenizer.
        speech: tokens for language, task and timestamps of a speech model like Whisper.
    """

    name: str
    generation: GenerationDefaults
    preprocess: Preprocess
    vocabulary: Vocabulary | Tokenizer | None = None
    dynamic: DynamicAxes = field(default_factory=dict)
    max_batch: int = 8
    files: Mapping[str, bytes] = field(default_factory=dict)
    prompt: PromptTemplate | None = None
    speech: SpeechTokens | None = None


@dataclass(frozen=True)
class ExportJob:
    """Everything that an export needs.

    Attributes:
        model: module in eval mode with `encode(*inputs) -> memory` (batch first) and the
            full-sequence `decode(tokens, *memory) -> logits`; or with `initial_state` and `step` in
            place of `decode`.
        example: encoder inputs by name, in the order of `encode`'s parameters; any batch size.
        spec: description of the model for the bundle.
        checks: batches of encoder inputs that the parity gate decodes with model and graphs.
        golden: contents of sample files, by name; the bundle stores each with the tokens that
            the model decodes from it. If there are none, it stores the example's first row.
        form: form of the exported graphs.
    """

    model: nn.Module
    example: Mapping[str, Tensor]
    spec: ModelSpec
    checks: Sequence[Inputs] = ()
    golden: Mapping[str, bytes] = field(default_factory=dict)
    form: GraphForm = GraphForm()
