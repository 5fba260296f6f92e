"""Small image encoders of the usual kinds, in front of one torch.nn decoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.zoo.captioner import WIDTH
from tests.models.zoo.torch_decoders import TorchDecoder


class Encoded(TorchDecoder):
    """An encoder module in front of nn.TransformerDecoder."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__(norm_first=True, final_norm=True)
        self.encoder = encoder
        del self.project

    def encode(self, *inputs: Tensor) -> Tensor:
        memory: Tensor = self.encoder(*inputs)
        return memory


class CNNEncoder(nn.Module):
    """The encoder of a published article: two convolutions, pooling, one fully connected layer."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super(CNNEncoder, self).__init__()  # noqa: UP008 - as in the article
        self.conv1 = nn.Conv2d(in_channels, 64, kernel_size=3, stride=1, padding=1)
        self.pool1 = nn.MaxPool2d(kernel_size=2, stride=2)
        self.conv2 = nn.Conv2d(64, 128, kernel_size=3, stride=1, padding=1)
        self.pool2 = nn.MaxPool2d(kernel_size=2, stride=2)
        self.fc = nn.Linear(128 * 7 * 7, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.conv1(x))
        out = self.pool1(out)
        out = F.relu(self.conv2(out))
        out = self.pool2(out)
        out = out.view(out.size(0), -1)
        out = self.fc(out)
        return out  # type: ignore[no-any-return]


class ArticleModel(Encoded):
    """The article's hybrid model: the memory is one vector of the CNN."""

    def __init__(self) -> None:
        super().__init__(CNNEncoder(1, WIDTH))

    def encode(self, *inputs: Tensor) -> Tensor:
        return super().encode(*inputs).unsqueeze(1)


class GlobalPooling(nn.Module):
    """Convolutions and adaptive pooling to one vector, for images of any width."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(16, WIDTH, 3, stride=2, padding=1), nn.ReLU(inplace=True),
        )  # fmt: skip
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, image: Tensor) -> Tensor:
        vector: Tensor = self.pool(self.features(image)).flatten(1).unsqueeze(1)
        return vector


class FeatureMap(nn.Module):
    """Convolutions; each cell of their feature map is one row of the memory."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.LeakyReLU(0.1), nn.MaxPool2d(2),
            nn.Conv2d(16, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH), nn.ELU(), nn.AvgPool2d(4, 2),
        )  # fmt: skip

    def forward(self, image: Tensor) -> Tensor:
        cells: Tensor = self.features(image)
        return cells.flatten(2).permute(0, 2, 1)


class ResNet(nn.Module):
    """Residual blocks with batch norm; each column of the feature map is one row of the memory."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 7, 2, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        )
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.layer1, self.layer2 = Residual(16, 16, 1), Residual(16, WIDTH, 2)

    def forward(self, image: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.pool(self.stem(image))))
        columns: Tensor = x.mean(dim=2).transpose(1, 2)
        return columns


class Residual(nn.Module):
    """ResNet's basic block."""

    def __init__(self, narrow: int, wide: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(narrow, wide, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(wide, wide, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(wide), nn.BatchNorm2d(wide)
        self.downsample = nn.Sequential(
            nn.Conv2d(narrow, wide, 1, stride, bias=False), nn.BatchNorm2d(wide)
        )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        rows: Tensor = F.relu(self.bn2(self.conv2(out)) + self.downsample(x))
        return rows


class ConvNeXt(nn.Module):
    """A patch stem and a depthwise block, channels last inside, with a layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, kernel_size=4, stride=4)
        self.depthwise = nn.Conv2d(WIDTH, WIDTH, 7, padding=3, groups=WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)
        self.wide, self.narrow = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.gamma = nn.Parameter(0.5 * torch.ones(WIDTH))

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.narrow(F.gelu(self.wide(y)))
        cells: Tensor = x + y.permute(0, 3, 1, 2)
        return cells.flatten(2).transpose(1, 2)


class MobileNet(nn.Module):
    """An inverted residual with relu6, hardswish, squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.Hardswish())
        self.expand = nn.Sequential(nn.Conv2d(16, 32, 1), nn.BatchNorm2d(32), nn.ReLU6())
        self.depthwise = nn.Sequential(
            nn.Conv2d(32, 32, 3, 1, 1, groups=32), nn.BatchNorm2d(32), nn.ReLU6()
        )
        self.excite = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(32, 8, 1), nn.ReLU(), nn.Conv2d(8, 32, 1),
            nn.Hardsigmoid(),
        )  # fmt: skip
        self.project = nn.Sequential(nn.Conv2d(32, 16, 1), nn.BatchNorm2d(16))
        self.last = nn.Conv2d(16, WIDTH, 3, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        y = self.depthwise(self.expand(x))
        x = x + self.project(y * self.excite(y))
        cells: Tensor = F.hardswish(self.last(x))
        return cells.flatten(2).transpose(1, 2)


class ConvThenTransformer(nn.Module):
    """A convolutional stem, learned row and column positions, nn.TransformerEncoder."""

    def __init__(self, *, norm_first: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1), nn.GELU(), nn.Conv2d(16, WIDTH, 3, 2, 1)
        )
        self.rows, self.columns = nn.Embedding(8, WIDTH), nn.Embedding(64, WIDTH)
        layer = nn.TransformerEncoderLayer(
            WIDTH, 4, 96, batch_first=True, norm_first=norm_first, activation="gelu"
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        height, width = x.shape[-2:]
        positions = self.rows(torch.arange(height))[:, None] + self.columns(torch.arange(width))
        x = x.flatten(2).transpose(1, 2) + positions.flatten(0, 1)
        memory: Tensor = self.encoder(x)
        return memory


class ConvThenLSTM(nn.Module):
    """CRNN: a bidirectional LSTM over the columns of a feature map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 24, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d((1, None))
        )
        self.lstm = nn.LSTM(24, WIDTH // 2, bidirectional=True, batch_first=True)

    def forward(self, image: Tensor) -> Tensor:
        columns: Tensor = self.lstm(self.stem(image).squeeze(2).transpose(1, 2))[0]
        return columns
