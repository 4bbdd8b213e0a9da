"""The paper's encoder: blur, ten convolutions, pooling over the whole map."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cryoforum_plugin.network.blur import BlurLayer
from cryoforum_plugin.network.cpu_layers import Dropout, PReLU
from cryoforum_plugin.network.pooling import make_pooling

# Supplementary Table 1: (kernel, width in units of the first) of each convolution, and after which to pool.
CONVOLUTIONS = ((7, 1), (5, 2), (3, 4), (3, 4), (3, 8), (3, 8), (3, 16), (3, 16), (3, 32), (3, 32))
POOLED = (0, 1, 3, 5, 7, 9)


def _block(channels_in: int, channels_out: int, kernel: int, pool: bool, dropout: float) -> nn.Sequential:
    convolution = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight)
    # slopes start at 0.25 as in He et al. 2015: in short trainings the error fell faster than from 0
    layers = [convolution, nn.BatchNorm2d(channels_out), PReLU(channels_out, init=0.25)]
    if pool:  # rounding up: a map of one pixel stays one, so that any box goes through
        layers += [nn.MaxPool2d(2, ceil_mode=True), Dropout(dropout)]
    return nn.Sequential(*layers)


class VggEncoder(nn.Module):
    """Convolutional encoder of the paper (Supplementary Table 1 with channels = 32) for any box size.

    channels : width of the first convolution; the last has 32 times as many. blur, pooling : as in
    NetworkSettings. final_convolutions : how many of the last two are kept; with 0 their pooling step goes
    too. dropout : probability, after every max pooling. Output `(b, 1, out_features)`.
    """

    def __init__(
        self,
        channels: int = 32,
        blur: str = "low_pass",
        pooling: str = "generalised_mean",
        final_convolutions: int = 2,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        self.positions = 1
        self.blur = BlurLayer(blur)
        last = len(CONVOLUTIONS) - 3 + final_convolutions
        self.body = nn.Sequential()
        width = self.blur.channels
        for i, (kernel, factor) in enumerate(CONVOLUTIONS[: last + 1]):
            self.body.append(_block(width, factor * channels, kernel, i in POOLED or i == last, dropout))
            width = factor * channels
        self.pooling, self.out_features = make_pooling(pooling, width)

    def forward(self, images: Tensor) -> Tensor:
        """Encode preprocessed images `(b, 1, n, n)` to `(b, 1, out_features)`."""
        maps = self.body(self.blur(images).contiguous(memory_format=torch.channels_last))
        features: Tensor = self.pooling(maps)
        return features.unsqueeze(1)
