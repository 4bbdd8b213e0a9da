"""Polar encoder: image -> features that turn with the image."""

from __future__ import annotations

import copy
import math
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cryoforum_plugin.network.ring import RingLinear


class _Wrapped(torch.autograd.Function):
    """The last `pad` columns of `(..., columns)` also before the first, and the first also after the last.

    As a sum of slices, the gradient would be put together of three maps of full size.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, pad: int) -> Tensor:
        ctx.pad = pad
        return torch.cat([x[..., -pad:], x, x[..., :pad]], dim=-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,), pad = gradients, ctx.pad
        inner = gradient[..., pad:-pad].clone(memory_format=torch.preserve_format)
        inner[..., -pad:] += gradient[..., :pad]
        inner[..., :pad] += gradient[..., -pad:]
        return inner, None


class CircularConv2d(nn.Module):
    """Convolution on (radius, angle) maps: zero padding along the radius, circular along the angle."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.pad = kernel // 2
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride, (self.pad, 0), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(b, c, radius, angle)` to `(b, c', radius / stride, angle / stride)`."""
        if self.pad:
            x = _Wrapped.apply(x, self.pad)  # type: ignore[no-untyped-call]
        out: Tensor = self.conv(x)
        return out


def _block(channels_in: int, channels_out: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        CircularConv2d(channels_in, channels_out, kernel, stride), nn.BatchNorm2d(channels_out), nn.SiLU()
    )


def polar_grid(size_px: int, radii: int, angles: int) -> Tensor:
    """Sampling points `(1, radii, angles, 2)` for `grid_sample(align_corners=True)`, about pixel n // 2.

    Angle 0 is +x, growing towards +y; the outermost radius ends one pixel inside the box.
    """
    radius = (torch.arange(radii) + 0.5) / radii * (size_px // 2 - 1)
    angle = torch.arange(angles) * (2 * math.pi / angles)
    xy = radius[:, None, None] * torch.stack([angle.cos(), angle.sin()], dim=-1)  # (radii, angles, 2)
    return ((xy + size_px // 2) / (size_px - 1) * 2 - 1)[None]


class Encoder(nn.Module):
    """Convolutional encoder on the polar image: rotating the image shifts its features cyclically.

    In-plane rotation is one of the three degrees of freedom of a pose. On a polar grid it is a shift along
    the angle axis, which circular convolutions respect, so that nothing has to be learned for it.

    size_px : side of the (even) input box. channels : width of the first stage, doubled twice.
    features : channels kept per ring sector. Output `(b, positions, features * rings)`.
    """

    ANGLES = 128
    RADII = 32
    STRIDE = 8  # three stages halve radius and angle

    def __init__(self, size_px: int, channels: int = 32, features: int = 64) -> None:
        super().__init__()
        c = channels
        self.positions = self.ANGLES // self.STRIDE
        self.out_features = features * (self.RADII // self.STRIDE)
        self.grid: Tensor
        self.register_buffer("grid", polar_grid(size_px, self.RADII, self.ANGLES), persistent=False)
        self.body = nn.Sequential(
            _block(1, c, kernel=5, stride=2),
            _block(c, c),
            _block(c, 2 * c, stride=2),
            _block(2 * c, 2 * c),
            _block(2 * c, 4 * c, stride=2),
            _block(4 * c, 4 * c),
            _block(4 * c, features, kernel=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Encode masked, normalised images `(b, 1, size_px, size_px)` to `(b, positions, out_features)`.

        Rotating the image content by 2 pi / positions (from x to y) moves every feature one position on.
        """
        polar = nn.functional.grid_sample(
            images, self.grid.expand(len(images), -1, -1, -1).to(images.dtype), align_corners=True
        )
        maps: Tensor = self.body(
            polar.contiguous(memory_format=torch.channels_last)
        )  # (b, f, rings, positions)
        return maps.flatten(1, 2).transpose(1, 2)


Network = TypeVar("Network", bound=nn.Module)


def fused_for_inference(network: Network, dtype: torch.dtype = torch.float32) -> Network:
    """Copy of a network in evaluation mode with every batch norm folded into the convolution before it.

    What a ring layer makes of its weights is kept too. dtype : of the convolutions' weights, and those; autocast would
    turn them into bfloat16 again for every batch.
    """
    fused = copy.deepcopy(network).eval()
    for block in fused.modules():
        if isinstance(block, nn.Sequential) and len(block) > 1 and isinstance(block[1], nn.BatchNorm2d):
            if isinstance(block[0], CircularConv2d):
                block[0].conv = fuse_conv_bn_eval(block[0].conv, block[1])
            else:
                assert isinstance(block[0], nn.Conv2d)
                block[0] = fuse_conv_bn_eval(block[0], block[1])
            block[1] = nn.Identity()
    for layer in fused.modules():
        if isinstance(layer, nn.Conv2d):
            layer.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        elif isinstance(layer, RingLinear):
            layer.fuse(dtype)
    return fused
