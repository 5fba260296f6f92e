"""Adapts Hugging Face encoder-decoder models, so that the user need not write an adapter."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from hybrid_deploy.errors import (
    HybridDeployError,
    InputError,
    MissingDependencyError,
    UnsupportedModelError,
    UsageError,
)

try:
    import transformers
    from transformers import PreTrainedModel
except ImportError as error:
    raise MissingDependencyError("transformers", "hf") from error

from hybrid_deploy.export.huggingface.architectures.base import HuggingFaceModel
from hybrid_deploy.export.huggingface.architectures.language_models import placeholder_of
from hybrid_deploy.export.huggingface.architectures.prompted_images import (
    QueriesInPrompt,
    SeenWholePrompt,
)
from hybrid_deploy.export.huggingface.architectures.registry import ADAPTERS
from hybrid_deploy.export.huggingface.attention import use_plain_attention
from hybrid_deploy.export.huggingface.example_inputs import example_inputs, supported_inputs
from hybrid_deploy.export.huggingface.kinds import known_refusal, refusal, unknown_class
from hybrid_deploy.export.huggingface.modules import with_incremental_modules
from hybrid_deploy.export.model.interface import reference_logits, reference_memory
from hybrid_deploy.export.model.substitution import Model, shared_copy
from hybrid_deploy.export.trace.refusal import first_line

Result = TypeVar("Result")

_TOLERANCE = 1e-4  # of the largest logit; float32 sums in another order differ by less
_CHECK_LENGTH = 6
_PADDED_PART = 4  # a quarter of the second row is padding


def adapt(model: PreTrainedModel, example: Mapping[str, Tensor] | None = None) -> HuggingFaceModel:
    """Returns a model with the `encode` and `decode` that the exporter needs.

    The result holds a copy that shares the model's parameters; the model itself does not change.
    In the copy, modules that read all tokens at once are replaced (modules.py), and attention and
    masks are torch's (attention.py). Its logits on the example must equal the model's own.

    Args:
        model: encoder-decoder model with a language head, float32.
        example: encoder inputs by name, batch first, and values that the adapter fixes; None makes
            the inputs from the config.

    Raises:
        UnsupportedModelError: the class is not supported, or the copy returns other logits.
        UsageError: no example is given, and the config does not tell the sizes of the inputs.
    """
    adapter = _adapter_of(model)
    other_types = {str(p.dtype) for p in model.parameters() if p.dtype != torch.float32}
    if other_types:
        raise UnsupportedModelError(
            f"{type(model).__name__} has parameters of type {sorted(other_types)[0]}; call "
            "model.float() first, precision is chosen after the export"
        )
    adapted = adapter(incremental_copy(model, adapter.encoder_of(model))).eval()
    inputs = _guessed_inputs(model, adapted.input_names) if example is None else example
    adapted.example = {name: inputs[name] for name in adapted.input_names}
    with _quiet():
        _computed(model, lambda: adapted.fix(inputs))
    _check_equal(adapted, model)
    return adapted


def encoder_inputs(model: PreTrainedModel) -> tuple[str, ...]:
    """Returns the names of the encoder's inputs, as in the model's `forward`.

    Raises:
        UnsupportedModelError: the class is not supported; the message says what the model is.
    """
    return _adapter_of(model).inputs_of(model)


def fixed_inputs(model: PreTrainedModel) -> tuple[str, ...]:
    """Returns the names of what an example may contain besides the encoder's inputs."""
    return _adapter_of(model).fixed_names


PromptReader = Literal["encoder", "decoder"]


def prompt_reader(model: PreTrainedModel) -> tuple[PromptReader, int] | None:
    """Returns which part reads the words after an image or a sound, and the placeholder's token.

    It is None for a model that takes no such prompt, or takes it as an ordinary text.
    """
    adapter, placeholder = _adapter_of(model), placeholder_of(model)
    if placeholder is None:
        return None
    if issubclass(adapter, (QueriesInPrompt, SeenWholePrompt)):
        return "encoder", placeholder
    return ("decoder", placeholder) if "input_ids" in adapter.fixed_names else None


def _adapter_of(model: PreTrainedModel) -> type[HuggingFaceModel]:
    """Returns the class that adapts a model."""
    adapter = next((a for a in ADAPTERS if a.fits(model)), None)
    if adapter is None or known_refusal(model) is not None:
        raise refusal(model)
    return adapter


