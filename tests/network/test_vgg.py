"""The paper's network is the one of its table, and every choice of it works."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck

from cryoforum_plugin.network import DenseHead, PoseNetwork, VggEncoder
from cryoforum_plugin.network.cpu_layers import Dropout, PReLU
from cryoforum_plugin.network.head import SHIFT_SCALE
from cryoforum_plugin.setting_rules import CHOICES
from cryoforum_plugin.settings import NetworkSettings, preset

# Supplementary Table 1: kernel, width, side of the map after the block, for an image of 128 pixels
TABLE = [
    (7, 32, 64),
    (5, 64, 32),
    (3, 128, 32),
    (3, 128, 16),
    (3, 256, 16),
    (3, 256, 8),
    (3, 512, 8),
    (3, 512, 4),
    (3, 1024, 4),
    (3, 1024, 2),
]


def is_finite(network: nn.Module, images: Tensor) -> bool:
    """Whether output and all gradients are finite."""
    output = network(images)
    sum(part.square().sum() for part in output[:4]).backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    return all(torch.isfinite(tensor).all() for tensor in (*output[:4], *gradients))


def test_layers_are_those_of_the_supplementary_table() -> None:
    network = PoseNetwork(128, preset("paper").network).eval()
    maps = network.encoder.blur(torch.randn(1, 1, 128, 128))
    assert maps.shape == (1, 6, 128, 128)
    with torch.no_grad():
        for block, (kernel, width, side) in zip(network.encoder.body, TABLE, strict=True):
            pooled = side < maps.shape[-1]
            maps = block(maps)
            assert maps.shape == (1, width, side, side)
            assert block[0].kernel_size == (kernel, kernel)
            assert [type(layer) for layer in block] == [
                nn.Conv2d,
                nn.BatchNorm2d,
                PReLU,
                *([nn.MaxPool2d, Dropout] if pooled else []),
            ]
            assert block[2].num_parameters == width
            assert not pooled or block[4].p == 0.3
    assert network.encoder.out_features == 1024
    assert network.head.rotation.out_features == 10

    widths = [6] + [width for _, width, _ in TABLE]
    kernels = sum(k * k * a * b for (k, _, _), a, b in zip(TABLE, widths, widths[1:], strict=False))
    expected = kernels + 3 * sum(widths[1:]) + 1024 + (10 + 3) * 1025  # norms and slopes, p, dense and shift
    assert sum(p.numel() for p in network.parameters()) == expected
    assert expected == 18_887_405


def test_weights_start_as_he_et_al() -> None:
    torch.manual_seed(0)
    network = PoseNetwork(64, NetworkSettings(encoder="vgg", channels=16))
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            fan_in = layer.weight[0].numel()
            assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.05)
    assert network.head.rotation.weight.std().item() == pytest.approx(math.sqrt(2 / 512), rel=0.05)


@pytest.mark.parametrize("size_px", [16, 32, 50, 64, 96, 128, 130])
def test_any_box_is_taken(size_px: int) -> None:
    network = PoseNetwork(size_px, NetworkSettings(encoder="vgg", channels=2))
    assert is_finite(network, torch.randn(2, 1, size_px, size_px))


@pytest.mark.parametrize("final_convolutions", [0, 1, 2])
@pytest.mark.parametrize("pooling", CHOICES["network.pooling"])
@pytest.mark.parametrize("blur", CHOICES["network.blur"])
def test_every_choice_has_finite_output_and_gradients(
    blur: str, pooling: str, final_convolutions: int
) -> None:
    encoder = VggEncoder(2, blur, pooling, final_convolutions, dropout=0.3)
    assert len(encoder.body) == 8 + final_convolutions
    width = (32 if final_convolutions == 0 else 64) * (2 if pooling == "max_average" else 1)
    assert encoder.out_features == width
    images = torch.cat([torch.randn(2, 1, 66, 66), torch.zeros(1, 1, 66, 66)])  # pools 2 x 2 pixels
    for representation in CHOICES["network.representation"]:
        assert is_finite(nn.Sequential(encoder, DenseHead(width, representation)), images)


def test_leaving_out_convolutions_keeps_the_pooling_of_what_is_left() -> None:
    sides = []
    for final in (0, 1, 2):
        encoder = VggEncoder(channels=2, final_convolutions=final).eval()
        sides.append(encoder.body(torch.randn(1, 6, 128, 128)).shape[-1])
    assert sides == [4, 2, 2]


def test_shift_starts_at_nothing_and_leaves_the_orientation_alone() -> None:
    network = PoseNetwork(32, NetworkSettings(encoder="vgg", channels=2))
    output = network(torch.randn(4, 1, 32, 32))
    assert torch.equal(output.shift, torch.zeros(4, 2))
    assert torch.allclose(output.shift_log_variance, torch.full((4,), 2 * math.log(SHIFT_SCALE)))
    (output.shift.sum() + output.shift_log_variance.sum()).backward()
    learning = {name for name, p in network.named_parameters() if p.grad is not None}
    assert learning == {"head.shift.weight", "head.shift.bias"}


def test_dense_head_gradients_in_float64() -> None:
    head = DenseHead(5, "qcqp").double()
    features = torch.randn(3, 1, 5, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: head(x).bingham, (features,))


@pytest.mark.parametrize("representation", CHOICES["network.representation"])
@pytest.mark.parametrize("encoder", CHOICES["network.encoder"])
def test_bfloat16_changes_little(encoder: str, representation: str) -> None:
    torch.manual_seed(0)
    settings = NetworkSettings(
        encoder=encoder, channels=4, features=8, hidden=16, representation=representation
    )
    network = PoseNetwork(48, settings).to(memory_format=torch.channels_last)
    images = torch.randn(8, 1, 48, 48)
    with torch.autocast("cpu", torch.bfloat16):
        assert is_finite(network, images)
        network.eval()
        half = network(images)
    full = network(images)
    assert all(part.dtype == torch.float32 for part in half[:4])
    assert (half.bingham - full.bingham).norm() < 0.1 * full.bingham.norm()


def test_batched_equals_one_by_one() -> None:
    torch.manual_seed(0)
    network = PoseNetwork(32, NetworkSettings(encoder="vgg", channels=4)).eval()
    images = torch.randn(4, 1, 32, 32)
    with torch.no_grad():
        together = network(images).bingham
        single = torch.cat([network(image[None]).bingham for image in images])
    assert torch.allclose(together, single, rtol=1e-4, atol=1e-4)
