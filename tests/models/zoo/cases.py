"""Lists the cases of the zoo by family, and imports a family at its first use."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable

from tests.models.zoo.case import Case

_MODULES = {
    "torch": "tests.models.zoo.decoder_cases:TORCH",
    "handwritten": "tests.models.zoo.decoder_cases:HANDWRITTEN",
    "prefix": "tests.models.zoo.decoder_cases:PREFIX",
    "image": "tests.models.zoo.encoder_cases:IMAGE",
    "signal": "tests.models.zoo.encoder_cases:SIGNAL",
    "padded": "tests.models.zoo.encoder_cases:PADDED",
    "recurrent": "tests.models.zoo.recurrent:RECURRENT",
    "huggingface": "tests.models.zoo.transformers.models:HUGGINGFACE",
    "own-class": "tests.models.zoo.own_class:OWN_CLASS",
}
"""By family: its module, and the name of the tuple of its cases."""

OPTIONAL = {
    "huggingface": "transformers",
    "own-class": "transformers",
}
"""Families that need an optional package, with its name."""

FAMILIES = tuple(_MODULES)


def family(name: str) -> tuple[Case, ...]:
    """Returns the cases of one family."""
    module, cases = _MODULES[name].split(":")
    family_cases: tuple[Case, ...] = getattr(importlib.import_module(module), cases)
    return family_cases


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


def _installed(name: str) -> bool:
    """Returns whether the package of a family is installed."""
    return name not in OPTIONAL or importlib.util.find_spec(OPTIONAL[name]) is not None
