"""Lists the cases of the zoo by family, and imports a family at its first use."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable
from typing import Any

from tests.models.zoo.case import Case
from tests.models.zoo.refusal import Refusal

_MODULES = {
    "torch": "tests.models.zoo.decoder_cases:TORCH",
    "handwritten": "tests.models.zoo.decoder_cases:HANDWRITTEN",
    "prefix": "tests.models.zoo.decoder_cases:PREFIX",
    "image": "tests.models.zoo.encoder_cases:IMAGE",
    "signal": "tests.models.zoo.encoder_cases:SIGNAL",
    "padded": "tests.models.zoo.encoder_cases:PADDED",
    "spelling": "tests.models.spellings.zoo_cases:SPELLED",
    "published-readers": "tests.models.zoo.published.cases:READERS",
    "published-captioners": "tests.models.zoo.published.cases:CAPTIONERS",
    "published-speech": "tests.models.zoo.published.cases:SPEECH",
    "published-translation": "tests.models.zoo.published.cases:TRANSLATION",
    "published-language": "tests.models.zoo.published.cases:LANGUAGE",
    "published-recurrent": "tests.models.zoo.published.cases:RECURRENT",
    "recurrent": "tests.models.zoo.recurrent:RECURRENT",
    "huggingface": "tests.models.zoo.transformers.models:HUGGINGFACE",
    "prompted-images": "tests.models.zoo.vision_language.prompted:PROMPTED_IMAGES",
    "image-before-text": "tests.models.zoo.vision_language.handwritten:IMAGE_BEFORE_TEXT",
    "vision-language": "tests.models.zoo.vision_language.models:VISION_LANGUAGE",
    "own-class": "tests.models.zoo.own_class:OWN_CLASS",
}
"""By family: its module, and the name of the tuple of its cases."""

_REFUSALS = (
    "tests.models.zoo.refused:REFUSED",
    "tests.models.zoo.published.refused:REFUSED",
    "tests.models.spellings.zoo_cases:REFUSED",
)
"""The tuples of models that must be refused, each with its module."""

OPTIONAL = {
    "huggingface": "transformers",
    "prompted-images": "transformers",
    "vision-language": "transformers",
    "own-class": "transformers",
}
"""Families that need an optional package, with its name."""

FAMILIES = tuple(_MODULES)


def family(name: str) -> tuple[Case, ...]:
    """Returns the cases of one family."""
    family_cases: tuple[Case, ...] = _imported(_MODULES[name])
    return family_cases


def all_refusals() -> tuple[Refusal, ...]:
    """Returns the models that the exporter must refuse."""
    return tuple(refusal for name in _REFUSALS for refusal in _imported(name))


def all_cases(families: Iterable[str] = FAMILIES) -> tuple[Case, ...]:
    """Returns the cases of several families without those whose package is missing."""
    return tuple(case for name in families if _installed(name) for case in family(name))


def find(name: str) -> Case:
    """Returns the case with the given name.

    Raises:
        KeyError: no case has this name; the message lists the names.
    """
    names: list[str] = []
    for family_name in FAMILIES:
        for case in all_cases([family_name]):
            if case.name == name:
                return case
            names.append(case.name)
    raise KeyError(f"no case {name!r}; there are: {', '.join(names)}")


def _imported(name: str) -> Any:
    module, attribute = name.split(":")
    return getattr(importlib.import_module(module), attribute)


def _installed(name: str) -> bool:
    """Returns whether the package of a family is installed."""
    return name not in OPTIONAL or importlib.util.find_spec(OPTIONAL[name]) is not None
