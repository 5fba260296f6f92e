"""All cases of the zoo, by family. A family is imported when it is asked for."""

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
    "huggingface": "tests.models.zoo.huggingface:HUGGINGFACE",
    "own-class": "tests.models.zoo.own_class:OWN_CLASS",
}
"""Where the cases of each family are: a module and its tuple of cases."""

OPTIONAL = {"huggingface": "transformers", "own-class": "transformers"}
"""Families that need a package of their own, and that package's name."""

FAMILIES = tuple(_MODULES)


def family(name: str) -> tuple[Case, ...]:
    """Returns the cases of one family."""
    module, cases = _MODULES[name].split(":")
    found: tuple[Case, ...] = getattr(importlib.import_module(module), cases)
    return found


def all_cases(families: Iterable[str] = FAMILIES) -> tuple[Case, ...]:
    """Returns the cases of several families, leaving out those whose package is missing."""
    return tuple(case for name in families if _installed(name) for case in family(name))


def find(name: str) -> Case:
    """Returns the case of that name.

    Raises:
        KeyError: there is none; the message lists those there are.
    """
    known: list[str] = []
    for one in FAMILIES:
        for case in all_cases([one]):
            if case.name == name:
                return case
            known.append(case.name)
    raise KeyError(f"no case {name!r}; there are: {', '.join(known)}")


def _installed(name: str) -> bool:
    return name not in OPTIONAL or importlib.util.find_spec(OPTIONAL[name]) is not None
