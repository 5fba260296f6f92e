"""Replacing a submodule of a model by an equivalent one that can be decoded token by token.

A decoder is refused when one of its submodules looks at all tokens at once although it would not
have to: positions counted by a cumulative sum over the tokens, say. Such a submodule is replaced,
not the model: `substitute` gives a copy of the model in which some modules are others, and which
shares every parameter and buffer with the original. The original is left as it was.

    model = substitute(model, {"decoder.positions": lambda old: RowWisePositions(old.weight)})
    model = substitute(model, {CountedPositions: RowWisePositions.of})
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from itertools import chain
from typing import TypeVar

from torch import nn

from hybrid_deploy.errors import UnsupportedModelError

Factory = Callable[[nn.Module], nn.Module]
"""Makes the replacement of a module; gets the copy's module and may change and return it."""

Model = TypeVar("Model", bound=nn.Module)


def substitute(model: Model, replacements: Mapping[str | type[nn.Module], Factory]) -> Model:
    """Returns a copy of a model in which some modules are replaced.

    The export's parity gate compares the exported graphs with the model that it is given, so it
    does not tell whether a replacement computes what the replaced module did: test that.

    Args:
        model: left as it is.
        replacements: by the path of a module, as in `named_modules()`, or by a class, which stands
            for all modules of this class or of one derived from it. Paths go before classes. What
            is inside a replaced module is not replaced.

    Returns:
        The copy. It shares the parameters and buffers; everything else is its own.

    Raises:
        UnsupportedModelError: a path or class is not in the model.
    """
    clone = shared_copy(model)
    made: dict[nn.Module, nn.Module] = {}
    used: set[str | type[nn.Module]] = set()
    done: list[str] = []
    for path, module in list(clone.named_modules(remove_duplicate=False)):
        key = _key_of(path, module, replacements)
        if key is None or not path or any(path.startswith(f"{outer}.") for outer in done):
            continue
        if module not in made:
            made[module] = replacements[key](module).train(module.training)
        clone.set_submodule(path, made[module])
        used.add(key)
        done.append(path)
    for missing in replacements.keys() - used:
        name = missing if isinstance(missing, str) else missing.__name__
        raise UnsupportedModelError(
            f"{type(model).__name__} has no module {name} to replace; give a path of its "
            "named_modules() or the class of one of them"
        )
    return clone


def shared_copy(model: Model) -> Model:
    """Returns a copy of a model that shares its parameters and buffers."""
    tensors = chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def _key_of(
    path: str, module: nn.Module, replacements: Mapping[str | type[nn.Module], Factory]
) -> str | type[nn.Module] | None:
    """Finds the replacement that a module asks for."""
    if path in replacements:
        return path
    classes = (key for key in replacements if isinstance(key, type))
    return next((key for key in classes if isinstance(module, key)), None)
