"""What an export is asked for: a model, an example of its input, and what the bundle says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from numpy.typing import NDArray
from torch import Tensor, nn

from hybrid_deploy.bundle.input_specs import Preprocess
from hybrid_deploy.bundle.manifest import GenerationDefaults, Tokenizer, Vocabulary
from hybrid_deploy.contract import Head
from hybrid_deploy.errors import UsageError
from hybrid_deploy.export.model.dynamic_axes import (
    DynamicAxes,
    DynamicAxis,
)
from hybrid_deploy.export.model.interface import Inputs

OPSET = 24
OPSETS = (24, 21, 18)
TOP_K = 8
"""How many tokens the `topk` head returns, or all if the vocabulary is smaller."""

Arrays: TypeAlias = "Tensor | Sequence[Tensor | NDArray[Any]] | Mapping[str, Tensor | NDArray[Any]]"
"""Encoder inputs: one, several in the order of `encode`, or by name."""

SimpleAxes = Mapping[str, Mapping[int, "tuple[str, int, int] | DynamicAxis"]]
"""For each encoder input its varying axes, each as (name, smallest, largest) or a DynamicAxis."""


@dataclass(frozen=True)
class GraphForm:
    """What the graphs look like.

    Attributes:
        opset: version of the ONNX operator set: 24, or 21 and 18 for older runtimes.
        head: what prefill and step return besides the caches.
        batch: the one batch size that the graphs take; None takes any.
    """

    opset: int = OPSET
    head: Head = Head.LOGITS
    batch: int | None = None

    def __post_init__(self) -> None:
        if self.opset not in OPSETS:
            known = ", ".join(map(str, OPSETS))
            raise UsageError(f"opset {self.opset} is not supported; choose one of: {known}")
        if self.batch is not None and self.batch < 1:
            raise UsageError(f"a batch of {self.batch} is not possible; give 1 or more")


@dataclass(frozen=True)
class InputOptions:
    """How the encoder inputs are made, and how far their sizes vary.

    Attributes:
        preprocess: how a file becomes the encoder's input; None takes arrays as they are.
        dynamic: for each encoder input, its varying axes besides the batch.
        max_batch: largest batch that engines are built for.
    """

    preprocess: Preprocess | None = None
    dynamic: SimpleAxes = field(default_factory=dict)
    max_batch: int = 8


@dataclass(frozen=True)
class ModelSpec:
    """What a bundle says of its model besides the graphs.

    Attributes:
        name: what the model is called.
        generation: how decoding starts and ends; `max_length` becomes the caches' capacity.
        preprocess: how a file becomes the encoder's input.
        vocabulary: what the tokens mean, if they are text.
        dynamic: for each encoder input, its varying axes besides the batch.
        max_batch: largest batch that engines are built for.
        files: more files of the bundle (name to content), a tokenizer for one.
    """

    name: str
    generation: GenerationDefaults
    preprocess: Preprocess
    vocabulary: Vocabulary | Tokenizer | None = None
    dynamic: DynamicAxes = field(default_factory=dict)
    max_batch: int = 8
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class ExportJob:
    """Everything that an export needs.

    Attributes:
        model: has `encode(*inputs) -> memory` (batch first) and the full-sequence
            `decode(tokens, *memory) -> logits`; in eval mode.
        example: encoder inputs by name, in the order of `encode`; any batch size.
        spec: what the bundle says of the model.
        checks: batches of encoder inputs that the model and the graphs both decode.
        golden: files (name to content) that go into the bundle with what the model makes of them.
        form: what the graphs look like.
    """

    model: nn.Module
    example: Mapping[str, Tensor]
    spec: ModelSpec
    checks: Sequence[Inputs] = ()
    golden: Mapping[str, bytes] = field(default_factory=dict)
    form: GraphForm = GraphForm()
