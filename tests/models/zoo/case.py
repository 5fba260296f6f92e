"""A case of the zoo: one model, its inputs and their varying axes."""

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
"""Factor of the weight matrices; with torch's initial weights a decoder repeats one token."""

_OFFSET = 0.2  # scale of the noise on norms, biases and gates, which torch sets to 0 or 1


@dataclass(frozen=True)
class Case:
    """One model and the options of its export.

    Attributes:
        name: name of the case on the command line.
        family: family that lists the case.
        make: function that builds the model; `model` then seeds and changes its weights.
        inputs: function of (batch, size) that returns the encoder inputs by name.
        sizes: sizes of the inputs to check; several if an axis is dynamic.
        dynamic: by input, the axes that follow the size: (axis, name, smallest, largest).
        prompts: lengths of the prompts to check, in tokens.
        max_length: largest number of tokens, prompt included.
        fast: whether the test suite exports the case to ONNX; it checks the others in PyTorch.
        gain: factor of all weight matrices; a larger one makes the tokens vary, and the float32
            rounding errors grow.
        seed: seed of the weights; with some seeds a greedy decoder repeats one token.
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
        """Returns the model in eval mode, with weights of a seed; None takes the case's seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed if seed is None else seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch.nn warns about its fast path
                model = self.make()
            _randomize(model, self.gain)
        return model.eval()

    def axes(self) -> dict[str, dict[int, DynamicAxis]]:
        """Returns the varying axes in the exporter's form."""
        typical = self.sizes[0]
        return {
            name: {
                axis: DynamicAxis(dim, DimRange(small, min(max(typical, small), large), large))
                for axis, dim, small, large in axes
            }
            for name, axes in self.dynamic.items()
        }


def random_floats(*shape: int, seed: int = 5) -> Tensor:
    """Returns seeded standard normal numbers, float32."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_tokens(vocabulary: int, *shape: int, seed: int = 6) -> Tensor:
    """Returns seeded token ids, int64, without the padding token 0."""
    return torch.randint(1, vocabulary, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def _randomize(model: nn.Module, gain: float) -> None:
    """Scales the matrices and adds noise to all else, so that every parameter has an effect."""
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
    model_class: Callable[..., nn.Module], *args: object, **options: object
) -> Callable[[], nn.Module]:
    """Returns a function that builds a model of the class with these arguments."""
    return functools.partial(model_class, *args, **options)
