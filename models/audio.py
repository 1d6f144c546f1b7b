"""Sound: the encoder of Whisper with a classifier behind it, and a network that hears the raw wave."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from transformers import WhisperConfig, WhisperForAudioClassification

from models.common import seeded, with_affine_norms, with_statistics


class Whisper(WhisperForAudioClassification):
    """Whisper's encoder; the classifier reads the mean over time of a learnt mixture of all layers."""

    def forward(self, input_features: Tensor) -> Tensor:
        """Log-mel features [N, mels, T], T twice the encoder's places -> logits [N, classes]."""
        return super().forward(input_features=input_features).logits


class AudioCnn(nn.Module):
    """Strided and dilated convolutions over the wave, then 2-D convolutions over what they make of it."""

    def __init__(self, width: int = 8, classes: int = 5) -> None:
        super().__init__()
        self.wave = nn.Sequential(
            nn.Conv1d(1, width, 9, stride=4, padding=4, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.MaxPool1d(3, stride=2, padding=1),
            nn.Conv1d(width, 2 * width, 5, padding=4, dilation=2),
            nn.GroupNorm(4, 2 * width),
            nn.GELU(),
            nn.AvgPool1d(2),
        )
        self.plane = nn.Sequential(
            nn.Conv2d(1, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.1),
            nn.Conv2d(width, 2 * width, 3, padding=1, groups=2),
            nn.InstanceNorm2d(2 * width, affine=True),
            nn.SiLU(),
        )
        self.head = nn.Linear(4 * width, classes)

    def forward(self, wave: Tensor) -> Tensor:
        """Wave [N, 1, T] -> logits [N, classes]."""
        features = self.plane(self.wave(wave).unsqueeze(1))
        pooled = torch.cat([features.mean(dim=(2, 3)), features.amax(dim=(2, 3))], dim=1)
        return self.head(pooled)


def whisper(mels: int = 8, places: int = 16, hidden: int = 32, layers: int = 2, classes: int = 5) -> nn.Module:
    """Whisper's encoder with two heads; its sinusoidal positions are a parameter that torch freezes."""
    config = WhisperConfig(
        vocab_size=64,
        num_mel_bins=mels,
        d_model=hidden,
        encoder_layers=layers,
        encoder_attention_heads=2,
        encoder_ffn_dim=2 * hidden,
        max_source_positions=places,
        classifier_proj_size=16,
        num_labels=classes,
        use_weighted_layer_sum=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
        attn_implementation="eager",
    )
    return with_affine_norms(seeded(partial(Whisper, config)))


def audio_cnn() -> nn.Module:
    """8 channels, 5 classes."""
    return with_affine_norms(with_statistics(seeded(AudioCnn)))
