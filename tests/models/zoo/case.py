"""A case: one model of the zoo, the inputs it takes, and what of them varies."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hybrid_deploy.bundle.manifest import DimRange
from hybrid_deploy.export.model.dynamic_axes import DynamicAxis

GAIN = 2.0
"""The matrices' factor: with torch's own initial weights a greedy decoder repeats one token."""

_OFFSET = 0.2  # of what torch initialises to 0 or 1: norms, biases, gates


@dataclass(frozen=True)
class Case:
    """One model and how it is exported.

    Attributes:
        name: what it is called on the command line.
        family: what it is listed under.
        make: builds the model; its weights are seeded and made lively by `model`.
        inputs: encoder inputs by name for (batch, size).
        sizes: one input size, or several where an axis of the inputs is dynamic.
        dynamic: for each input, the axes that follow the size: (axis, name, smallest, largest).
        prompts: lengths of the prompts that are tried.
        max_length: largest number of tokens, prompt included.
        fast: exported to ONNX in the test suite too; all others there in PyTorch alone.
        gain: factor of all weight matrices; more makes tokens vary, and float32 less exact.
        seed: of the weights; some give a greedy decoder that repeats itself.
    """

    name: str
    family: str
    make: Callable[[], nn.Module]
    inputs: Callable[[int, int], dict[str, Tensor]]
    sizes: tuple[int, ...]
    dynamic: Mapping[str, tuple[tuple[int, str, int, int], ...]] = field(default_factory=dict)
    prompts: tuple[int, ...] = (1, 3)
    max_length: int = 72
    fast: bool = False
    gain: float = GAIN
    seed: int = 0

    def model(self, seed: int | None = None) -> nn.Module:
        """Builds the model with lively weights, its own or those of a seed, ready to run."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed if seed is None else seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch.nn's remarks on its own fast path
                model = self.make()
            _enliven(model, self.gain)
        return model.eval()

    def axes(self) -> dict[str, dict[int, DynamicAxis]]:
        """Returns the varying axes as the exporter takes them."""
        typical = self.sizes[0]
        return {
            name: {
                axis: DynamicAxis(dim, DimRange(small, min(max(typical, small), large), large))
                for axis, dim, small, large in axes
            }
            for name, axes in self.dynamic.items()
        }


def random_floats(*shape: int, seed: int = 5) -> Tensor:
    """Returns seeded standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_tokens(vocabulary: int, *shape: int, seed: int = 6) -> Tensor:
    """Returns seeded token ids, none of them 0, which pads."""
    return torch.randint(1, vocabulary, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def _enliven(model: nn.Module, gain: float) -> None:
    """Scales matrices and moves everything else off 0 and 1, so that no part is without effect."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(gain)
        else:
            parameter.add_(_OFFSET * torch.randn_like(parameter))
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(_OFFSET * torch.randn_like(buffer))
        elif name.endswith("running_var"):
            buffer.copy_(torch.rand_like(buffer) + 0.5)


def build(
    kind: Callable[..., nn.Module], *args: object, **options: object
) -> Callable[[], nn.Module]:
    """Returns a `make` that calls `kind` with these arguments."""
    return functools.partial(kind, *args, **options)
