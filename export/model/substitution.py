"""Replaces submodules of a model by equivalent ones that can be decoded token by token.

The exporter refuses a decoder if a submodule reads all tokens at once, for example to count
positions by a cumulative sum over the tokens. `substitute` returns a copy of the model with another
submodule in its place. The copy shares every parameter and buffer with the original, which does not
change.

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
"""Returns the replacement of a module; it may change the module of the copy and return it."""

Model = TypeVar("Model", bound=nn.Module)


def substitute(model: Model, replacements: Mapping[str | type[nn.Module], Factory]) -> Model:
    """Returns a copy of a model with some modules replaced.

    The parity gate compares the exported graphs with this copy, not with the original. Your own
    test must show that a replacement computes the same as the module it replaces.

    Args:
        model: the original, which does not change.
        replacements: factories by the path of a module, as in `named_modules()`, or by a class,
            which selects all its instances. A path takes precedence over a class. Modules inside
            a replaced module are not replaced.

    Returns:
        The copy, which shares only the parameters and buffers with the original.

    Raises:
        UnsupportedModelError: the model has no module with this path or class.
    """
    clone = shared_copy(model)
    new_modules: dict[nn.Module, nn.Module] = {}
    used_keys: set[str | type[nn.Module]] = set()
    replaced_paths: list[str] = []
    for path, module in list(clone.named_modules(remove_duplicate=False)):
        key = _key_of(path, module, replacements)
        inside_replaced = any(path.startswith(f"{outer}.") for outer in replaced_paths)
        if key is None or not path or inside_replaced:
            continue
        if module not in new_modules:
            new_modules[module] = replacements[key](module).train(module.training)
        clone.set_submodule(path, new_modules[module])
        used_keys.add(key)
        replaced_paths.append(path)
    for missing in replacements.keys() - used_keys:
        name = missing if isinstance(missing, str) else missing.__name__
        raise UnsupportedModelError(
            f"{type(model).__name__} has no module {name} to replace; give a path of its "
            "named_modules() or the class of one of them"
        )
    return clone


def shared_copy(model: Model) -> Model:
    """Returns a deep copy of a model that shares its parameters and buffers."""
    tensors = chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def _key_of(
    path: str, module: nn.Module, replacements: Mapping[str | type[nn.Module], Factory]
) -> str | type[nn.Module] | None:
    """Returns the key that selects a module: its path, or the first class that it belongs to."""
    if path in replacements:
        return path
    classes = (key for key in replacements if isinstance(key, type))
    return next((key for key in classes if isinstance(module, key)), None)
