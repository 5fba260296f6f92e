"""All tiny models of transformers, their cases and their adapters."""

from __future__ import annotations

from transformers import PreTrainedModel

from hybrid_deploy.export.huggingface.architectures.base import HuggingFaceModel
from tests.models.zoo.transformers.images import IMAGES
from tests.models.zoo.transformers.speech import SPEECH
from tests.models.zoo.transformers.texts import TEXTS

MODELS = {**IMAGES, **SPEECH, **TEXTS}
"""Tiny models by name."""

CASES = {name: tiny.case(name) for name, tiny in MODELS.items()}
HUGGINGFACE = tuple(CASES.values())


def model_and_adapter(name: str) -> tuple[PreTrainedModel, HuggingFaceModel]:
    """Returns a model with the weights of its case, and its adapter, which shares them."""
    return MODELS[name].model_and_adapter()
