"""Represents complex activations as pairs of real tensors while a model is traced.

Neither ONNX nor TensorRT has complex numbers; LLaMA's rotary positions use them. Example, with
x: (2, 5, 8) float32 and the constant `turns`: (1, 5, 4) complex64:

    the model                                        the traced graph
    pairs  = view_as_complex(x.view(2, 5, 4, 2))     a, b = x.view(2, 5, 4, 2).unbind(-1)
    turned = pairs * turns                           c, d = view_as_real(turns).unbind(-1)
                                                     real, imag = a * c - b * d, a * d + b * c
    y      = view_as_real(turned)                    y = stack([real, imag], -1)

A complex constant is split when it first meets a pair. The nodes that split it have constant
operands only; they are folded before the export, so that no complex tensor reaches ONNX.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_MOVEMENTS = frozenset(
    {"__getitem__", "contiguous", "expand", "flatten", "permute", "repeat", "reshape", "squeeze"}
    | {"transpose", "unsqueeze", "view"}
)
_PROPERTIES = frozenset({"shape", "ndim", "device", "dim", "size"})


class ComplexPair:
    """A complex tensor, stored as its real and its imaginary part.

    Args:
        real: the real part, of any shape and float dtype.
        imag: the imaginary part, of the same shape and dtype.
    """

    def __init__(self, real: Tensor, imag: Tensor) -> None:
        self.real = real
        self.imag = imag

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Computes a torch function of which an argument is a pair.

        Raises:
            NotImplementedError: the function has no implementation for pairs.
        """
        name = func.__name__
        if name == "view_as_real":
            return torch.stack([args[0].real, args[0].imag], -1)
        if name in _ARITHMETIC:
            return _ARITHMETIC[name](*map(_pair, args[:2]))
        if name in _MOVEMENTS and isinstance(args[0], ComplexPair):
            return getattr(args[0], name)(*args[1:], **(kwargs or {}))
        raise NotImplementedError(f"{name} of complex numbers; write it with real ones")

    def __getattr__(self, name: str) -> Any:
        if name in _PROPERTIES:
            return getattr(self.real, name)
        if name in _MOVEMENTS:
            return lambda *args, **kwargs: self._moved(name, *args, **kwargs)
        raise AttributeError(f"{name} of complex numbers is not known; write it with real ones")

    def __getitem__(self, index: Any) -> ComplexPair:
        return self._moved("__getitem__", index)

    def __mul__(self, other: Any) -> ComplexPair:
        return _product(self, _pair(other))

    def __add__(self, other: Any) -> ComplexPair:
        return _sum(self, _pair(other))

    def __sub__(self, other: Any) -> ComplexPair:
        return _difference(self, _pair(other))

    __rmul__, __radd__ = __mul__, __add__

    def conj(self) -> ComplexPair:
        """Returns the complex conjugate."""
        return ComplexPair(self.real, -self.imag)

    def abs(self) -> Tensor:
        """Returns the absolute values."""
        return torch.sqrt(self.real * self.real + self.imag * self.imag)

    def _moved(self, name: str, *args: Any, **kwargs: Any) -> ComplexPair:
        real, imag = (getattr(part, name)(*args, **kwargs) for part in (self.real, self.imag))
        return ComplexPair(real, imag)


def view_as_complex_pair(parts: Tensor) -> ComplexPair:
    """Computes `view_as_complex` of a real tensor (..., 2): real part first, imaginary second."""
    return ComplexPair(*parts.unbind(-1))


def _pair(value: Any) -> ComplexPair:
    if isinstance(value, ComplexPair):
        return value
    tensor = value if isinstance(value, Tensor) else torch.tensor(value)
    if tensor.is_complex():
        return ComplexPair(*torch.view_as_real(tensor).unbind(-1))
    return ComplexPair(tensor, torch.zeros_like(tensor))


def _product(a: ComplexPair, b: ComplexPair) -> ComplexPair:
    return ComplexPair(a.real * b.real - a.imag * b.imag, a.real * b.imag + a.imag * b.real)


def _sum(a: ComplexPair, b: ComplexPair) -> ComplexPair:
    return ComplexPair(a.real + b.real, a.imag + b.imag)


def _difference(a: ComplexPair, b: ComplexPair) -> ComplexPair:
    return ComplexPair(a.real - b.real, a.imag - b.imag)


_ARITHMETIC = {
    **dict.fromkeys(("mul", "__mul__", "__rmul__", "multiply"), _product),
    **dict.fromkeys(("add", "__add__", "__radd__"), _sum),
    **dict.fromkeys(("sub", "__sub__", "subtract"), _difference),
}
