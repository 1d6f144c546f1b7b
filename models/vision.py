"""Networks over images: the small ones of our own, and transformers' classes with tiny configurations."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from models.common import seeded, with_affine_norms, with_statistics


class Digits(nn.Module):
    """Three convolutions on [N, 1, 8, 8] images, 256 features, and a linear head of ten classes."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[tuple[str, nn.Module]] = []
        for index, (before, after) in enumerate([(1, 32), (32, 64), (64, 64)], start=1):
            layers += [
                (f"conv{index}", nn.Conv2d(before, after, 3, padding=1, bias=False)),
                (f"bn{index}", nn.BatchNorm2d(after)),
                (f"relu{index}", nn.ReLU()),
            ]
            if index > 1:
                layers.append((f"pool{index}", nn.AvgPool2d(2)))
        layers.append(("flatten", nn.Flatten()))
        self.encoder = nn.Sequential(OrderedDict(layers))
        self.head = nn.Linear(256, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Image [N, 1, 8, 8] -> logits [N, 10]."""
        return self.head(self.encoder(image))


class Mlp(nn.Module):
    """64 features, two hidden layers of 128 (ReLU, then Tanh), ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.Tanh())
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Features [N, 64] -> logits [N, 10]."""
        return self.head(self.body(x))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is projected where the shape changes (He et al., 2015)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            projection = nn.Conv2d(before, after, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """[N, before, H, W] -> [N, after, H / stride, W / stride]."""
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inner)) + self.downsample(x))


class ResNet18(nn.Module):
    """ResNet-18: stem, four stages of two basic blocks, global average, one linear layer."""

    def __init__(self, width: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = self._stage(width, width, 1)
        self.layer2 = self._stage(width, 2 * width, 2)
        self.layer3 = self._stage(2 * width, 4 * width, 2)
        self.layer4 = self._stage(4 * width, 8 * width, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8 * width, classes)

    @staticmethod
    def _stage(before: int, after: int, stride: int) -> nn.Sequential:
        return nn.Sequential(BasicBlock(before, after, stride), BasicBlock(after, after, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Image [N, 3, H, W] -> logits [N, classes]."""
        stem = self.maxpool(F.relu(self.bn1(self.conv1(image))))
        features = self.layer4(self.layer3(self.layer2(self.layer1(stem))))
        return self.fc(torch.flatten(self.avgpool(features), 1))


class UNet(nn.Module):
    """Two levels down by pooling and up by transposed convolutions, with skips (Ronneberger et al., 2015).

    Sizes that halve to odd ones are padded before they are joined.
    """

    def __init__(self, width: int = 6, classes: int = 4) -> None:
        super().__init__()
        self.down1 = self._block(3, width)
        self.down2 = self._block(width, 2 * width)
        self.bottom = self._block(2 * width, 4 * width)
        self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.join2 = self._block(4 * width, 2 * width)
        self.up1 = nn.ConvTranspose2d(2 * width, width, 3, stride=2, padding=1, output_padding=1)
        self.join1 = self._block(2 * width, width)
        self.head = nn.Conv2d(width, classes, 1)
        self.pool = nn.MaxPool2d(2)

    @staticmethod
    def _block(before: int, after: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(before, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1),
            nn.GroupNorm(2, after),
            nn.ReLU(),
        )

    @staticmethod
    def _join(skip: Tensor, x: Tensor) -> Tensor:
        missing = [skip.shape[axis] - x.shape[axis] for axis in (3, 2)]
        return torch.cat([skip, F.pad(x, (0, missing[0], 0, missing[1]))], dim=1)

    def forward(self, image: Tensor) -> Tensor:
        """Image [N, 3, H, W] -> logits [N, classes, H, W]."""
        first = self.down1(image)
        second = self.down2(self.pool(first))
        lowest = self.bottom(self.pool(second))
        inner = self.join2(self._join(second, self.up2(lowest)))
        return self.head(self.join1(self._join(first, self.up1(inner))))


class Vit(ViTForImageClassification):
    """A vision transformer that returns the logits alone."""

    def forward(self, image: Tensor) -> Tensor:
        """Image [N, 3, H, W] -> logits [N, classes]."""
        return super().forward(pixel_values=image).logits


class MobileNetV2(MobileNetV2ForImageClassification):
    """A MobileNetV2 that returns the logits alone."""

    def forward(self, image: Tensor) -> Tensor:
        """Image [N, 3, H, W] -> logits [N, classes]."""
        return super().forward(pixel_values=image).logits


class ConvNext(ConvNextForImageClassification):
    """A ConvNeXt that returns the logits alone."""

    def forward(self, image: Tensor) -> Tensor:
        """Image [N, 3, H, W] -> logits [N, classes]."""
        return super().forward(pixel_values=image).logits


def resnet18(width: int = 64, classes: int = 10) -> nn.Module:
    """ResNet-18 whose running statistics are away from 0 and 1, as a trained one's are."""
    return with_statistics(seeded(partial(ResNet18, width, classes)))


def mlp() -> nn.Module:
    """64-128-128-10 with ReLU and Tanh."""
    return seeded(Mlp)


def unet() -> nn.Module:
    """6 channels at full size, 4 classes."""
    return with_affine_norms(with_statistics(seeded(UNet)))


def vit(hidden: int = 32, layers: int = 2, classes: int = 5) -> nn.Module:
    """A ViT with two heads on images of 16x16 in patches of 4x4."""
    config = ViTConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * hidden,
        image_size=16,
        patch_size=4,
        num_labels=classes,
        attn_implementation="eager",
    )
    return with_affine_norms(seeded(partial(Vit, config)))


def mobilenet_v2(depth: float = 0.25, classes: int = 5) -> nn.Module:
    """MobileNetV2, all of its 52 convolutions, at `depth` times their channels; its last stride is a dilation.

    The scale of each block's last norm is small: as drawn, 52 batch norms in training mode blow up a rounding error by
    1e5 within three steps, in torch too. The running statistics are those of noise, so that no channel dies.
    """
    config = MobileNetV2Config(
        depth_multiplier=depth,
        depth_divisible_by=4,
        min_depth=4,
        output_stride=16,
        tf_padding=False,
        num_labels=classes,
        classifier_dropout_prob=0.0,
    )
    module = with_affine_norms(seeded(partial(MobileNetV2, config)))
    for name, parameter in module.named_parameters():
        if name.endswith("reduce_1x1.normalization.weight"):
            parameter.data *= 0.1
    with torch.no_grad():
        module.train()(torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(3)) * 2 - 1)
    return module.eval()


def convnext(classes: int = 5) -> nn.Module:
    """A ConvNeXt of four stages of one block; its layer scales are near 1, where they start at 1e-6."""
    config = ConvNextConfig(hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], num_labels=classes)
    return with_affine_norms(seeded(partial(ConvNext, config)))
