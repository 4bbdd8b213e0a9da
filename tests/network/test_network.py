"""The network turns with the image, and survives degenerate input."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import gradcheck

from cryoforum_plugin.errors import SettingsError
from cryoforum_plugin.geometry import in_plane_quaternion, right_multiplication_matrix
from cryoforum_plugin.images.augment import quarter_turns
from cryoforum_plugin.images.working import finish
from cryoforum_plugin.network import Encoder, PoseNetwork, RotationHead
from cryoforum_plugin.network.device import choose_device, choose_precision
from cryoforum_plugin.network.encoder import fused_for_inference
from cryoforum_plugin.network.ring import RingLinear
from cryoforum_plugin.settings import NetworkSettings


@pytest.fixture(scope="module")
def network() -> PoseNetwork:
    torch.manual_seed(1)
    return PoseNetwork(32, NetworkSettings(channels=4, features=8, hidden=16)).eval()


def test_quarter_turn_of_the_image_turns_the_posterior_and_the_shift(network: PoseNetwork) -> None:
    images = finish(torch.randn(5, 32, 32))
    turned = quarter_turns(images[:, 0], torch.ones(5, dtype=torch.long)).unsqueeze(1)
    with torch.no_grad():
        before, after = network(images), network(turned)
    m = right_multiplication_matrix(in_plane_quaternion(torch.tensor(math.pi / 2)))
    assert torch.allclose(after.bingham, m.mT @ before.bingham @ m, atol=1e-5)
    assert torch.allclose(after.shift, torch.stack([-before.shift[:, 1], before.shift[:, 0]], 1), atol=1e-6)
    assert torch.allclose(after.features, before.features, atol=1e-5)
    assert torch.allclose(after.shift_log_variance, before.shift_log_variance, atol=1e-5)


def test_features_shift_by_one_position_when_the_polar_image_does() -> None:
    torch.manual_seed(0)
    encoder = Encoder(32, channels=4, features=8).eval()
    polar = torch.randn(2, 1, encoder.RADII, encoder.ANGLES)
    with torch.no_grad():
        features = encoder.body(polar)
        moved = encoder.body(polar.roll(encoder.STRIDE, dims=-1))
    assert torch.allclose(moved, features.roll(1, dims=-1), atol=1e-5)


def test_head_gradients_in_float64() -> None:
    head = RotationHead(positions=4, features=3, hidden=5).double()
    features = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)

    assert gradcheck(lambda x: tuple(head(x)[:4]), (features,))
    sum(part.sum() for part in head(features)[:4]).backward()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())


@pytest.mark.parametrize("positions", [2, 6, 16])
@pytest.mark.parametrize("fused", [False, True])
def test_reading_the_ring_in_frequencies_equals_the_sum(positions: int, fused: bool) -> None:
    layer = RingLinear(positions, features=3, hidden=5).double().eval()
    if fused:
        layer.fuse(torch.float64)
    features = torch.randn(2, positions, 3, dtype=torch.float64)
    rings = torch.stack([features.roll(-j, dims=1).flatten(1) for j in range(positions)], dim=1)
    expected = torch.nn.functional.linear(rings, layer.weight, layer.bias)
    assert torch.allclose(layer(features), expected, atol=1e-6)  # its waves are float32


@pytest.mark.parametrize("fused", [False, True])
def test_only_the_product_of_the_ring_is_rounded(fused: bool) -> None:
    torch.manual_seed(0)
    layer, features = RingLinear(16, 8, 8).eval(), torch.randn(4, 16, 8)
    if fused:
        layer.fuse(torch.bfloat16)
    with torch.no_grad():
        spectrum = (layer.waves @ features).view(4, 8, 16).transpose(0, 1)
        product = (spectrum.bfloat16() @ layer.matrices().bfloat16()).float()
        expected = layer.waves.T @ product.transpose(0, 1).reshape(4, 16, 8) + layer.bias
        with torch.autocast("cpu", torch.bfloat16):
            output = layer(features)
    assert torch.allclose(output, expected, atol=1e-5)


def test_the_ring_has_the_gradients_of_the_sum() -> None:
    torch.manual_seed(0)
    layer, features = RingLinear(6, 3, 5), torch.randn(2, 6, 3)
    layer.fuse(torch.float32)  # not used in training
    rings = torch.stack([features.roll(-j, dims=1).flatten(1) for j in range(6)], dim=1)
    gradients = []
    for output in (layer(features), torch.nn.functional.linear(rings, layer.weight, layer.bias)):
        gradients.append(torch.autograd.grad(output.square().sum(), (layer.weight, layer.bias)))
    for ours, direct in zip(*gradients, strict=True):
        assert torch.allclose(ours, direct, atol=1e-5)


def test_a_ring_needs_an_even_number_of_positions() -> None:
    with pytest.raises(ValueError, match="even number"):
        RingLinear(5, 3, 3)


@pytest.mark.parametrize("encoder", ["polar", "vgg"])
def test_folding_batch_norm_changes_nothing(encoder: str) -> None:
    torch.manual_seed(1)
    settings = NetworkSettings(encoder=encoder, channels=4, features=8, hidden=16)
    network = PoseNetwork(32, settings).eval()
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            for tensor in (layer.running_mean, layer.weight.data, layer.bias.data):
                tensor.copy_(torch.randn_like(tensor))
            layer.running_var.copy_(torch.rand_like(layer.running_var) + 0.2)
    images = finish(torch.randn(3, 32, 32))
    fused = fused_for_inference(network)
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in fused.modules())
    with torch.no_grad():
        for a, b in zip(network(images)[:4], fused(images)[:4], strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-5 * max(1.0, a.abs().max().item()))


@pytest.mark.parametrize("value", [0.0, 1.0, 1e4])
def test_constant_images_give_finite_answers_and_gradients(network: PoseNetwork, value: float) -> None:
    output = network(finish(torch.full((3, 32, 32), value)))
    assert all(torch.isfinite(part).all() for part in output[:4])
    sum(part.sum() for part in output[:4]).backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_batched_equals_one_by_one(network: PoseNetwork) -> None:
    images = finish(torch.randn(4, 32, 32))
    with torch.no_grad():
        together = network(images).bingham
        single = torch.cat([network(image[None]).bingham for image in images])
    assert torch.allclose(together, single, atol=1e-5)


def test_device_and_precision_are_checked() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(SettingsError, match="unknown device"):
        choose_device("gpu7")
    with pytest.raises(SettingsError, match="unknown precision"):
        choose_precision("16", torch.device("cpu"))
    assert choose_precision("32", torch.device("cpu")) == "32-true"
    with pytest.raises(SettingsError, match="cuda:999 was asked for"):
        choose_device("cuda:999")
    if not torch.cuda.is_available():
        with pytest.raises(SettingsError, match="torch sees 0"):
            choose_device("cuda:0")
