"""The filter bank does to images what its formulas say, in any box."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.ndimage import gaussian_filter

from cryoforum_plugin.network import BlurLayer
from cryoforum_plugin.network.blur import transfer_functions

KINDS = ["gaussian", "low_pass"]


def wave(n: int, kx: int, ky: int) -> torch.Tensor:
    """Image `(1, 1, n, n)` of kx and ky waves along x and y."""
    x = torch.arange(n, dtype=torch.float64) * (2 * math.pi / n)
    return torch.cos(kx * x + ky * x[:, None])[None, None]


@pytest.mark.parametrize("n", [64, 65])
def test_low_pass_keeps_waves_inside_each_circle_only(n: int) -> None:
    for kx, ky in [(0, 0), (3, 2), (4, -3), (9, 9), (-12, 20), (22, 2), (16, 16), (30, 3), (28, 28), (0, 32)]:
        image = wave(n, kx, ky)
        for cutoff, copy in zip((63, 57, 47, 33, 10), BlurLayer("low_pass")(image)[0, 1:], strict=True):
            distance = math.hypot(kx, ky) - cutoff / 64 * n / 2  # in Fourier pixels
            gain = min(max(0.5 - distance, 0), 1)
            assert torch.allclose(copy, gain * image[0, 0], atol=1e-5)


@pytest.mark.parametrize("n", [48, 65, 128])
def test_gaussian_equals_convolution_in_real_space(n: int) -> None:
    image = torch.randn(1, 1, n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    layers = BlurLayer("gaussian")(image)[0]
    for sigma, copy in zip((0.1, 0.1 * 10**0.5, 1, 10**0.5, 10), layers[1:], strict=True):
        if sigma * n / 128 > 1:  # narrower kernels cannot be sampled on the pixels
            expected = gaussian_filter(image[0, 0].numpy(), sigma * n / 128, mode="wrap", truncate=8)
            assert torch.allclose(copy, torch.from_numpy(expected), atol=2e-3)


def test_narrow_gaussians_have_the_gain_of_their_transform() -> None:
    image = wave(128, 32, 0)  # a quarter cycle per pixel
    for sigma, copy in zip((0.1, 0.1 * 10**0.5, 1), BlurLayer("gaussian")(image)[0, 1:], strict=False):
        gain = math.exp(-2 * (math.pi * sigma / 4) ** 2)
        assert torch.allclose(copy, gain * image[0, 0], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [32, 33])
def test_filters_commute_with_quarter_turns(kind: str, n: int) -> None:
    image = torch.randn(2, 1, n, n)
    layer = BlurLayer(kind)
    assert torch.allclose(layer(image.rot90(1, (2, 3))), layer(image).rot90(1, (2, 3)), atol=1e-5)


def test_original_comes_first_and_nothing_is_learned() -> None:
    image = torch.randn(2, 1, 32, 32)
    assert BlurLayer("none").channels == 1
    assert BlurLayer("none")(image) is image
    for kind in KINDS:
        layer = BlurLayer(kind)
        assert layer(image).shape == (2, layer.channels, 32, 32) == (2, 6, 32, 32)
        assert torch.equal(layer(image)[:, :1], image)
        assert not layer.state_dict()


def test_filters_made_during_prediction_serve_training_in_full_precision() -> None:
    transfer_functions.cache_clear()
    layer, image = BlurLayer("low_pass"), torch.randn(2, 1, 32, 32)
    with torch.inference_mode():
        layer(image)
    image.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        copies = layer(image)
    assert copies.dtype == torch.float32
    copies.sum().backward()
    assert torch.isfinite(image.grad).all()
