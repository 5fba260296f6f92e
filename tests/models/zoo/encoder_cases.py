"""The encoders of the zoo as cases, each with its inputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.models.zoo.captioner import VOCABULARY
from tests.models.zoo.case import GAIN, Case, build, random_floats, random_tokens
from tests.models.zoo.encoders import (
    ArticleModel,
    ConvNeXt,
    ConvThenLSTM,
    ConvThenTransformer,
    Encoded,
    FeatureMap,
    GlobalPooling,
    MobileNet,
    ResNet,
)
from tests.models.zoo.other_encoders import (
    AddedMask,
    AudioStem,
    ImageAndQuestion,
    Lengths,
    TextCNN,
    Video3d,
    VideoPerFrame,
    WidthMask,
)

_WIDTH = (3, "width", 16, 64)


def _article(batch: int, size: int) -> dict[str, Tensor]:
    return {"image": random_floats(batch, 1, size, size)}


def _grey(batch: int, size: int) -> dict[str, Tensor]:
    return {"image": random_floats(batch, 1, 16, size)}


def _colour(batch: int, size: int) -> dict[str, Tensor]:
    return {"image": random_floats(batch, 3, 16, size)}


def _sound(batch: int, size: int) -> dict[str, Tensor]:
    return {"features": random_floats(batch, 20, size)}


def _channels_first_video(batch: int, size: int) -> dict[str, Tensor]:
    return {"video": random_floats(batch, 3, size, 16, 16)}


def _frames_first_video(batch: int, size: int) -> dict[str, Tensor]:
    return {"video": random_floats(batch, size, 3, 16, 16)}


def _text(batch: int, size: int) -> dict[str, Tensor]:
    return {"source": random_tokens(VOCABULARY, batch, size)}


def _question(batch: int, size: int) -> dict[str, Tensor]:
    question = random_tokens(VOCABULARY, batch, size)
    return {"image": random_floats(batch, 3, 16, 24), "question": question}


def _masked(batch: int, size: int) -> dict[str, Tensor]:
    mask = torch.arange(size)[None] >= _true_widths(batch, size)[:, None]
    return {"image": random_floats(batch, 1, 16, size), "width_mask": mask}


def _measured(batch: int, size: int) -> dict[str, Tensor]:
    return {"image": random_floats(batch, 1, 16, size), "lengths": _true_widths(batch, size)}


def _true_widths(batch: int, size: int) -> Tensor:
    """Returns (batch,) widths in steps of eight: the last row is full, earlier ones narrower."""
    return torch.tensor([max(8, size - 8 * (batch - 1 - row)) for row in range(batch)])


def _image(
    name: str,
    encoder: Callable[[], nn.Module],
    *,
    colour: bool = False,
    fast: bool = False,
    gain: float = GAIN,
) -> Case:
    return Case(
        name=name,
        family="image",
        make=lambda: Encoded(encoder()),
        inputs=_colour if colour else _grey,
        sizes=(32, 48),
        dynamic={"image": (_WIDTH,)},
        fast=fast,
        gain=gain,
    )


IMAGE = (
    Case("article", "image", ArticleModel, _article, (28,), fast=True, gain=1.5),
    _image("global-pooling", GlobalPooling),
    Case("feature-map-fixed", "image", lambda: Encoded(FeatureMap()), _grey, (32,)),
    _image("feature-map", FeatureMap),
    _image("resnet", ResNet, colour=True, gain=1.5),
    _image("convnext", ConvNeXt, colour=True),
    _image("mobilenet", MobileNet, colour=True),
    _image("conv-then-transformer", ConvThenTransformer),
    _image("conv-then-transformer-pre-norm", build(ConvThenTransformer, norm_first=True)),
    Case("conv-then-lstm-fixed", "image", lambda: Encoded(ConvThenLSTM()), _grey, (32,)),
)

SIGNAL = (
    Case(
        "audio", "signal", lambda: Encoded(AudioStem()), _sound, (40, 24),
        {"features": ((2, "frames", 8, 100),)},
    ),
    Case(
        "video-3d", "signal", lambda: Encoded(Video3d()), _channels_first_video, (4, 7),
        {"video": ((2, "frames", 2, 16),)},
    ),
    Case(
        "video-per-frame", "signal", lambda: Encoded(VideoPerFrame()), _frames_first_video, (4, 7),
        {"video": ((1, "frames", 2, 16),)},
    ),
    Case(
        "text", "signal", lambda: Encoded(TextCNN()), _text, (8, 13),
        {"source": ((1, "words", 2, 32),)},
    ),
    Case(
        "image-and-question", "signal", lambda: Encoded(ImageAndQuestion()), _question, (6, 11),
        {"question": ((1, "words", 2, 32),)},
    ),
)  # fmt: skip

_MASKED_AXES = {"image": (_WIDTH,), "width_mask": ((1, "width", 16, 64),)}

PADDED = (
    Case("width-mask-fixed", "padded", WidthMask, _masked, (32,)),
    Case("width-mask", "padded", WidthMask, _masked, (32, 48), _MASKED_AXES, fast=True),
    Case("lengths", "padded", Lengths, _measured, (32, 48), {"image": (_WIDTH,)}),
    Case("added-mask", "padded", AddedMask, _masked, (32, 48), _MASKED_AXES),
)