def _guessed_inputs(model: PreTrainedModel, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Returns example inputs made from a model's config."""
    if set(names) <= set(supported_inputs()):
        # a config that lacks a size raises AttributeError
        with contextlib.suppress(AttributeError):
            return example_inputs(model.config, names)
    raise UsageError(
        f"the config of {type(model).__name__} does not tell the sizes of its inputs; give "
        f"example_inputs: {', '.join(names)}"
    )


def incremental_copy(model: Model, encoder: nn.Module | None = None) -> Model:
    """Returns a copy of a model whose Hugging Face parts can be decoded token by token.

    It serves a user's own class that has `encode` and `decode` and uses a Hugging Face decoder. The
    copy uses no cache, attends with boolean masks that depend on positions and padding alone, and
    has no decoder module that reads all tokens at once.

    Args:
        model: a Hugging Face model, or a module that holds some; it does not change. The copy
            shares its parameters.
        encoder: part of the model whose modules are not replaced.
    """
    clone = with_incremental_modules(model, encoder)
    use_plain_attention(clone)
    return clone


@torch.no_grad()
def incremental_copy_if_equal(model: nn.Module, inputs: Mapping[str, Tensor]) -> nn.Module:
    """Returns an incremental copy that computes the same logits, else the model itself.

    Args:
        model: module with `encode` and `decode` that holds Hugging Face models.
        inputs: example inputs of the encoder by name, batch first.
    """
    if isinstance(model, HuggingFaceModel):
        return model  # its constructor received an incremental copy
    copy, tokens = incremental_copy(model).eval(), torch.ones(1, _CHECK_LENGTH, dtype=torch.int64)
    row = tuple(value[:1] for value in inputs.values())
    with _quiet():
        expected, actual = (
            reference_logits(m, reference_memory(m, row), tokens) for m in (model, copy)
        )
    return copy if _difference(actual, expected) <= _TOLERANCE else model


def load(folder: Path) -> PreTrainedModel:
    """Returns the model of a folder that `save_pretrained` wrote, in float32 and eval mode.

    `config.json` names the class. No code of the folder runs, and no network is used.

    Raises:
        InputError: the folder has no model, or its weights are not safetensors.
        UnsupportedModelError: transformers has no model class with the name in config.json.
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
    class_names = json.loads(config.read_text(encoding="utf-8")).get("architectures") or ["unnamed"]
    model_class = _model_class(str(class_names[0]))
    with _quiet():
        try:
            model: PreTrainedModel = model_class.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(
                f"{folder} cannot be loaded as {class_names[0]}: {first_line(error)}"
            ) from error
    return model.eval()


def _model_class(name: str) -> Any:
    """Returns the model class of transformers with the given name."""
    model_class = getattr(transformers, name, None)
    if not (isinstance(model_class, type) and issubclass(model_class, PreTrainedModel)):
        raise unknown_class(name)
    return model_class


@torch.no_grad()
def _check_equal(adapted: HuggingFaceModel, model: PreTrainedModel) -> None:
    """Checks on the example that the adapter returns the logits of the model's own forward.

    A second row has the same values with its end masked, so that padding is compared as well.
    """
    inputs = _with_padded_row(adapted.example)
    rows = len(next(iter(inputs.values())))
    words = [token for token in range(3, 4 + _CHECK_LENGTH) if token != adapted.placeholder]
    tokens = torch.tensor(words[:_CHECK_LENGTH]).expand(rows, -1)
    with _quiet():
        expected = _computed(
            model, lambda: adapted.logits_of(shared_copy(model).eval(), tokens, **inputs)
        )
        actual = _computed(model, lambda: adapted.decode(tokens, *adapted.encode(*inputs.values())))
    difference = _difference(actual, expected)
    if not difference <= _TOLERANCE:
        raise UnsupportedModelError(
            f"{type(model).__name__} gives other logits with plain attention (relative "
            f"difference {difference:.1e}); write a class around it that has encode() and decode()"
        )


def _with_padded_row(example: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the first row of an example; with a mask also a second row whose end is padding."""
    row = {name: value[:1] for name, value in example.items()}
    mask = row.get("attention_mask")
    if mask is None:
        return row
    padded = mask.clone()
    padded[:, mask.shape[1] - mask.shape[1] // _PADDED_PART :] = 0
    both = {name: torch.cat([value, value]) for name, value in row.items()}
    return both | {"attention_mask": torch.cat([mask, padded])}


def _computed(model: PreTrainedModel, compute: Callable[[], Result]) -> Result:
    """Returns the result of a computation of transformers, whose exceptions become one line."""
    try:
        return compute()
    except HybridDeployError:
        raise
    except Exception as error:
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be run token by token on the example: "
            f"{type(error).__name__}: {first_line(error)}; check the example, or write a class "
            "around the model that has encode() and decode()"
        ) from error


def _difference(actual: Tensor, expected: Tensor) -> float:
    """Returns the largest difference of any logit, relative to the largest expected one or to 1."""
    return float((actual - expected).abs().max() / expected.abs().max().clamp(min=1))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Turns off the logs, warnings and progress bars of transformers."""
    level = transformers.logging.get_verbosity()
    had_progress_bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(level)
        if had_progress_bars:
            transformers.logging.enable_progress_bar()
