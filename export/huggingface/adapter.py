"""Hugging Face encoder-decoder models, exported without an adapter written by the user."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hybrid_deploy.errors import InputError, MissingDependencyError, UnsupportedModelError

try:
    import transformers
    from transformers import PreTrainedModel
except ImportError as error:
    raise MissingDependencyError("transformers", "hf") from error

from hybrid_deploy.export.huggingface.architectures import ADAPTERS, HuggingFaceModel
from hybrid_deploy.export.huggingface.attention import with_plain_attention
from hybrid_deploy.export.huggingface.example_inputs import example_inputs, known_inputs
from hybrid_deploy.export.huggingface.modules import with_token_modules
from hybrid_deploy.export.model.interface import reference_logits, reference_memory
from hybrid_deploy.export.model.substitution import Model, shared_copy
from hybrid_deploy.export.trace.refusal import first_line

_NOISE = 1e-4  # relative to the largest logit: float32 sums in another order
_CHECK_LENGTH = 6
_KNOWN = (
    "VisionEncoderDecoder, Whisper, Speech2Text, Moonshine, BART, mBART, Marian, Pegasus, T5, "
    "Pix2Struct, Florence-2, BLIP captioning"
)


def adapt(model: PreTrainedModel, example: Mapping[str, Tensor] | None = None) -> HuggingFaceModel:
    """Returns a model as the exporter takes it.

    The result works on a copy that shares the model's parameters: the model itself is left as it
    is. Modules that look at all tokens at once are replaced in the copy (huggingface_modules.py),
    the attention and its masks are torch's (huggingface_attention.py), and it is checked on the
    example that the logits are the model's own.

    Args:
        model: an encoder-decoder model with a language head, float32.
        example: encoder inputs by name; made from the config if not given.

    Raises:
        UnsupportedModelError: the class is not supported, or the copy gives other logits.
    """
    adapter = next((a for a in ADAPTERS if a.fits(model)), None)
    if adapter is None or not set(adapter.inputs_of(model)) <= set(known_inputs()):
        raise _unsupported(type(model).__name__)
    other = {str(p.dtype) for p in model.parameters() if p.dtype != torch.float32}
    if other:
        raise UnsupportedModelError(
            f"{type(model).__name__} has parameters of type {sorted(other)[0]}; call model.float() "
            "first, precision is chosen after the export"
        )
    adapted = adapter(plain(model, adapter.encoder_of(model))).eval()
    inputs = example_inputs(model.config, adapted.input_names) if example is None else example
    adapted.example = {name: inputs[name] for name in adapted.input_names}
    _check_equal(adapted, model)
    return adapted


def plain(model: Model, encoder: nn.Module | None = None) -> Model:
    """Returns a copy of a model whose Hugging Face parts can be decoded token by token.

    For a class of your own that has `encode` and `decode` and uses a Hugging Face decoder: the copy
    keeps no cache, attends with plain masks, and has no module that looks at all tokens at once.

    Args:
        model: is or holds Hugging Face models; left as it is. The copy shares its parameters.
        encoder: a part of it whose modules are kept.
    """
    clone = with_token_modules(model, encoder)
    with_plain_attention(clone)
    return clone


@torch.no_grad()
def plain_if_equal(model: nn.Module, inputs: Mapping[str, Tensor]) -> nn.Module:
    """Returns the plain copy of a class that uses Hugging Face models, if it computes the same.

    Args:
        model: has `encode` and `decode`.
        inputs: example inputs of the encoder.
    """
    if isinstance(model, HuggingFaceModel):
        return model  # it holds a copy already
    copy, tokens = plain(model).eval(), torch.ones(1, _CHECK_LENGTH, dtype=torch.int64)
    row = tuple(value[:1] for value in inputs.values())
    with _quiet():
        wanted, given = (
            reference_logits(m, reference_memory(m, row), tokens) for m in (model, copy)
        )
    return copy if _difference(given, wanted) <= _NOISE else model


def load(folder: Path) -> PreTrainedModel:
    """Loads a model from a folder as `save_pretrained` writes it, in float32, without a network.

    The class is the one that config.json names; no code in the folder is run.

    Raises:
        InputError: there is no model in the folder, or its weights are not safetensors.
        UnsupportedModelError: transformers has no class of the model's name.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise InputError(f"{folder} has no config.json; give a folder that save_pretrained wrote")
    if not any(folder.glob("model*.safetensors")):
        pickles = sorted(folder.glob("pytorch_model*.bin"))
        raise InputError(
            f"{pickles[0]} is a pickle, which can run code when it is read; convert it where you "
            "trust it: model.save_pretrained(folder, safe_serialization=True)"
            if pickles
            else f"{folder} has no model.safetensors; give a folder that save_pretrained wrote"
        )
    names = json.loads(config.read_text(encoding="utf-8")).get("architectures") or ["unnamed"]
    kind = _model_class(str(names[0]))
    with _quiet():
        try:
            model: PreTrainedModel = kind.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(
                f"{folder} cannot be loaded as {names[0]}: {first_line(error)}"
            ) from error
    return model.eval()


def _model_class(name: str) -> Any:
    """Finds a class of transformers that is a model."""
    found = getattr(transformers, name, None)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise _unsupported(name)
    return found


@torch.no_grad()
def _check_equal(adapted: HuggingFaceModel, model: PreTrainedModel) -> None:
    """Checks that the adapter gives the logits of the model's own forward on the example."""
    inputs = adapted.example
    tokens = torch.arange(3, 3 + _CHECK_LENGTH)[None]
    with _quiet():
        wanted = adapted.logits_of(shared_copy(model).eval(), tokens, **inputs)
        given = adapted.decode(tokens, *adapted.encode(*inputs.values()))
    difference = _difference(given, wanted)
    if not difference <= _NOISE:
        raise UnsupportedModelError(
            f"{type(model).__name__} gives other logits with plain attention (relative "
            f"difference {difference:.1e}); write a class around it that has encode() and decode()"
        )


def _difference(given: Tensor, wanted: Tensor) -> float:
    return float((given - wanted).abs().max() / wanted.abs().max().clamp(min=1))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences what transformers logs and shows."""
    level = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()


def _unsupported(name: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{name} is not an encoder-decoder model that is known here ({_KNOWN} and what is built "
        "like them); write a small class around it with encode(inputs) -> memory and "
        "decode(tokens, memory) -> logits"
    )
